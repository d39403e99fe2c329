"""Time and memory of what ships, dense against pruned, interleaved, on one photograph of each data set."""

from collections.abc import Mapping
from statistics import median
from typing import Any

import numpy as np
import psutil

from ..accounting import count_flops, paired_ratio, peak_memory, seconds
from ..environment import hardware
from ..evaluation import predict
from ..inference import Pipeline
from ..networks import variants

REPEATS = 7


def measure_speed(pipeline: Pipeline, entry: Mapping[str, str], repeats: int = REPEATS) -> dict[str, Any]:
    """Seconds and MiB of the network on a photograph, dense and pruned; seconds from its file to its mask, pruned.

    Times are medians over repetitions in which all follow each other; the speed-up has its 95 % interval. busy: the
    load of the machine in the minute before, this program's own among it.
    """
    busy = psutil.getloadavg()[0]
    item = pipeline.prepare(entry["image"], entry["angle"])
    measured = variants(pipeline.network)
    found: dict[str, Any] = {
        "hardware": hardware(pipeline.device),
        "photograph": entry["name"],
        "pixels": list(pipeline(entry["image"], entry["angle"]).probability.shape),
        "repeats": repeats,
        "busy": busy,
        "processors": psutil.cpu_count(),
    }
    times: dict[str, list[float]] = {name: [] for name in (*measured, "file_to_mask")}
    for name, network in measured.items():  # also the warm-up

        def run(network: Any = network) -> Any:
            return predict(network, item, pipeline.preprocessing, pipeline.inferer, pipeline.device)

        found[name] = {"gflops": count_flops(run) / 1e9, "peak_memory_mib": peak_memory(run, pipeline.device)}

    def whole() -> np.ndarray:
        return pipeline(entry["image"], entry["angle"]).mask()

    for _ in range(repeats):
        for name, network in measured.items():
            result = predict(network, item, pipeline.preprocessing, pipeline.inferer, pipeline.device)
            times[name].append(result.seconds)
        times["file_to_mask"].append(seconds(whole, pipeline.device)[0])
    for name in measured:
        found[name]["seconds"] = median(times[name])
    found["file_to_mask_seconds"] = median(times["file_to_mask"])
    if "pruned" in measured:
        found["speedup"] = list(paired_ratio(times["dense"], times["pruned"]))
    return found
