"""How every command of ``reg4pru`` ends where it could not run: one line, and exit status 1."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperCommand


class CouldNotRun(TyperCommand):
    """A wrong option ends with 1, like anything else that keeps the command from running."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """As of any command, with another status."""
        try:
            return super().make_context(*args, **kwargs)
        except Exception as error:
            if getattr(error, "exit_code", 0) == 2:  # a usage error, in every version of typer
                error.exit_code = 1  # type: ignore[attr-defined]
            raise


@contextmanager
def readable(*kinds: type[Exception]) -> Iterator[None]:
    """Say an error of these kinds in one line, ``error: …``, and end with status 1."""
    try:
        yield
    except kinds as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
