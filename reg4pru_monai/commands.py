"""How every command of ``reg4pru`` ends where it could not run: one line, and exit status 1."""

from collections.abc import Callable, Iterator
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


def listed(text: str, kind: Callable[[str], Any] = str, option: str = "") -> list[Any]:
    """The parts of a list with commas. Raises ValueError that names the option."""
    try:
        return [kind(part.strip()) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"{option} must be numbers with commas between, got {text!r}") from None
