"""A release from beginning to end. Nothing in the bundle changes before all is measured and the checks have passed."""

import csv
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .. import __version__
from ..evaluation import Evaluation
from ..files import check_folder, replacing
from ..fundus.datasets import digest
from ..fundus.io import read_image, read_mask
from ..inference import ARCHITECTURE, Pipeline, load_pipeline, trained
from ..released import WEIGHTS, sha256
from ..tracking import environment_tags
from ..weights import write_release
from .bundle_files import FACTS, write_card, write_metadata
from .kept import Kept, plain, write_json
from .measuring import choose_threshold, compare, flips, robustness
from .photographs import describe, quality_against_dice
from .pictures import save_contact_sheet, save_failure, worst
from .sources import (
    DataSet,
    Source,
    configuration,
    inherited_threshold,
    locate,
    open_data_sets,
    part_of,
    select,
    training_facts,
    training_folders,
)
from .speed import measure_speed

LARGEST_DIFFERENCE = 0.001  # of AP, between the weights as trained and in half precision
ROBUSTNESS_PHOTOGRAPHS = 9  # of each data set: degradations multiply the work by ten
FORMAT = 1
STEPS = 2  # what kept steps hold: raise it when they hold something else, and those of before are made again
_ENVIRONMENT = ("git.revision", "git.dirty", "python", "platform")


class ReleaseError(ValueError):
    """A result that must not be shipped."""


