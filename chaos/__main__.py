"""`python -m chaos`: the commands that hold the library to its model.  Each lies in a module with a `register(app)`."""

from __future__ import annotations

from typing import Final

import typer

from chaos import conforming
from statemachine import audit

app: Final = typer.Typer(
    help="Hold resetguard to the model in specs/.\n\nExit codes: 0 it holds, 1 it does not, 2 wrong use, 3 trouble with a store.",
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
)


@app.callback()
def main() -> None:
    """The commands that hold the library to its model."""
    audit.configure_for_command(verbose=False)


conforming.register(app)

if __name__ == "__main__":
    app(prog_name="python -m chaos")
