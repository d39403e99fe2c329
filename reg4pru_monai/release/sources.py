"""What a release is made from: the checkpoint, the training it came from, and the data sets to test on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ..configuration import NOT_RESULTS
from ..evaluation import check_labels
from ..fundus.datasets import DatasetError, datalist, digest, find_samples, folders_of, has_validation
from ..released import sha256
from ..runtime import ConfigurationError
from ..tracking_store import JOURNAL_NAME, read_journal
from ..weights import load_checkpoint
from .bundle_files import FACTS, read_facts

VALIDATION_FRACTION = 0.2  # of train.yaml
# Paths, or said elsewhere.
_NO_FACTS = {*NOT_RESULTS, "dataset_dir", "data", "phantoms", "backbone", "start_from", "seed"}
_NO_FACTS |= {"scaled_by_angle", "told_angle"}  # by_angle and angle once more, as they were understood
_SHOWN = ("git.revision", "git.dirty", "hardware", "platform", "python")


class Source(NamedTuple):
    """A checkpoint, and the output folder of its training."""

    checkpoint: Path
    run: Path

    @classmethod
    def of(cls, checkpoint: str | Path) -> "Source":
        """By where a checkpoint lies: in the output folder of a training, or in a bundle."""
        return cls(Path(checkpoint), Path(checkpoint).absolute().parents[1])


def locate(given: Path) -> Source:
    """The checkpoint that is meant by a run folder, or by a file in its checkpoints/. Raises ConfigurationError.

    A checkpoint alone does not do: it does not say on what it was trained, and which part was held out.
    """
    source = Source.of(given / "checkpoints" / "best.pt" if given.is_dir() else given)
    for path in (source.checkpoint, source.run / "configuration.yaml"):
        if not path.is_file():
            raise ConfigurationError(
                f"{path} does not exist; give the --output_dir of a finished training, or one of its checkpoints"
            )
    return source


@dataclass(frozen=True)
class DataSet:
    """A data set to test on. entries: of its test part, as ``datalist`` makes them; whole: how many there are."""

    folder: Path
    name: str
    entries: list[dict[str, str]]
    whole: int
    digest: str


def open_data_sets(folders: Sequence[Path], limit: int | None, angle: Any = None) -> list[DataSet]:
    """The test parts, at most ``limit`` photographs of each. Raises DatasetError, ValueError for an empty mask.

    angle: of view, where a data set does not tell it.
    """
    found = []
    for folder in folders:
        entries = datalist(folder, "test", angle=angle)
        check_labels(entries)
        chosen = select(entries, limit or len(entries))
        found.append(DataSet(folder, find_samples(folder).name, chosen, len(entries), digest(folder)[:16]))
    names = [each.name for each in found]
    if len(set(names)) < len(names):
        raise DatasetError(f"two --data folders hold data sets of one name: {', '.join(names)}; rename one")
    return found


def select(entries: Sequence[dict[str, str]], count: int) -> list[dict[str, str]]:
    """The first photographs by name, as many of each group as possible; in the order given."""
    groups: dict[str, list[dict[str, str]]] = {}
    for entry in sorted(entries, key=lambda each: each["name"]):
        groups.setdefault(entry.get("group", ""), []).append(entry)
    turns = [(turn, group) for group, own in groups.items() for turn in range(len(own))]
    kept = {groups[group][turn]["name"] for turn, group in sorted(turns)[:count]}
    return [entry for entry in entries if entry["name"] in kept]


def training_folders(run: Path, given: Sequence[Path]) -> list[Path]:
    """The data sets that a training used: as it recorded them, where they still are, else those given of their names.

    Raises ConfigurationError where one is not among them, or two are: its validation part could be another one.
    """
    recorded = configuration(run).get("dataset_dir")
    if not recorded:
        return list(given)
    return [path if path.is_dir() else _moved(path, given) for path in folders_of(recorded)]


def _moved(path: Path, given: Sequence[Path]) -> Path:
    """The one folder of those given that has the name of one that is gone."""
    found = [folder for folder in given if folder.resolve().name == path.name]
    if not found:
        raise ConfigurationError(f"the training used {path}, which is not there; give it with --data FOLDER")
    if len(found) > 1:
        raise ConfigurationError(f"the training used {path}, which is not there, and {len(found)} --data have its name")
    return found[0]


def configuration(run: Path) -> dict[str, Any]:
    """All settings of a training. Raises ConfigurationError."""
    try:
        return dict(yaml.safe_load((run / "configuration.yaml").read_text(encoding="utf-8")))
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise ConfigurationError(f"{run / 'configuration.yaml'}: not readable ({error})") from error


def part_of(folders: Sequence[Path], part: str, run: Path) -> list[dict[str, str]]:
    """One part of the data of a training, held out as it was there; empty where nothing was."""
    settings = configuration(run)
    fraction, angle = settings.get("validation_fraction", VALIDATION_FRACTION), settings.get("angle")
    # One folder alone as such: several get their names in front, and so another order in which subjects are drawn.
    data = folders[0] if len(folders) == 1 else list(folders)
    if part == "validation" and not has_validation(find_samples(data), fraction):
        return []
    return datalist(data, part, validation_fraction=fraction, angle=angle)


def inherited_threshold(run: Path) -> dict[str, Any]:
    """For a training that held nothing out: what a release found for the weights it started from.

    As ``choose_threshold``, and ``inherited``: True. Raises ConfigurationError where it started from none that are
    released.
    """
    started = configuration(run).get("start_from")
    told = _released(Source.of(started)) if started else None
    if told is None:
        raise ConfigurationError(
            f"{run}: this training held nothing out to choose a threshold on (validation_fraction 0), and did not "
            "start from released weights, whose threshold could be taken; train with "
            "--start_from BUNDLE/models/model.pt, or with a validation_fraction"
        )
    return {**told["threshold"], "inherited": True}


def training_facts(source: Source, folders: Sequence[Path]) -> dict[str, Any]:
    """What is known of the training: data, settings, epochs, steps, time, hardware, versions; None where it is not.

    before: the training whose weights it started from, with its own ``before``; None where it started from scratch.
    blended: what ``blend_checkpoints`` says of weights that are not the training's alone.
    Raises CheckpointError.
    """
    state, settings = load_checkpoint(source.checkpoint), configuration(source.run)
    records = _records(source.run)
    tags = {key: value for each in records if each["kind"] == "tags" for key, value in each["tags"].items()}
    parts = {}
    for part in ("train", "validation"):
        entries = part_of(folders, part, source.run)
        if not entries:
            continue
        parts[part] = {"images": len(entries), "subjects": len({entry["subject"] for entry in entries})}
    return {
        "data_sets": [find_samples(folder).name for folder in folders],
        "parts": parts,
        **_effort(source, state, records),
        "before": _before(settings.get("start_from")),
        "energy_kwh": None,  # nothing measures it
        "seed": state["configuration"].get("seed"),
        "settings": {key: value for key, value in settings.items() if _is_fact(key, value)},
        "made_with": {key: tags[key] for key in _SHOWN if key in tags},
        "packages": {key.removeprefix("package."): tags[key] for key in tags if key.startswith("package.")},
    }


EFFORT = ("epochs", "best_epoch", "validation_ap", "steps", "seconds", "blended")


def _effort(source: Source, state: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How long a training took, and how far it came. state: its checkpoint. records: its journal."""
    last = source.run / "checkpoints" / "last.pt"
    return {
        "epochs": state["configuration"].get("max_epochs"),
        "best_epoch": state.get("epoch"),
        "validation_ap": state.get("validation_ap"),
        "steps": load_checkpoint(last)["ema_updates"] if last.is_file() else None,
        "seconds": training_seconds(records),
        "blended": state.get("blended"),
    }


