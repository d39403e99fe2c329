"""``reg4pru inspect``: thin, no logic of its own."""

from pathlib import Path
from typing import Annotated

import typer

from ..commands import readable


def inspect(
    photograph: Annotated[Path, typer.Argument(help="A photograph.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Weights of a training [default: the bundle's].")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the pictures [default: inspection/ and the photograph's name].")
    ] = None,
    keep_rate: Annotated[
        float | None, typer.Option(help="Share of the tokens kept at each stage [default: as trained].")
    ] = None,
    angle: Annotated[
        float | None, typer.Option(help="Angle of view of the photograph, in degrees [default: 45 is assumed].")
    ] = None,
) -> None:
    """Show what the network does on one photograph: removed tokens, scores, the prediction after each block.

    Exit status: 0 done; 1 could not.
    """
    from ..fundus.angle import angle_of_view
    from ..inference import CHECKPOINT, load_pipeline
    from ..weights import CheckpointError
    from .photograph import inspect_photograph

    folder = output or Path("inspection") / photograph.stem
    with readable(CheckpointError, ValueError, OSError):
        pipeline = load_pipeline(checkpoint or CHECKPOINT, keep_rate=keep_rate)
        told = angle_of_view(angle, pipeline.by_angle)
        written = inspect_photograph(pipeline, photograph, folder, angle=told)
    for path in written:
        typer.echo(f"written: {path}")
