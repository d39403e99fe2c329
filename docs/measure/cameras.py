"""The yardstick: how trainings do on cameras that they have not seen, and what their pruned blocks are worth there.

reg4pru sweep configs/experiments/cameras.yaml --dataset-dir ../shared/data/CHASE_DB1     # and the same with HRF
python docs/measure/cameras.py runs/cameras --data ../shared/data/CHASE_DB1 ../shared/data/HRF \
    --strangers ../shared/data/AVRDB [--limit 10] [--kept runs/cameras.json] [--diameter 683]

Each training below the folders, or checkpoint in a bundle, is tested on the training part of every --data that it did
not see, on all of --strangers, and on phantoms whose look is unlike those of training. Pixels of a camera are pooled.
*worth*: AP minus AP with the blocks that pruning touches replaced by the identity. *own*: Dice at the threshold chosen
on the camera of training. *s*: from file to probability, beside whatever else runs. What was measured is kept in
--kept by weights and photographs: give another file after a change to the code. --diameter: another than in training.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from reg4pru_monai.accounting import count_flops, seconds
from reg4pru_monai.bundle import entries
from reg4pru_monai.evaluation import predict
from reg4pru_monai.files import replacing
from reg4pru_monai.fundus.datasets import find_samples, folders_of
from reg4pru_monai.fundus.fov import FieldOfView
from reg4pru_monai.fundus.io import read_mask, write_mask
from reg4pru_monai.fundus.phantom import make_phantom
from reg4pru_monai.histograms import DEFAULT_BINS, average_precision_from_histogram, score_histogram
from reg4pru_monai.inference import Pipeline, load_pipeline, trained
from reg4pru_monai.mask_metrics import CALIBRATION_BINS, compute_calibration_bins, compute_ece
from reg4pru_monai.networks import UNetSegmenter
from reg4pru_monai.presets import stage_plan
from reg4pru_monai.release.bundle_files import read_facts
from reg4pru_monai.release.degradations import DEGRADATIONS
from reg4pru_monai.release.measuring import choose_threshold, dice_over
from reg4pru_monai.release.sources import part_of, select
from reg4pru_monai.released import sha256
from reg4pru_monai.reproduce.trainings import find_runs
from reg4pru_monai.segmenter import Segmenter
from reg4pru_monai.transforms import preprocessing

Photographs = Sequence[dict[str, str]]
COLUMNS = ("ap", "worth", "own", "threshold", "best", "at", "ece", "s", "gflops")
# Of a phantom each: its frame, and what else its photograph has that those of training have not.
LOOKS = (
    ("cut_top_bottom", ("blur", "colour")),
    ("grey_background", ("noise",)),
    ("dark_green_noisy", ("blur", "jpeg")),
    ("cut_four_sides", ("colour", "noise")),
    ("red_free", ("blur",)),
    ("notch_square", ("darkness", "noise")),
    ("soft_edge", ("colour", "jpeg")),
    ("letterbox", ("blur", "noise")),
)
FIRST_PHANTOM = 900_000_000  # a seed far from those of training
THRESHOLDS = np.round(np.arange(0.01, 0.991, 0.01), 2)


class Subject(NamedTuple):
    """Weights to test. seen: names of data sets. held_out: photographs to choose the threshold on."""

    name: str
    checkpoint: Path
    seen: tuple[str, ...]
    held_out: Photographs


def subjects(paths: Sequence[Path]) -> Iterator[Subject]:
    """The finished trainings below folders, and checkpoints of bundles."""
    for path in paths:
        if path.is_file():
            seen = read_facts(path.absolute().parents[1])["training"]["data_sets"]
            yield Subject(path.absolute().parents[1].name, path, tuple(seen), ())
            continue
        for run in find_runs(path):
            folders = folders_of(run.settings["dataset_dir"])
            seen = [find_samples(folder).name for folder in folders]
            name = f"{run.folder.name.rpartition('-')[0]}, {' + '.join(seen)}"
            held_out = part_of(folders, "validation", run.folder)
            yield Subject(name, run.folder / "checkpoints" / "best.pt", tuple(seen), held_out)


def strange_phantoms(folder: Path, count: int, size: int) -> Path:
    """A data set of up to as many phantoms as LOOKS, photographed in ways that no training shows them. Made once."""
    made, change = folder / f"strange-{count}-{size}", {each.name: each.image for each in DEGRADATIONS}
    for number, (frame, looks) in enumerate(LOOKS[:count]):
        image, mask = (made / part / f"{frame}.png" for part in ("images", "masks"))
        if image.is_file():
            continue
        phantom = make_phantom(size, FIRST_PHANTOM + number, frame)
        pixels = phantom.image
        for look in looks:
            pixels = change[look](pixels, phantom.diameter or size)
        for path in (mask, image):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_mask(mask, phantom.mask)
        with replacing(image) as beside:
            Image.fromarray(pixels).save(beside, format="PNG")
    return made


class Nothing(nn.Module):
    """A block that changes nothing."""

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        """(B, N, D) -> the same."""
        return x


def without_pruned_blocks(network: Segmenter) -> Segmenter:
    """A network that shares all weights with this one; the blocks from the first stage to reactivation do nothing."""
    encoder = network.encoder
    first = (encoder.policy.stages or stage_plan(len(encoder.blocks)))[0].block
    twin = network.with_policy(encoder.policy)
    blocks = [Nothing() if first <= i < encoder.reactivate else block for i, block in enumerate(encoder.blocks)]
    twin.encoder._modules["blocks"] = nn.ModuleList(blocks)
    return twin.eval()


def measured(pipeline: Pipeline, photographs: Photographs, threshold: float, title: str) -> dict[str, float | None]:
    """COLUMNS of a network on one camera."""
    network = pipeline.network
    bare = None if isinstance(network, UNetSegmenter) else without_pruned_blocks(network)
    counts = np.zeros((2, 2, DEFAULT_BINS), dtype=np.int64)  # as it is, and bare
    calibration, times, gflops = np.zeros((CALIBRATION_BINS, 3)), [], 0.0
    for entry in tqdm(photographs, desc=title, mininterval=10):
        before, item = seconds(lambda entry=entry: pipeline.prepare(entry["image"], entry["angle"]), pipeline.device)
        rest = (item, pipeline.preprocessing, pipeline.inferer, pipeline.device)
        if not times:
            gflops = count_flops(lambda rest=rest: predict(network, *rest)) / 1e9  # type: ignore[misc]
        after, prediction = seconds(lambda rest=rest: predict(network, *rest), pipeline.device)  # type: ignore[misc]
        times.append(before + after)
        found = [prediction.probability[0].numpy()]
        if bare is not None:
            found.append(predict(bare, *rest).probability[0].numpy())
        truth, inside = read_mask(entry["label"]), FieldOfView(**item["image"].meta["fov"]).mask
        for own, probability in zip(counts, found, strict=False):
            own += torch.stack(score_histogram(probability, truth, inside)).numpy()
        calibration += compute_calibration_bins(found[0], truth, inside)
    aps = [float(average_precision_from_histogram(*own)) for own in counts]
    dice = dice_over(THRESHOLDS, *counts[0])
    return {
        "ap": aps[0],
        "worth": None if bare is None else aps[0] - aps[1],
        "own": float(dice_over(np.array([threshold]), *counts[0])[0]),
        "threshold": threshold,
        "best": float(dice.max()),
        "at": float(THRESHOLDS[dice.argmax()]),
        "ece": float(compute_ece(calibration)),
        "s": float(np.median(times)),
        "gflops": gflops,
    }


def loaded(checkpoint: Path, diameter: float | None) -> Pipeline:
    """The network of a checkpoint, with photographs at another diameter than in training where one is given."""
    pipeline = load_pipeline(checkpoint, device="cpu")
    if diameter:
        own = {key: trained(str(checkpoint))[key] for key in ("normalization", "rim", "by_angle")}
        pipeline.preprocessing = preprocessing(diameter, with_label=False, **own)
    return pipeline


def tested(
    subject: Subject, cameras: Mapping[str, Photographs], kept: Path, diameter: float | None
) -> dict[str, dict[str, float | None]]:
    """COLUMNS on each camera that the training did not see; what is kept is not measured again."""
    known = json.loads(kept.read_text()) if kept.is_file() else {}
    weights, pipeline, threshold = sha256(subject.checkpoint)[:16], None, 0.0
    rows = {}
    for camera, photographs in cameras.items():
        if camera in subject.seen:
            continue
        key = f"{weights} {camera} {len(photographs)} {diameter or ''}".rstrip()
        if key not in known:
            if pipeline is None:
                pipeline = loaded(subject.checkpoint, diameter)
                chosen = choose_threshold(pipeline, subject.held_out)["value"] if subject.held_out else None
                threshold = chosen or pipeline.threshold
            known[key] = measured(pipeline, photographs, threshold, f"{subject.name} on {camera}")
            with replacing(kept) as beside:
                beside.write_text(json.dumps(known, indent=1) + "\n")
        rows[camera] = known[key]
    return rows


def line(name: str, camera: str, values: Mapping[str, float | None]) -> str:
    """A row of the table."""
    digits = {"threshold": 2, "at": 2, "s": 2, "gflops": 0}
    cells = ["" if (v := values[key]) is None else f"{v:.{digits.get(key, 4)}f}" for key in COLUMNS]
    return f"| {name} | {camera} | " + " | ".join(cells) + " |"


def mean(rows: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Column by column; None where a row has none."""
    columns = {key: [row[key] for row in rows] for key in COLUMNS}
    return {key: None if None in values else float(np.mean(values)) for key, values in columns.items()}  # type: ignore[arg-type]


