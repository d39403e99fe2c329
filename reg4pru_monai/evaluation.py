"""Evaluation in the original frame: accuracy and speed of the same forward pass, dense and pruned side by side."""

import csv
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import decollate_batch, list_data_collate
from monai.transforms import Activationsd, Compose, Invertd
from torch import Tensor
from tqdm import tqdm

from .accounting import compare_speed, count_flops, peak_memory, seconds
from .files import replacing
from .fundus.fov import FieldOfView
from .fundus.io import read_image, read_mask
from .metrics import VesselMetrics
from .plots import overlay, save_curves, save_picture
from .runtime import bar_interval
from .segmenter import Segmenter
from .windows import FundusWindowInferer

logger = logging.getLogger(__name__)


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
    network: Segmenter,
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

    data: dictionaries with "image", "label", "name", "subject". preprocessing: the one of training.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, str]],
        preprocessing: Compose,
        inferer: FundusWindowInferer,
        device: torch.device,
        output_dir: str | Path,
        overlays: int = 3,
    ):
        self.data = list(data)
        self.preprocessing = preprocessing
        self.inferer = inferer
        self.device = device
        self.output_dir = Path(output_dir)
        self.overlays = overlays

    def run(self, network: Segmenter) -> dict[str, float]:
        """Evaluate pruned and dense; returns flat metrics ``pruned/ap``, ``dense/images_per_second``, …

        Writes metrics.json, per_image.csv, precision_recall.png and overlays/ into the output folder.
        """
        network = network.to(self.device).eval()
        variants = {"pruned": network, "dense": network.dense()}
        metrics = {name: VesselMetrics() for name in variants}
        times: dict[str, list[float]] = {name: [] for name in variants}
        result: dict[str, float] = {}
        for number, entry in enumerate(tqdm(self.data, desc="evaluating", mininterval=bar_interval())):
            item = self.preprocessing(dict(entry))
            if number == 0:
                result |= self._cost(variants, item)
            label = torch.from_numpy(read_mask(entry["label"])[None])
            fov = torch.from_numpy(FieldOfView(**item["image"].meta["fov"]).mask[None])
            # Which variant goes first alternates, so that neither is always timed on warm caches.
            for name in sorted(variants, reverse=bool(number % 2)):
                found = predict(variants[name], item, self.preprocessing, self.inferer, self.device)
                times[name].append(found.seconds)
                metrics[name].update(found.probability, label, fov, entry["name"], group=entry["subject"])
                if name == "pruned" and number < self.overlays:
                    self._picture(entry, found.probability)
        for name, speed in compare_speed(times, "dense").items():
            summary = {key: value for key, value in metrics[name].summary().items() if key != "images"}
            values = {**summary, "images_per_second": speed.images_per_second, "speedup": speed.speedup}
            result |= {f"{name}/{key}": float(value) for key, value in values.items()}
        result["efficiency"] = result["pruned/speedup"] / (result["dense/gflops"] / result["pruned/gflops"])
        self._write(result, metrics)
        return result

    def _cost(self, variants: Mapping[str, Segmenter], item: Mapping[str, Any]) -> dict[str, float]:
        """FLOPs and peak memory of each variant on the first image; warms up for the timing."""
        costs: dict[str, float] = {}
        for name, variant in variants.items():

            def run(variant: Segmenter = variant) -> Prediction:
                return predict(variant, item, self.preprocessing, self.inferer, self.device)

            costs[f"{name}/gflops"] = count_flops(run) / 1e9
            costs[f"{name}/peak_memory_mib"] = peak_memory(run, self.device)
        return costs

    def _picture(self, entry: Mapping[str, str], probability: Tensor) -> None:
        mask = probability[0].numpy() >= 0.5
        picture = overlay(read_image(entry["image"]), mask, read_mask(entry["label"]))
        save_picture(self.output_dir / "overlays" / f"{entry['name']}.jpg", picture)

    def _write(self, result: Mapping[str, float], metrics: Mapping[str, VesselMetrics]) -> None:
        values = {name: value if math.isfinite(value) else None for name, value in result.items()}
        with replacing(self.output_dir / "metrics.json") as beside:
            beside.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n")
        rows = [{"variant": name, **row} for name, metric in metrics.items() for row in metric.per_image()]
        with replacing(self.output_dir / "per_image.csv") as beside, open(beside, "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        curves = {name: metric.curve() for name, metric in metrics.items()}
        save_curves(self.output_dir / "precision_recall.png", curves, {n: result[f"{n}/ap"] for n in curves})


def check_labels(data: Sequence[Mapping[str, str]]) -> None:
    """Raise ValueError for an image whose vessel mask is empty: it would teach that there are no vessels."""
    for entry in data:
        if not np.any(read_mask(entry["label"])):
            raise ValueError(
                f"{entry['label']}: the mask has no vessel pixel; correct it or take the image out of the data set"
            )