def _before(checkpoint: str | None) -> dict[str, Any] | None:
    """The training that a checkpoint came from; of the weights of a bundle, what its facts say of it."""
    if checkpoint is None:
        return None
    source = Source.of(checkpoint)
    state = load_checkpoint(source.checkpoint)
    if told := _released(source):
        own = {key: told["training"].get(key) for key in (*EFFORT, "before")}
    else:
        own = {**_effort(source, state, _records(source.run)), "before": None}
    return {"policy": state["configuration"]["policy"], **own}


def _released(source: Source) -> dict[str, Any] | None:
    """What a release found for the weights of a bundle; None for others, and where the bundle's facts are of others."""
    if not (source.run / FACTS).is_file():
        return None
    told = read_facts(source.run)
    return told if told["weights"]["sha256"] == sha256(source.checkpoint) else None


def _records(run: Path) -> list[dict[str, Any]]:
    return read_journal(run) if (run / JOURNAL_NAME).is_file() else []


def training_seconds(records: Sequence[Mapping[str, Any]]) -> float | None:
    """Wall time of a training from its journal: from each start, or going on, to the last epoch logged after it."""
    total, begun, ended = 0.0, None, None
    for record in records:
        if record["kind"] == "start":
            total += (ended or begun or 0) - (begun or 0)
            begun, ended = record["time"], None
        elif record["kind"] == "metrics" and "train/loss" in record["metrics"]:
            ended = record["time"]
    total += (ended or begun or 0) - (begun or 0)
    return total / 1000 or None


def _is_fact(key: str, value: Any) -> bool:
    """Whether a setting is a plain value that says something outside the machine of the training."""
    if key in _NO_FACTS or (isinstance(value, dict) and any(str(name).startswith("_") for name in value)):
        return False
    return not any(text.startswith(("$", "@", "%", "/")) for text in _texts(value))


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict | list):
        return [text for each in (value.values() if isinstance(value, dict) else value) for text in _texts(each)]
    return [value] if isinstance(value, str) else []
