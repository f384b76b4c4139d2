"""`python -m statemachine.cli`: the same as the command `resetguard`."""

from statemachine.cli import main

main()
