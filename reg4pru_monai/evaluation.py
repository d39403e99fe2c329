"""Evaluation in the original frame: accuracy and speed of the same forward pass, dense and pruned side by side."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import decollate_batch, list_data_collate
from monai.transforms import Activationsd, Compose, Invertd
from torch import Tensor
from tqdm import tqdm

from .accounting import compare_speed, count_flops, peak_memory, seconds
from .environment import hardware
from .files import replacing, write_rows
from .fundus import FieldOfView
from .fundus.detection import read_fov
from .fundus.io import FundusReadError, read_image, read_mask
from .fundus.truth import check_truth, read_truth
from .mask_metrics import ComparisonMetrics, flat
from .networks import Network, variants
from .plots import overlay, save_curves, save_picture, save_reliability
from .runtime import bar_interval
from .windows import FundusWindowInferer

logger = logging.getLogger(__name__)

# The columns of per_image.csv; what stands in front is what most look at.
COLUMNS = ("image", "group", "variant", "ap", "dice", "auc", "cldice", "sensitivity", "specificity")
LAST_COLUMNS = ("subject", "pixels", "vessel_pixels")
CURVE_COLUMNS = ("variant", "threshold", "precision", "recall")


class Prediction(NamedTuple):
    """One image. probability: (1, H, W) float32, original frame, 0 outside the field of view. seconds: network."""

    probability: Tensor
    seconds: float


def postprocessing(preprocessing: Compose, key: str = "pred") -> Compose:
    """Logits at canonical scale -> probabilities (1, H, W) in the original frame, 0 outside the field of view."""
    return Compose(
        [
            Activationsd(key, sigmoid=True),
            Invertd(key, transform=preprocessing, orig_keys="image", nearest_interp=False, to_tensor=True),
        ]
    )


def predict(
    network: Network,
    item: Mapping[str, Any],
    preprocessing: Compose,
    inferer: FundusWindowInferer,
    device: torch.device,
) -> Prediction:
    """Segment one preprocessed image.

    item: what ``preprocessing`` returned: image (3, h, w), fov (1, h, w).
    """
    image, fov = (item[key].as_tensor()[None].to(device) for key in ("image", "fov"))

    def run() -> Tensor:
        with torch.inference_mode():
            return inferer(image, network, fov=fov).float().cpu()

    spent, logits = seconds(run, device)
    return Prediction(restored(item, logits, preprocessing), spent)


def restored(item: Mapping[str, Any], logits: Tensor, preprocessing: Compose) -> Tensor:
    """Logits (1, 1, h, w) of a preprocessed image -> probability (1, H, W) float32 in the original frame."""
    batch = list_data_collate([{"image": item["image"]}])
    batch["pred"] = logits
    return postprocessing(preprocessing)(decollate_batch(batch)[0])["pred"].as_tensor().float()


class Evaluation:
    """Evaluates variants of one network on the same images, interleaved, and writes what it found into a folder.

    data: dictionaries with "image", "label", "name", "subject", and where known "dataset", "group" and
    "second_observer", as ``fundus.datasets.datalist`` makes them. preprocessing: the one of training. overlays: of how
    many photographs of each data set a picture is drawn. threshold: a probability of at least this is vessel, in the
    metrics of masks.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, str]],
        preprocessing: Compose,
        inferer: FundusWindowInferer,
        device: torch.device,
        output_dir: str | Path,
        overlays: int = 3,
        threshold: float = 0.5,
    ):
        self.sets = tuple(dict.fromkeys(entry.get("dataset", "") for entry in data))
        self.data = [entry for each in self.sets for entry in data if entry.get("dataset", "") == each]
        self.preprocessing = preprocessing
        self.inferer = inferer
        self.device = device
        self.output_dir = Path(output_dir)
        self.overlays = overlays
        self.threshold = threshold

    def run(self, network: Network) -> dict[str, float]:
        """Evaluate pruned and dense; returns flat metrics ``pruned/ap``, ``dense/images_per_second``, …

        A network that removes no tokens is evaluated dense only. Of several data sets there are also
        ``pruned/dataset/HRF/ap``, … Writes metrics.json, per_image.csv, precision_recall.csv, precision_recall.png,
        reliability.png and overlays/ into the output folder.
        """
        network = network.to(self.device).eval()
        measured = variants(network)
        shown = next(iter(measured))
        parts = {name: {each: ComparisonMetrics(threshold=self.threshold) for each in self.sets} for name in measured}
        human = ComparisonMetrics(probabilities=False)
        times: dict[str, list[float]] = {name: [] for name in measured}
        result: dict[str, float] = {"parameters": float(sum(each.numel() for each in network.parameters()))}
        for number, entry in enumerate(tqdm(self.data, desc="evaluating", mininterval=bar_interval())):
            item = self.preprocessing(dict(entry))
            if number == 0:
                result |= self._cost(measured, item)
            label, fov = read_mask(entry["label"]), FieldOfView(**item["image"].meta["fov"])
            _add_second_observer(human, entry, label, fov)
            # Which variant goes first alternates, so that neither is always timed on warm caches.
            for name in sorted(measured, reverse=bool(number % 2)):
                found = predict(measured[name], item, self.preprocessing, self.inferer, self.device)
                times[name].append(found.seconds)
                own = parts[name][entry.get("dataset", "")]
                own.update(found.probability[0].numpy(), label, fov, entry["name"], entry["subject"])
                if name == shown and len(own.rows) <= self.overlays:
                    self._picture(entry, found.probability)
        metrics = {name: _joined(own) for name, own in parts.items()}
        result |= _speeds(times) | self._accuracy(metrics, human) | _by_dataset(parts)
        if "pruned" in measured:
            result["efficiency"] = result["pruned/speedup"] / (result["dense/gflops"] / result["pruned/gflops"])
        self._write(result, metrics)
        return result

    def measured_with(self, network: Network) -> dict[str, str]:
        """What the speed depends on beside the network: hardware, dtype, and windows per forward pass."""
        dtype = str(next(network.parameters()).dtype).removeprefix("torch.")
        return {"hardware": hardware(self.device), "dtype": dtype, "batch_size": str(self.inferer.batch_size)}

    def _accuracy(self, metrics: Mapping[str, ComparisonMetrics], human: ComparisonMetrics) -> dict[str, float]:
        """All metrics of each variant, of each group of images, and of the second observer where there is one."""
        groups = [entry.get("group", "") for entry in self.data]
        found: dict[str, float] = {}
        for name, own in metrics.items():
            found |= {f"{name}/{key}": value for key, value in own.summary().items() if key != "images"}
            for group in sorted({*groups} - {""}):
                means = flat(own.per_image([each == group for each in groups]))
                found |= {f"{name}/group/{group}/{key}": value for key, value in means.items()}
        found |= {f"group/{group}/images": float(groups.count(group)) for group in sorted({*groups} - {""})}
        if human.rows:
            known = ("images", *(f"{name}{end}" for name in human.names for end in ("", "_low", "_high")))
            values = human.summary()
            found |= {f"second_observer/{key}": values[key] for key in values if key.split("/")[-1] in known}
        return found

    def _cost(self, variants: Mapping[str, Network], item: Mapping[str, Any]) -> dict[str, float]:
        """FLOPs and peak memory of each variant on the first image; warms up for the timing."""
        costs: dict[str, float] = {}
        for name, variant in variants.items():

            def run(variant: Network = variant) -> Prediction:
                return predict(variant, item, self.preprocessing, self.inferer, self.device)

            costs[f"{name}/gflops"] = count_flops(run) / 1e9
            costs[f"{name}/peak_memory_mib"] = peak_memory(run, self.device)
        return costs

    def _picture(self, entry: Mapping[str, str], probability: Tensor) -> None:
        mask = probability[0].numpy() >= self.threshold
        picture = overlay(read_image(entry["image"]), mask, read_mask(entry["label"]))
        save_picture(self.output_dir / "overlays" / f"{entry['name']}.jpg", picture)

    def _write(self, result: Mapping[str, float], metrics: Mapping[str, ComparisonMetrics]) -> None:
        values = {name: value if math.isfinite(value) else None for name, value in result.items()}
        with replacing(self.output_dir / "metrics.json") as beside:
            beside.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n")
        names = [name for name in metrics["dense"].names if name not in COLUMNS]
        with replacing(self.output_dir / "per_image.csv") as beside:
            write_rows(beside, self._rows(metrics), (*COLUMNS, *names, *LAST_COLUMNS))
        curves = {name: metric.vessels.operating_points() for name, metric in metrics.items()}
        points = [
            dict(zip(CURVE_COLUMNS, (n, *p), strict=True)) for n, c in curves.items() for p in zip(*c, strict=True)
        ]
        with replacing(self.output_dir / "precision_recall.csv") as beside:
            write_rows(beside, points, CURVE_COLUMNS)
        drawn = {name: curve[1:] for name, curve in curves.items()}
        save_curves(self.output_dir / "precision_recall.png", drawn, {name: result[f"{name}/ap"] for name in drawn})
        with replacing(self.output_dir / "reliability.png") as beside:
            save_reliability(beside, {name: metric.calibration for name, metric in metrics.items()})

    def _rows(self, metrics: Mapping[str, ComparisonMetrics]) -> list[dict[str, Any]]:
        """The rows of per_image.csv."""
        return [
            {"image": row.pop("name"), "group": entry.get("group", ""), "variant": name, "subject": entry["subject"]}
            | row
            for name, metric in metrics.items()
            for entry, row in zip(self.data, map(dict, metric.rows), strict=True)
        ]


