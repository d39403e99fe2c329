"""The arithmetic over an archive: machine-hours, wall time, storage, and what will be the bottleneck."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..batch.archives import ARCHIVE_BYTES
from ..batch.writers import PLACES
from .costs import PHOTOGRAPH, Costs, CostsError

FOLDERS = {name: folder for name, (folder, _) in PLACES.items()}
JOURNAL_BYTES = 1_600  # of a photograph, as docs/measure/million_rows.py found
ALL_STAGES = "all stages"


class Limits(NamedTuple):
    """What the storage that all workers share allows, None where it is not known: files made, and bytes, per second."""

    files: float | None = None
    bytes: float | None = None


class Plan(NamedTuple):
    """What an archive takes.

    seconds: per photograph and stage. each: seconds from one photograph of a worker to its next, limits aside. wall: of
    all. files: written in all. bytes: in all, by kind. rates: files and bytes per second, read and written by all
    workers together. bottleneck: a stage, "making files" or "reading and writing bytes".
    """

    images: int
    workers: int
    cores: int
    seconds: Mapping[str, float]
    each: float
    wall: float
    files: int
    bytes: Mapping[str, float]
    rates: Mapping[str, float]
    bottleneck: str

    @property
    def worker_hours(self) -> float:
        """Hours of workers, at work or waiting for the storage."""
        return self.wall * self.workers / 3600


def make_plan(
    costs: Costs,
    images: int,
    megapixels: float,
    outputs: Sequence[str],
    workers: int = 1,
    cores: int = 1,
    limits: Limits = Limits(),  # noqa: B008  # immutable
    archives: bool = False,
) -> Plan:
    """Plan ``images`` photographs of a size.

    workers: CPU: processes with one core each, which do every stage. GPU: devices, each with ``cores`` CPU cores that
    read and write while it computes. outputs: names, as of ``reg4pru segment --outputs``, those that were measured.
    archives: they go into tar archives. Raises CostsError.
    """
    for name, value in (("images", images), ("size", megapixels), ("workers", workers), ("cores", cores)):
        if not value > 0:
            raise CostsError(f"{name} must be more than 0, got {value}")
    for name, limit in (("files per second", limits.files), ("bytes per second", limits.bytes)):
        if limit is not None and not limit > 0:  # also false for NaN
            raise CostsError(f"{name} must be more than 0, or left out, got {limit:g}")
    if {FOLDERS.get(name) for name in outputs} != costs.bytes.keys() - {PHOTOGRAPH}:
        measured = ", ".join(name for name, folder in FOLDERS.items() if folder in costs.bytes)
        raise CostsError(
            f"the costs are of the outputs {measured}, not of {', '.join(outputs) or 'none'}: --measure with --outputs"
        )
    seconds = {stage: cost.of(megapixels) for stage, cost in costs.seconds.items()}
    sizes = {name: costs.bytes[FOLDERS.get(name, name)].of(megapixels) for name in (PHOTOGRAPH, *outputs)}
    total = {**{name: size * images for name, size in sizes.items()}, "journal": float(JOURNAL_BYTES * images)}
    times = _times(seconds, costs.device, cores)
    each = max(times.values())
    written = sum(total.values()) - total[PHOTOGRAPH]
    by_workers = images * each / workers
    files = max(workers, round((written - total["journal"]) / ARCHIVE_BYTES)) if archives else images * len(outputs)
    waits = {
        max(times, key=lambda name: times[name]): by_workers,
        "making files": files / limits.files if limits.files else 0.0,
        "reading and writing bytes": sum(total.values()) / limits.bytes if limits.bytes else 0.0,
    }
    bottleneck, wall = max(waits.items(), key=lambda pair: pair[1])
    if bottleneck == ALL_STAGES:
        bottleneck = max(seconds, key=lambda name: seconds[name])
    rates = {"files": files / wall, "bytes read": total[PHOTOGRAPH] / wall, "bytes written": written / wall}
    return Plan(images, workers, cores, seconds, each, wall, files, total, rates, bottleneck)


def _times(seconds: Mapping[str, float], device: str, cores: int) -> dict[str, float]:
    """Seconds of a worker for each photograph, by what it waits for."""
    if device == "cpu":
        return {ALL_STAGES: sum(seconds.values())}
    cpu = (seconds["read"] + seconds["write"]) / cores
    return {"network": seconds["network"], "read and write": cpu}


def as_text(plan: Plan, costs: Costs, megapixels: float) -> str:
    """The plan as lines for a terminal."""
    cpu = costs.device == "cpu"
    worker = "core" if cpu else "GPU"
    share = sum(plan.seconds.values())
    lines = [
        f"{plan.images:,} photographs of {megapixels:.1f} megapixels; costs measured on {costs.name} with "
        f"{costs.photographs} photographs of {costs.megapixels[0]:.1f} to {costs.megapixels[1]:.1f} megapixels",
        "",
        f"{'stage':<10}{'s each':>10}{'hours in all':>16}",
        *(
            f"{stage:<10}{spent:>10.3f}{plan.images * spent / 3600:>16,.0f}  {spent / share:.0%}"
            for stage, spent in plan.seconds.items()
        ),
        "",
        f"{plan.workers:,} {worker}{'s' if plan.workers > 1 else ''}"
        + ("" if cpu else f" with {plan.cores} CPU core{'s' if plan.cores > 1 else ''} each")
        + f": {duration(plan.wall)}, {plan.worker_hours:,.0f} {worker}-hours; bottleneck: {plan.bottleneck}",
        "",
        f"{'kind':<14}{'GB in all':>12}",
        *(f"{name:<14}{size / 1e9:>12,.1f}" for name, size in plan.bytes.items()),
        "",
        f"{plan.files:,} files, {plan.rates['files']:,.0f} per second; "
        f"{plan.rates['bytes read'] / 1e6:,.1f} MB/s read, {plan.rates['bytes written'] / 1e6:,.1f} MB/s written",
    ]
    if not costs.megapixels[0] * 0.9 <= megapixels <= costs.megapixels[1] * 1.1:
        lines.append("Note: no photograph of this size was measured; times and bytes are extrapolated.")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Days or hours, whichever is readable."""
    hours = seconds / 3600
    return (
        f"{hours / 24:,.1f} days" if hours >= 48 else f"{hours:,.1f} hours" if hours >= 2 else f"{hours * 60:,.0f} min"
    )