class Release:
    """What every step needs. limit: at most so many test photographs of each data set, to try a release out."""

    def __init__(
        self,
        source: Source,
        data: Sequence[Path],
        work: Path,
        device: str,
        limit: int | None,
        say: Callable[[str], None],
    ) -> None:
        self.source, self.folders, self.work, self.device = source, list(data), work, device
        self.sets = open_data_sets(data, limit, configuration(source.run).get("angle"))
        self.trained_on = training_folders(source.run, data)
        self.kept = Kept(work, {"checkpoint": sha256(source.checkpoint), "version": __version__, "steps": STEPS}, say)

    def facts(self) -> dict[str, Any]:
        """Everything the model card says, measured now or in an earlier call."""
        threshold = self._threshold()
        model = self.work / "model.pt"
        write_release(self.source.checkpoint, model, threshold["value"])
        shipped = load_pipeline(model, self.device)
        results = {each.name: self._accuracy(shipped, each) for each in self.sets}
        dice = {(name, row["image"]): row["dice"] for name, own in results.items() for row in own["photographs"]}
        return {
            "format": FORMAT,
            "model": _model(shipped, model),
            "weights": {"file": WEIGHTS, "bytes": model.stat().st_size, "sha256": sha256(model)},
            "threshold": threshold,
            "training": self._training(),
            "training_photographs": self._training_photographs(),
            "results": results,
            "robustness": {each.name: self._robustness(shipped, each) for each in self.sets},
            "flips": {each.name: self._flips(shipped, each) for each in self.sets},
            "speed": [row for each in self.sets for row in self._speed(model, each)],
            "failures": [{"data_set": key[0], "photograph": key[1], "dice": dice[key]} for key in worst(dice)],
            "measured_with": _environment(),
        }

    def _training(self) -> dict[str, Any]:
        """Of the training. Kept: weights that it started from tell of theirs only until a release overwrites them."""
        data = [digest(folder)[:16] for folder in self.trained_on]
        return self.kept.step("training", partial(training_facts, self.source, self.trained_on), data=data)

    def _threshold(self) -> dict[str, Any]:
        """Chosen on what the training held out, or that of the weights it started from. Raises ConfigurationError."""
        entries = part_of(self.trained_on, "validation", self.source.run)
        if not entries:  # kept as well: this release can overwrite the weights that the training started from
            return self.kept.step("threshold", partial(inherited_threshold, self.source.run))

        def make() -> dict[str, Any]:
            path = self.work / "model.pt"
            write_release(self.source.checkpoint, path)
            return choose_threshold(load_pipeline(path, self.device), entries)

        data = [digest(folder)[:16] for folder in self.trained_on]
        names = [entry["name"] for entry in entries]
        return self.kept.step("threshold", make, data=data, photographs=names, by="mean Dice of the photographs")

    def _about(self, test: DataSet, pipeline: Pipeline, entries: Sequence[Mapping[str, str]]) -> dict[str, Any]:
        """What the result of a step on photographs depends on beside the checkpoint."""
        names = [entry["name"] for entry in entries]
        return {"data": test.digest, "photographs": names, "threshold": pipeline.threshold, "device": self.device}

    def _accuracy(self, shipped: Pipeline, test: DataSet) -> dict[str, Any]:
        """Metrics in half precision, of each photograph too, and AP and Dice of the original. Raises ReleaseError."""
        about, folder = self._about(test, shipped, test.entries), self.work / test.name

        def evaluate() -> dict[str, Any]:
            options: dict[str, Any] = {"overlays": len(test.entries), "threshold": shipped.threshold}
            evaluation = Evaluation(
                test.entries, shipped.preprocessing, shipped.inferer, shipped.device, folder, **options
            )
            return {"metrics": evaluation.run(shipped.network), "photographs": _per_image(folder / "per_image.csv")}

        def compare_original() -> dict[str, Any]:
            original = load_pipeline(self.source.checkpoint, self.device)
            original.threshold = shipped.threshold
            return compare(original, test.entries)

        found = self.kept.step(f"accuracy-{test.name}", evaluate, **about)
        original = self.kept.step(f"original-{test.name}", compare_original, **about)
        check_half_precision(test.name, found["metrics"], original)
        described = self.kept.step(f"photographs-{test.name}", lambda: describe(test.entries), **about)
        quality = described.pop("quality")
        dice = {row["image"]: row["dice"] for row in found["photographs"]}
        return {
            **described,
            "of_images": test.whole,
            "trained_on": test.folder.resolve() in [folder.resolve() for folder in self.trained_on],
            **found,
            "original": original,
            "quality": quality_against_dice(quality, dice),
        }

    def _training_photographs(self) -> dict[str, Any]:
        entries = part_of(self.trained_on, "train", self.source.run)
        names = [entry["name"] for entry in entries]
        data = [digest(folder)[:16] for folder in self.trained_on]
        found = self.kept.step("photographs-of-training", lambda: describe(entries), data=data, photographs=names)
        return {key: found[key] for key in ("pixels", "diameter_px", "angles_deg", "groups")}

    def _robustness(self, shipped: Pipeline, test: DataSet) -> dict[str, Any]:
        chosen = select(test.entries, ROBUSTNESS_PHOTOGRAPHS)
        about = self._about(test, shipped, chosen)
        return self.kept.step(f"robustness-{test.name}", lambda: robustness(shipped, chosen), **about)

    def _flips(self, shipped: Pipeline, test: DataSet) -> dict[str, Any]:
        chosen = select(test.entries, ROBUSTNESS_PHOTOGRAPHS)
        about = self._about(test, shipped, chosen)
        return self.kept.step(f"flips-{test.name}", lambda: flips(shipped, chosen), **about)

    def _speed(self, model: Path, test: DataSet) -> list[dict[str, Any]]:
        """On the device that was asked for, and on the CPU where that is another."""
        rows = []
        for device in dict.fromkeys((str(load_pipeline(model, self.device).device), "cpu")):
            pipeline = load_pipeline(model, device)
            about = {**self._about(test, pipeline, test.entries[:1]), "device": device}
            step = partial(measure_speed, pipeline, test.entries[0])
            row = self.kept.step(f"speed-{device}-{test.name}", step, **about)
            rows.append({"data_set": test.name, **row})
        return rows


