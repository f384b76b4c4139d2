"""chaos: what tries to break the library, and what holds it to its model.  It imports `statemachine`, never the reverse."""
