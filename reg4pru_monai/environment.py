"""Where a run is made: installed packages, hardware, and how busy the machine is."""

import importlib
import logging
import re
import threading
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from statistics import fmean
from types import TracebackType
from typing import Any

import torch

from .runtime import device_name
from .tracking_store import reason

logger = logging.getLogger(__name__)

SAMPLE_SECONDS = 5.0
SHORTEST_SECONDS = 0.1  # the load over a shorter time is one of few clock ticks
PATIENCE_SECONDS = 2.0  # a driver that does not answer must not hold up a training


def frozen_packages() -> str:
    """All installed packages as ``pip freeze`` lists them, one ``name==version`` a line."""
    found = {(d.metadata["Name"] or "").lower(): f"{d.metadata['Name']}=={d.version}" for d in metadata.distributions()}
    return "".join(f"{found[name]}\n" for name in sorted(found) if name)


def hardware(device: torch.device) -> str:
    """What decides how fast a network is: the name of the device and, of a CPU, how many threads compute."""
    count = torch.get_num_threads()
    threads = f", {count} thread{'s' * (count > 1)}" if device.type == "cpu" else ""
    return device_name(device) + threads


class SystemMetrics:
    """Means of MLflow's own system metrics since they were last asked for, sampled by a thread. Never raises.

    Not logged by MLflow's thread: that one writes past the journal, gives up where the server is away for a moment, and
    logs up to thirteen names of which four matter here. GPUs need the package nvidia-ml-py; the mean over all is taken.
    What cannot be sampled, as a GPU that was lost, is left out with one warning.
    """

    NAMES = ("cpu_utilization_percentage", "system_memory_usage_megabytes")
    GPU_NAMES = ("utilization_percentage", "memory_usage_megabytes")

    def __init__(self, seconds: float = SAMPLE_SECONDS) -> None:
        self._seconds = seconds
        self._monitors = {name: monitor for name in ("CPU", "GPU") if (monitor := _monitor(name))}
        self._failed: set[str] = set()
        self._samples: list[dict[str, float]] = []
        self._changed = threading.Condition()  # around the samples and the next two
        self._asked = self._ended = False
        self._thread = threading.Thread(target=self._run, name="SystemMetrics", daemon=True)

    def __enter__(self) -> "SystemMetrics":
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join(PATIENCE_SECONDS)

    def means(self) -> dict[str, float]:
        """``system/cpu_utilization_percentage`` and so on; an interval without a sample gets one, in a moment."""
        with self._changed:
            if not self._samples:
                self._asked = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._samples, PATIENCE_SECONDS)
            samples, self._samples = self._samples, []
        return _selected(samples)

    def _run(self) -> None:
        """Sample here only: psutil measures the load since the same thread last asked, and 0 the first time."""
        self._sample()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._asked or self._ended, self._seconds)
                if self._ended:
                    return
                asked, self._asked = self._asked, False
            if asked:
                time.sleep(SHORTEST_SECONDS)
            sample = self._sample()
            with self._changed:
                self._samples.append(sample)
                self._changed.notify_all()

    def _sample(self) -> dict[str, float]:
        """What the monitors tell now, by MLflow's names; without those that fail."""
        found: dict[str, float] = {}
        for name, monitor in self._monitors.items():
            try:
                monitor.clear_metrics()
                monitor.collect_metrics()
                found |= monitor.aggregate_metrics()
            except Exception as error:  # whatever it is, no training ends because its load is unknown
                if name not in self._failed:
                    self._failed.add(name)
                    _warn(name, error)
        return found


def _monitor(name: str) -> Any:
    """MLflow's monitor of the CPU or of the GPUs; None where there is no GPU, no package for it, or it fails."""
    try:
        module = importlib.import_module(f"mlflow.system_metrics.metrics.{name.lower()}_monitor")
        # It would say at every sample what a GPU, or a part of one, does not tell.
        logging.getLogger(module.__name__).setLevel(logging.ERROR)
        return getattr(module, f"{name}Monitor")()
    except (ImportError, RuntimeError):  # no package for it, or no GPU
        return None
    except Exception as error:  # NVMLError of a GPU that is lost, or that this user may not ask
        _warn(name, error)
        return None


def _warn(name: str, error: Exception) -> None:
    logger.warning("the load of the %s is not logged (%s)", name, reason(error))


def _selected(samples: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means of the few that are kept: ``gpu_0_utilization_percentage`` … become ``system/gpu_utilization_percentage``.

    samples: by MLflow's names.
    """
    values: dict[str, list[float]] = {}
    for name, value in (pair for sample in samples for pair in sample.items()):
        gpu = re.fullmatch(r"gpu_\d+_(.+)", name)
        if gpu and gpu[1] in SystemMetrics.GPU_NAMES:
            values.setdefault(f"system/gpu_{gpu[1]}", []).append(value)
        elif name in SystemMetrics.NAMES:
            values.setdefault(f"system/{name}", []).append(value)
    return {name: fmean(found) for name, found in values.items()}
