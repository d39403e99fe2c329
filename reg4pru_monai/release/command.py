"""``reg4pru release`` and ``reg4pru card``: thin, no logic of their own."""

from pathlib import Path
from typing import Annotated

import typer

from ..commands import readable


def release(
    source: Annotated[Path, typer.Argument(help="Output folder of a training, or a checkpoint.")],
    data: Annotated[list[Path], typer.Option(help="Data set to test on; give it again for several.")],
    bundle: Annotated[Path | None, typer.Option(help="Bundle to write into [default: the installed one].")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda:0.")] = "auto",
    work: Annotated[Path | None, typer.Option(help="Folder for what is kept [default: beside the run].")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many test photographs of each data set, to try it out.")
    ] = None,
) -> None:
    """Measure a checkpoint, and put it into the bundle: half precision, threshold, facts, pictures, model card.

    The same command again goes on where it ended. Exit status: 0 released, 1 not.
    """
    from ..released import BUNDLE, WEIGHTS, CheckpointError
    from .run import release as run

    with readable(ValueError, OSError, CheckpointError):
        facts = run(source, data, bundle or BUNDLE, device, work, limit, lambda text: typer.echo(text, err=True))
    for name, own in facts["results"].items():
        metrics = own["metrics"]
        scores = [f"{metrics[f'{each}/ap']:.3f} {each}" for each in ("pruned", "dense") if f"{each}/ap" in metrics]
        typer.echo(f"{name}: AP {', '.join(scores)}")
    typer.echo(f"{(bundle or BUNDLE) / WEIGHTS}: {facts['weights']['bytes'] / 2**20:.1f} MiB")


def card(
    bundle: Annotated[Path | None, typer.Option(help="Bundle to write into [default: the installed one].")] = None,
) -> None:
    """Write the model card anew from the facts of the last release, and docs/comments.json where it is there."""
    from ..released import BUNDLE
    from .bundle_files import write_card

    with readable(ValueError, OSError):
        for path in write_card(bundle or BUNDLE):
            typer.echo(f"written: {path}")