def main(arguments: list[str] | None = None) -> None:
    """Test what has not been tested, and print the table: a row for each camera, then the mean of each member."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of trainings, or checkpoints of bundles")
    parser.add_argument("--data", nargs="+", default=[], help="data sets to train on")
    parser.add_argument("--strangers", nargs="+", default=[], help="data sets that nothing is trained on")
    parser.add_argument("--limit", type=int, default=10, help="photographs of each camera")
    parser.add_argument("--phantoms", type=int, nargs=2, default=(8, 768), help="their number, and their side in px")
    parser.add_argument("--diameter", type=float, help="px of a field of view of 45 degrees")
    parser.add_argument("--kept", type=Path, default=Path("runs/cameras.json"))
    chosen = parser.parse_args(arguments)
    phantoms = strange_phantoms(chosen.kept.parent, *chosen.phantoms)
    parts = [(folder, "train") for folder in chosen.data]
    parts += [(folder, "all") for folder in [*chosen.strangers, phantoms]]
    cameras = {find_samples(folder).name: select(entries(folder, part, 0.0), chosen.limit) for folder, part in parts}
    print("| weights | tested on | AP | worth | Dice, own | at | best | at | ECE | s | GFLOPs |\n" + "|---" * 11 + "|")
    members: dict[str, list[dict[str, float | None]]] = {}
    for subject in subjects(chosen.runs):
        rows = tested(subject, cameras, chosen.kept, chosen.diameter)
        for camera, values in rows.items():
            print(line(subject.name, camera, values), flush=True)
        members.setdefault(subject.name.partition(",")[0], []).extend(rows.values())
    for name, values in members.items():
        print(line(f"**{name}**", f"mean of {len(values)}", mean(values)))


if __name__ == "__main__":
    main()
