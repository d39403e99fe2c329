"""What one photograph costs on a machine: seconds of each stage and bytes of each file, by its size."""

import json
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import nnls

from .. import __version__
from ..batch.failures import StageError
from ..batch.inputs import Item
from ..batch.settings import Settings
from ..batch.work import Work
from ..files import replacing
from ..inference import Pipeline
from ..runtime import device_name

STAGES = ("read", "network", "write")
PHOTOGRAPH = "photograph"
REPEATS = 3
_FIGURES = files(__package__) / "figures"


class CostsError(ValueError):
    """Costs that are not known, or cannot be measured."""


class Cost(NamedTuple):
    """Of a photograph: a constant and so much for each megapixel."""

    constant: float
    per_megapixel: float

    def of(self, megapixels: float) -> float:
        """For a photograph of this size."""
        return self.constant + self.per_megapixel * megapixels


@dataclass(frozen=True)
class Costs:
    """Measured on one machine with one thread.

    device, name: "cpu" or "cuda", and which. megapixels: smallest and largest photograph measured. photographs: how
    many. seconds: by STAGES: read (decode, field of view, resize), network, write (measure, encode, write). bytes: of
    the photograph and of each output. version: of this package.
    """

    device: str
    name: str
    photographs: int
    megapixels: tuple[float, float]
    seconds: Mapping[str, Cost]
    bytes: Mapping[str, Cost]
    version: str = __version__

    def save(self, path: Path) -> None:
        """Write as JSON."""
        with replacing(path) as beside:
            beside.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def known() -> list[str]:
    """Names of the machines whose costs come with the package."""
    return sorted(Path(str(each)).stem for each in _FIGURES.iterdir() if str(each).endswith(".json"))


def load_costs(device: str, path: Path | None = None) -> Costs:
    """The costs in a file, or those that come with the package for a device. Raises CostsError, OSError."""
    if path is None and device not in known():
        raise CostsError(
            f"there are no figures for {device!r}, only for {', '.join(known())}: on such a machine give --measure "
            f"PHOTOGRAPHS --device {'cpu' if device == 'cpu' else 'cuda'} --costs {device}.json, then --costs alone"
        )
    source = path or _FIGURES / f"{device}.json"
    try:
        found = json.loads(source.read_text(encoding="utf-8"))
        seconds, sizes = (
            {key: Cost(*map(float, cost)) for key, cost in found[kind].items()} for kind in ("seconds", "bytes")
        )
        if seconds.keys() != set(STAGES) or PHOTOGRAPH not in sizes:
            raise KeyError("seconds or bytes")
        return Costs(**{**found, "megapixels": tuple(found["megapixels"]), "seconds": seconds, "bytes": sizes})
    except (ValueError, KeyError, TypeError) as error:
        raise CostsError(f"{source}: no costs that reg4pru plan --measure wrote ({error!r}); measure again") from error


def measure(pipeline: Pipeline, settings: Settings, photographs: Sequence[Item]) -> Costs:
    """Segment photographs one after the other with one thread; time every stage, the median of REPEATS.

    Costs are a non-negative least-squares fit over megapixels. Raises CostsError for a photograph that fails.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            work = Work(pipeline, settings, Path(folder))
            rows = [_measured(work, item) for item in photographs]
    finally:
        torch.set_num_threads(threads)
    sizes = [row.megapixels for row in rows]
    return Costs(
        pipeline.device.type,
        device_name(pipeline.device),
        len(rows),
        (min(sizes), max(sizes)),
        {stage: _fit(sizes, [row.seconds[stage] for row in rows]) for stage in STAGES},
        {name: _fit(sizes, [row.bytes[name] for row in rows]) for name in rows[0].bytes},
    )


class _Row(NamedTuple):
    """What one photograph took."""

    megapixels: float
    seconds: dict[str, float]
    bytes: dict[str, float]


def _measured(work: Work, item: Item) -> _Row:
    times: dict[str, list[float]] = {stage: [] for stage in STAGES}
    try:
        for _ in range(REPEATS):
            moments = [time.perf_counter()]
            file = work.prepare(item)
            moments.append(time.perf_counter())
            found = work.infer([file])[0]
            if isinstance(found, StageError):
                raise found
            moments.append(time.perf_counter())
            record = work.finish(file, found).record
            moments.append(time.perf_counter())
            for stage, spent in zip(STAGES, np.diff(moments).tolist(), strict=True):
                times[stage].append(spent)
    except StageError as error:
        raise CostsError(f"{item.path}: cannot be measured, {error.stage} failed ({error.cause})") from error
    sizes: Counter[str] = Counter()
    for path, size in record.outputs.items():  # of all frames
        sizes[path.split("/")[0]] += size
    return _Row(
        file.pixels / 1e6,
        {stage: median(spent) for stage, spent in times.items()},
        {PHOTOGRAPH: float(file.size), **{folder: float(size) for folder, size in sizes.items()}},
    )


def _fit(megapixels: Sequence[float], values: Sequence[float]) -> Cost:
    """With photographs of one size alone, all of it goes to the megapixels."""
    sizes = np.asarray(megapixels)
    if np.ptp(sizes) < 0.1 * sizes.max():
        return Cost(0.0, float(np.mean(np.asarray(values) / sizes)))
    solution, _ = nnls(np.stack((np.ones_like(sizes), sizes), axis=1), np.asarray(values))
    return Cost(float(solution[0]), float(solution[1]))
