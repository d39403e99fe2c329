"""``reg4pru plan``: thin, no logic of its own."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ..commands import listed, readable


def plan(
    images: Annotated[int, typer.Option(help="Photographs of the archive.")] = 1_000_000,
    size: Annotated[str, typer.Option(help="Their size in pixels: the side of a square, or ROWSxCOLUMNS.")] = "2048",
    device: Annotated[str, typer.Option(help="Whose costs: cpu; with --measure: cpu, cuda:0.")] = "cpu",
    workers: Annotated[int, typer.Option(help="CPU cores, or GPUs, at work at once.")] = 1,
    cores: Annotated[int, typer.Option(help="CPU cores beside each GPU.")] = 8,
    outputs: Annotated[str, typer.Option(help="As of reg4pru segment.")] = "mask,overlay",
    archives: Annotated[bool, typer.Option("--archives", help="Outputs in tar archives, not in files.")] = False,
    files_per_second: Annotated[float | None, typer.Option(help="New files that the shared storage takes.")] = None,
    megabytes_per_second: Annotated[float | None, typer.Option(help="That it reads and writes.")] = None,
    costs: Annotated[Path | None, typer.Option(help="File with costs [default: those of --device].")] = None,
    measure: Annotated[
        list[str] | None, typer.Option(help="Photographs to measure this machine's costs with, into --costs.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Say what segmenting an archive will take: machine-hours, wall time, storage, and the bottleneck.

    Costs come from measurements with one thread: those of the package, or your own with --measure.
    """
    from .costs import CostsError, load_costs
    from .plan import Limits, as_text, make_plan

    wanted = tuple(listed(outputs))
    with readable(CostsError, OSError, ValueError):
        if measure:
            if costs is None:
                raise CostsError("--measure writes a file: name it with --costs FILE")
            _measure(measure, device, wanted, costs)
        known = load_costs(device, costs)
        limit = None if megabytes_per_second is None else megabytes_per_second * 1e6
        megapixels = _megapixels(size)
        limits = Limits(files_per_second, limit)
        found = make_plan(known, images, megapixels, wanted, workers, cores, limits, archives)
    typer.echo(json.dumps(found._asdict()) if as_json else as_text(found, known, megapixels))


def _measure(photographs: list[str], device: str, outputs: tuple[str, ...], path: Path) -> None:
    from ..batch.inputs import list_inputs
    from ..batch.settings import settings_of
    from ..inference import load_pipeline
    from .costs import measure

    pipeline = load_pipeline(device=device)
    items = list_inputs(photographs, path.parent / "out").items
    measure(pipeline, settings_of(pipeline, outputs=outputs), items).save(path)


def _megapixels(size: str) -> float:
    try:
        sides = [int(part) for part in size.lower().split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise ValueError(f"--size must be a number of pixels or ROWSxCOLUMNS, such as 2048 or 2336x3504, got {size!r}")
    return sides[0] * sides[-1] / 1e6
