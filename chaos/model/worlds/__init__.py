"""What the steps of each model are on the real library, and how what is stored reads in its variables: a module a model."""