def _joined(parts: Mapping[str, ComparisonMetrics]) -> ComparisonMetrics:
    whole = ComparisonMetrics(threshold=next(iter(parts.values())).vessels.threshold)
    for part in parts.values():
        whole.extend(part)
    return whole


def _by_dataset(parts: Mapping[str, Mapping[str, ComparisonMetrics]]) -> dict[str, float]:
    """The pooled metrics of each variant on each data set, and its number of images; nothing where there is one."""
    found: dict[str, float] = {}
    for variant, own in parts.items():
        for name, metrics in own.items() if len(own) > 1 else ():
            found |= {f"{variant}/dataset/{name}/{key}": value for key, value in flat(metrics.pooled()).items()}
            found[f"dataset/{name}/images"] = float(len(metrics.rows))
    return found


def _speeds(times: dict[str, list[float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, speed in compare_speed(times, "dense").items():
        latency = 1000 * median(times[name])
        own = {"images_per_second": speed.images_per_second, "latency_ms": latency, "speedup": speed.speedup}
        found |= {f"{name}/{key}": value for key, value in own.items()}
    return found


def _add_second_observer(
    human: ComparisonMetrics, entry: Mapping[str, str], label: np.ndarray, fov: FieldOfView
) -> None:
    """Compare the second observer's mask with the first one's; a mask that cannot be used is left out."""
    if not entry.get("second_observer"):
        return
    try:
        mask = read_mask(entry["second_observer"]).astype(np.float32)
        human.update(mask, label, fov, entry["name"], entry["subject"])
    except (FundusReadError, OSError, ValueError) as error:
        logger.warning("second observer left out: %s (%s)", error, entry["second_observer"])


def check_labels(data: Sequence[Mapping[str, str]]) -> None:
    """Check the masks of a data set before anything is learned from them, as ``reg4pru evaluate`` does.

    data: dictionaries with "image", "label" and "name". Raises ValueError for a mask that is empty, inverted, a label
    map or a picture, and FundusReadError.
    """

    def check(entry: Mapping[str, str]) -> None:
        label = read_truth(entry["label"])
        check_truth(label, read_fov(entry["image"]), entry["name"], Path(entry["label"]))

    with ThreadPoolExecutor() as pool:  # decoding and detection release the GIL
        for _ in pool.map(check, data):
            pass
