"""Trainings evaluated dense, masked and pruned, on the test part.

Between the network trained dense and a pruned one lie four steps, each measured by a variant that differs from the one
before it in one thing alone (see VARIANTS): what learning with masks costs, what masking costs, what it costs that
masked tokens are seen again at the end, and what it costs that they are stale then.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .. import __version__
from ..accounting import compare_speed, count_flops
from ..bundle import dataset, entries
from ..configuration import configuration_digest, data_digest
from ..evaluation import predict
from ..files import replacing
from ..fundus import FieldOfView
from ..fundus.io import read_mask
from ..inference import Pipeline, load_pipeline
from ..metrics import VesselMetrics
from ..networks import transformer
from ..policies.cropr import patch_labels
from ..runtime import bar_interval
from ..segmenter import Segmenter
from ..training import kept_checkpoint
from ..transforms import preprocessing
from .trainings import Run, check_comparable, content_of_data, find_runs
from .variants import ASKED, course_variants, final_variants, keep_rate_variants, pruning

# What the rows of a training depend on, beside its weights.
EVALUATED = (
    *("dataset_dir", "phantoms", "diameter", "normalization", "rim", "by_angle", "angle", "window_size"),
    *("decoder", "policy", "policy_options", "keep_rate", "stages", "seed"),
)


def evaluate_all(folder: str | Path, curves: bool = True) -> list[dict[str, Any]]:
    """Rows of every training below a folder, and for curves more of the lowest seed of each arm. Raises ValueError."""
    runs, data = find_runs(folder), content_of_data()
    check_comparable(runs, data)
    lowest: dict[tuple[str, str], int] = {}
    for run in runs:
        lowest.setdefault((run.decoder, run.arm), run.seed)
    return [row for run in runs for row in evaluate_run(run, curves and lowest[run.decoder, run.arm] == run.seed, data)]


def evaluate_run(run: Run, curves: bool, data: Callable[[Any], str] = data_digest) -> list[dict[str, Any]]:
    """Rows of one training, one for each variant and epoch; kept in its folder and read from there the next time.

    curves: also earlier epochs and other keep rates. data: what identifies a data set.
    """
    parts = [(run.epochs[-1], "final")]
    if curves:
        parts += [(epoch, "course") for epoch in run.epochs[:-1]] + [(run.epochs[-1], "keep_rates")]
    rows = []
    for epoch, part in parts:
        path, about = run.folder / "variants" / f"{part}_{epoch:04d}.json", header(run, epoch, part, data)
        known = json.loads(path.read_text()) if path.is_file() else None
        if not isinstance(known, dict) or known["header"] != about:
            known = {"header": about, "rows": _evaluated(run, epoch, part)}
            with replacing(path) as beside:
                beside.write_text(json.dumps(known, indent=1) + "\n")
        rows += known["rows"]
    return rows


def header(run: Run, epoch: int, part: str, data: Callable[[Any], str] = data_digest) -> dict[str, Any]:
    """What kept rows were made from; where any of it is another today, they are made again."""
    weights = kept_checkpoint(run.folder / "checkpoints", epoch).read_bytes()
    settings = {key: run.settings[key] for key in EVALUATED if key in run.settings}  # some came later
    return {
        "checkpoint": hashlib.sha256(weights).hexdigest(),
        "settings": configuration_digest(settings, data=data),
        "variants": ASKED[part],
        "version": __version__,
    }


def _evaluated(run: Run, epoch: int, part: str) -> list[dict[str, Any]]:
    settings = run.settings
    checkpoint = kept_checkpoint(run.folder / "checkpoints", epoch)
    pipeline = load_pipeline(checkpoint, settings["device"], window_size=settings["window_size"])
    make = {"final": final_variants, "course": course_variants, "keep_rates": keep_rate_variants}[part]
    variants = make(pruning(transformer(pipeline.network, "reproduce"), settings))
    if settings["policy"] == "dense":  # its selectors were never trained, so they have no mask of training
        left_out = {"noisy", "soft"} if part == "final" else {"pruned"}
        variants = {name: variant for name, variant in variants.items() if name not in left_out}
    data = entries(
        dataset(settings["dataset_dir"], settings["output_dir"], settings["phantoms"]),
        "test",
        angle=settings.get("angle"),
    )
    found = evaluate_variants(pipeline, variants, data, f"{run.folder.name}, epoch {epoch}, {part}")
    for name, values in found.items():
        chosen = part == "final" and name in ("soft", "pruned")
        values |= (
            selection(variants[name], data, {**settings, "by_angle": pipeline.by_angle})
            if chosen
            else {"kept": None, "vessels_kept": None}
        )
    about = {"decoder": run.decoder, "arm": run.arm, "seed": run.seed, "epoch": epoch}
    return [{**about, "keep_rate": settings["keep_rate"], "variant": name, **found[name]} for name in found]


def evaluate_variants(
    pipeline: Pipeline, variants: Mapping[str, Segmenter], data: Sequence[Mapping[str, str]], title: str = "evaluating"
) -> dict[str, dict[str, float | None]]:
    """AP with its interval over subjects, Dice, GFLOPs, images per second; speed-up over "dense" where that is there.

    Of several data sets, AP and Dice of each too, as ``HRF/ap``. data: as ``datalist`` makes it. Variants are timed
    interleaved, on every image in another order.
    """
    sets = list(dict.fromkeys(entry["dataset"] for entry in data))
    metrics = {name: {each: VesselMetrics(with_cldice=False) for each in sets} for name in variants}
    times: dict[str, list[float]] = {name: [] for name in variants}
    gflops: dict[str, float] = {}
    names = list(variants)
    for number, entry in enumerate(tqdm(data, desc=title, mininterval=bar_interval())):
        item = pipeline.prepare(entry["image"], entry["angle"])
        label = torch.from_numpy(read_mask(entry["label"])[None])
        fov = torch.from_numpy(FieldOfView(**item["image"].meta["fov"]).mask[None])
        for name in names[number % len(names) :] + names[: number % len(names)]:
            run = (variants[name], item, pipeline.preprocessing, pipeline.inferer, pipeline.device)
            if name not in gflops:
                gflops[name] = count_flops(lambda run=run: predict(*run)) / 1e9  # type: ignore[misc]
            found = predict(*run)
            times[name].append(found.seconds)
            own = metrics[name][entry["dataset"]]
            own.update(found.probability, label, fov, entry["name"], group=entry["subject"])
    baseline = "dense" if "dense" in variants else names[0]
    speeds = compare_speed(times, baseline)
    rows: dict[str, dict[str, float | None]] = {}
    for name, parts in metrics.items():
        speed = {
            "images_per_second": speeds[name].images_per_second,
            "speedup": speeds[name].speedup if baseline == "dense" else None,
        }
        rows[name] = {**_accuracy(parts), "gflops": gflops[name], **speed}
    return rows


def _accuracy(parts: Mapping[str, VesselMetrics]) -> dict[str, float | None]:
    """AP and Dice of all images, and of each part where there are several."""
    whole = VesselMetrics(with_cldice=False)
    for part in parts.values():
        whole.extend(part)
    found = {"": whole} | ({f"{name}/": part for name, part in parts.items()} if len(parts) > 1 else {})
    wanted = ("ap", "ap_low", "ap_high", "dice")
    values = {start: metrics.summary() for start, metrics in found.items()}
    return {f"{start}{key}": values[start][key] for start in found for key in wanted}


def selection(
    network: Segmenter, data: Sequence[Mapping[str, str]], settings: Mapping[str, Any]
) -> dict[str, float | None]:
    """Share of the tokens that the last stage leaves, and of those that show a vessel: means over whole images."""
    later = {key: settings[key] for key in ("rim", "by_angle") if key in settings}
    prepare = preprocessing(settings["diameter"], normalization=settings["normalization"], **later)
    device = next(network.parameters()).device
    shares = [_left(network, prepare(dict(entry)), device) for entry in data]
    kept, vessels = (sum(column) / len(shares) for column in zip(*shares, strict=True))
    return {"kept": kept, "vessels_kept": vessels}


def _left(network: Segmenter, item: Mapping[str, Any], device: torch.device) -> tuple[float, float]:
    image, label, fov = (item[key].as_tensor()[None].to(device) for key in ("image", "label", "fov"))
    with torch.inference_mode():
        _, trace = network.forward_with_trace(image, fov)
    every, last = trace.stages[0].pool.index, trace.stages[-1]
    grid = torch.zeros(1, trace.grid[0] * trace.grid[1], device=device)
    left = grid.scatter(1, last.pool.index, last.keep).gather(1, every)
    vessel = patch_labels(label.float(), trace.patch).gather(1, every) > 0
    return float(left.mean()), float(left[vessel].mean())
