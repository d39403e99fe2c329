"""``reg4pru reproduce``: thin, no logic of its own."""

from pathlib import Path
from typing import Annotated

import typer

from ..commands import readable


def reproduce(
    runs: Annotated[Path, typer.Argument(help="Folder with the trainings of configs/experiments/reproduce.yaml.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder for the tables and figures [default: report/ in RUNS].")
    ] = None,
    curves: Annotated[
        bool, typer.Option(help="Also other keep rates and earlier epochs, of one seed of each arm.")
    ] = True,
) -> None:
    """Say what pruning costs, why, and what Reg4Pru brings back: evaluates the trainings below a folder many ways.

    What was evaluated is kept beside each training, so that the same command again only adds what is new.
    """
    from ..weights import CheckpointError
    from .evaluate import evaluate_all
    from .report import text, write
    from .results import Results

    with readable(CheckpointError, ValueError, OSError):
        rows = evaluate_all(runs, curves)
        written = write(output or runs / "report", rows)
    typer.echo(text(Results(rows)))
    for path in written:
        typer.echo(f"written: {path}")
