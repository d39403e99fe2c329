"""`reg4pru segment` and `reg4pru status`, without the parsing of their options."""

import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ..inference import DEFAULT_THRESHOLD, Pipeline, load_pipeline
from ..released import BUNDLE, CHECKPOINT
from .failures import ClusterError, DeviceError, WriteError
from .inputs import InputError
from .locks import LockedError
from .progress import Display
from .ray_plan import RayOptions
from .segment import segment_photographs
from .settings import SettingsError, settings_of
from .status import Status, read_status

COULD_NOT_RUN = (InputError, SettingsError, LockedError, WriteError, DeviceError, ClusterError, OSError)


class Network(NamedTuple):
    """Which network: a bundle, or a checkpoint (default: the installed bundle's), and how it prunes."""

    bundle: Path | None
    checkpoint: Path | None
    device: str
    policy: str | None
    keep_rate: float | None
    flips: bool = False


class Loaded(NamedTuple):
    """threshold: of its own. bundle: digest of the foreign bundle it came from, or None."""

    pipeline: Pipeline
    threshold: float = DEFAULT_THRESHOLD
    bundle: str | None = None


def load(network: Network, say: Any) -> Loaded:
    """The pipeline that was asked for. ``say`` gets what the user should know about a foreign bundle."""
    if network.bundle is None or network.bundle.resolve() == BUNDLE:
        _, checkpoint, device, policy, keep_rate, flips = network
        pipeline = load_pipeline(checkpoint or CHECKPOINT, device, keep_rate, policy=policy, flips=flips)
        return Loaded(pipeline, pipeline.threshold)
    if network.checkpoint is not None or network.policy is not None:
        raise SettingsError("--bundle brings its own weights and policy: give it without --checkpoint and --policy")
    digest = bundle_digest(network.bundle)
    say(
        f"{network.bundle} is not the installed bundle: its configuration can run any code with your rights. Use it "
        f"only if you trust where it came from. SHA-256 of all its files: {digest}"
    )
    from .bundle import load_bundle  # needs all of MONAI

    pipeline, threshold = load_bundle(network.bundle, network.device)
    if network.keep_rate is not None:
        pipeline.network = pipeline.network.with_keep_rate(network.keep_rate)
    pipeline.inferer.flips |= network.flips
    return Loaded(pipeline, DEFAULT_THRESHOLD if threshold is None else threshold, digest)


def bundle_digest(folder: Path) -> str:
    """SHA-256 over names and contents of the bundle's files, without what Python and version control leave there."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and "__pycache__" not in parts and not any(part.startswith(".") for part in parts):
            digest.update(os.fsencode("/".join(parts)) + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def default_workers() -> int:
    """Threads for reading, and for writing: as many as processors, from 2 to 8."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(available, 2), 8)


def ray_options(
    engine: str, device: str, address: str | None, actors: int | None, cpus: float | None, gpus: float | None
) -> RayOptions | None:
    """Of the command line; None for the local engine. Raises SettingsError."""
    if engine not in ("local", "ray"):
        raise SettingsError(f"--engine must be local or ray, got {engine!r}")
    options = RayOptions(address, actors, cpus, gpus)
    if engine == "ray":
        return options._replace(gpus=0.0) if device == "cpu" and gpus is None else options
    if options != RayOptions():
        raise SettingsError("--ray-address, --ray-actors, --ray-cpus and --ray-gpus need --engine ray")
    return None


def segment(
    inputs: Sequence[str],
    output: Path,
    network: Network,
    choices: dict[str, Any],
    how: dict[str, Any],
    mode: str = "auto",
    profile: bool = False,
) -> int:
    """Run, and say how it went. Returns the exit status.

    choices: of Settings; threshold None: the network's own. how: keyword arguments of segment_photographs; workers
    None: the default.
    """
    display = Display(mode)
    for name in ("tifffile", "reg4pru_monai.transforms"):  # what they say of photographs stands in the tables
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if how.get("ray") is not None:
        if how["workers"] is not None:
            raise SettingsError("--workers is of the local engine; of --engine ray, --ray-actors and --ray-cpus say it")
        network = network._replace(device="cpu")  # the actors choose their own; the driver only sends the network
    how = {**how, "workers": default_workers()} if how["workers"] is None else how
    pipeline, threshold, bundle = load(network, lambda text: print(text, file=sys.stderr))
    if choices.get("threshold") is None:
        choices = {**choices, "threshold": threshold}
    summary = segment_photographs(
        inputs,
        output,
        pipeline,
        settings_of(pipeline, **choices),
        bundle=bundle,
        started=display.started,
        progress=display.progress,
        **how,
    )
    if how.get("dry_run"):
        display.planned(summary)
        return 0
    display.ended(summary, profile)
    return summary.exit_status


def status(output: Path, as_json: bool = False, failures: int = 20) -> str:
    """How far an output folder is, as text."""
    with read_status(output) as found:
        return json.dumps(_status_values(found)) if as_json else _status_text(found, output, failures)


def _status_text(found: Status, output: Path, shown: int) -> str:
    lines = [f"{found.listed} photographs: {found.done} done, {found.failed} failed, {found.missing} missing", ""]
    lines.append(f"{'shard':<9}{'state':<9}{'own':>9}{'done':>9}{'failed':>8}  since, on")
    lines += [
        f"{each.shard:<9}{each.state:<9}{each.own:>9}{each.done:>9}{each.failed:>8}  {each.started}, {each.host}"
        for each in found.shards
    ]
    if found.failed:
        told = (f"{record.name!r}: {(record.error or {}).get('message')}" for record in found.which.failures())
        lines += ["", "failed:", *_first(told, shown, found.failed, f", see {output / 'errors.csv'}")]
    if found.missing:
        lines += ["", "missing, because not begun or cut off; the same commands go on with them:"]
        lines += _first((repr(name) for name in found.which.missing()), shown, found.missing)
    return "\n".join(lines).encode("utf-8", "backslashreplace").decode()


def _status_values(found: Status) -> dict[str, Any]:
    return {
        "listed": found.listed,
        "done": found.done,
        "failed": found.failed,
        "missing": found.missing,
        "missing_paths": list(found.which.missing()),
        "shards": [each._asdict() for each in found.shards],
        "failures": [record.error for record in found.which.failures()],
    }


def _first(told: Iterable[str], shown: int, count: int, where: str = "") -> list[str]:
    """The first lines of ``count``, and how many more there are."""
    more = [f"  and {count - shown} more{where}"] if count > shown else []
    return [*(f"  {line}" for line in islice(told, shown)), *more]