def release(
    given: Path,
    data: Sequence[Path],
    bundle: Path,
    device: str = "auto",
    work: Path | None = None,
    limit: int | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure a checkpoint, and put it with its model card into a bundle. Returns the facts.

    given: output folder of a training, or a checkpoint. data: data sets to test on. work: where steps are kept, by
    default beside the run. Raises ReleaseError, CheckpointError, DatasetError, ConfigurationError, OSError.
    """
    source = locate(given)
    work = work or source.run / "release"
    check_folder(work)
    if not (bundle / "configs" / "metadata.json").is_file():
        raise FileNotFoundError(f"{bundle} is no bundle: it has no configs/metadata.json; give one with --bundle")
    every = Release(source, data, work, device, limit, say)
    facts = rounded(plain(every.facts()))
    facts["command"] = " ".join(["reg4pru release RUN", *(f"--data {folder.resolve().name}" for folder in data)])
    facts["command"] += f" --limit {limit}" if limit else ""
    draw(every, facts, bundle)
    write_json(bundle / FACTS, facts)
    with replacing(bundle / WEIGHTS) as beside:
        shutil.copyfile(work / "model.pt", beside)
    write_metadata(bundle, facts)
    write_card(bundle)
    return facts


def check_half_precision(name: str, half: Mapping[str, Any], original: Mapping[str, Mapping[str, float]]) -> None:
    """Raise ReleaseError where half precision changes AP."""
    for variant, scores in original.items():
        before, after = scores["ap"], half[f"{variant}/ap"]
        if abs(after - before) > LARGEST_DIFFERENCE:
            raise ReleaseError(
                f"{name}: AP of the {variant} network is {after:.4f} in half precision and {before:.4f} as trained, "
                f"more than {LARGEST_DIFFERENCE} apart: these weights cannot be shipped in half precision. Look for "
                "weights beyond its range (6e-8 to 65504), or release an earlier checkpoint"
            )


def draw(every: Release, facts: dict[str, Any], bundle: Path) -> None:
    """The pictures of docs/, and where they are into the facts; nothing is taken away before all are drawn."""
    docs, drawn = bundle / "docs", every.work / "pictures"
    check_folder(drawn)
    sets = {each.name: each for each in every.sets}
    pipeline = load_pipeline(every.work / "model.pt", every.device)
    for number, failure in enumerate(facts["failures"], 1):
        entries = {entry["name"]: entry for entry in sets[failure["data_set"]].entries}
        entry = entries[failure["photograph"]]
        failure["picture"] = f"failure_{number}.png"
        title = f"{failure['data_set']} {failure['photograph']}: Dice {failure['dice']:.3f}"
        mask, truth = pipeline(entry["image"], entry["angle"]).mask(), read_mask(entry["label"])
        save_failure(drawn / failure["picture"], read_image(entry["image"]), mask, truth, title)
    rows = [(name, row) for name, own in facts["results"].items() for row in own["photographs"]]
    pictures = [
        (every.work / name / "overlays" / f"{row['image']}.jpg", f"{name} {row['image']}  Dice {row['dice']:.3f}")
        for name, row in rows
    ]
    facts["contact_sheet"] = "contact_sheet.jpg"
    save_contact_sheet(drawn / facts["contact_sheet"], pictures)
    for earlier in docs.glob("failure_*.png"):
        earlier.unlink()
    for name in (facts["contact_sheet"], *(failure["picture"] for failure in facts["failures"])):
        with replacing(docs / name) as beside:
            shutil.copyfile(drawn / name, beside)


def _per_image(path: Path) -> list[dict[str, Any]]:
    """AP and Dice of each photograph, for the variant that is meant to run: it comes first."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rows = [row for row in rows if row["variant"] == rows[0]["variant"]]
    numbers = ("ap", "dice")
    return [{"image": row["image"], "group": row["group"], **{key: float(row[key]) for key in numbers}} for row in rows]


def _model(pipeline: Pipeline, model: Path) -> dict[str, Any]:
    settings, inferer = trained(str(model)), pipeline.inferer
    return {
        **{key: settings[key] for key in (*ARCHITECTURE, "diameter", "by_angle", "normalization")},
        "blocks": len(pipeline.network.encoder.blocks),
        "channels": pipeline.network.patch_embed.proj.out_channels,
        "patch": pipeline.network.patch_embed.patch,
        "stages": [[stage.block, stage.keep] for stage in pipeline.network.encoder.policy.stages],
        "reactivate": pipeline.network.encoder.reactivate,
        "parameters": sum(each.numel() for each in pipeline.network.parameters()),
        "window": list(inferer.window_size) if inferer.window_size else None,
        "overlap": inferer.overlap,
    }


def _environment() -> dict[str, Any]:
    tags = environment_tags()
    packages = {key.removeprefix("package."): value for key, value in tags.items() if key.startswith("package.")}
    return {**{key: tags[key] for key in _ENVIRONMENT}, "packages": packages}


def rounded(value: Any) -> Any:
    """Floats to six digits behind the point: more are noise, and make every later change of the file larger."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return round(value, 6) if isinstance(value, float) else value
