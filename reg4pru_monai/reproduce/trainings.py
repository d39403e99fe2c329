"""The trainings that ``reg4pru reproduce`` compares: found, and checked to differ in nothing else."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ..configuration import configuration_digest, data_digest
from ..tracking_store import JOURNAL_NAME, ended_well
from ..training import kept_checkpoint

# What is compared, what changes no weights, where the data set lies, and how a version of train.yaml starts a training.
MAY_DIFFER = ("decoder", "policy", "policy_options", "seed", "keep_epochs", "data", "initialize", "training")


class Run(NamedTuple):
    """A finished training. settings: its configuration, resolved."""

    folder: Path
    settings: dict[str, Any]

    @property
    def arm(self) -> str:
        """Policy, with the options that were given to it."""
        options = sorted(self.settings["policy_options"].items())
        forms = ["published" if option == ("keep_logit", 0) else "{} {}".format(*option) for option in options]
        return ", ".join([str(self.settings["policy"]), *forms])

    @property
    def decoder(self) -> str:
        """Name of the decoder."""
        return str(self.settings["decoder"])

    @property
    def seed(self) -> int:
        """Seed of the training."""
        return int(self.settings["seed"])

    @property
    def epochs(self) -> list[int]:
        """Epochs of which the average weights are there, the last of the training at the end."""
        found = [e for e in self.settings["keep_epochs"] if kept_checkpoint(self.folder / "checkpoints", e).is_file()]
        if self.settings["max_epochs"] not in found:
            raise ValueError(
                f"{self.folder}: the weights after the last epoch were not kept; "
                f"train with --keep_epochs [{self.settings['max_epochs']}]"
            )
        return sorted(found)


def find_runs(folder: str | Path) -> list[Run]:
    """Finished trainings anywhere below a folder, by decoder, arm and seed. Raises ValueError where there is none.

    A training is a folder with a journal: MLflow's artifacts, which hold the same files, are none.
    """
    runs = []
    for path in sorted(Path(folder).rglob(JOURNAL_NAME)):
        file = path.with_name("configuration.yaml")
        settings = yaml.safe_load(file.read_text()) if ended_well(path) and file.is_file() else None
        if isinstance(settings, dict) and "keep_epochs" in settings:
            runs.append(Run(path.parent, settings))
    if not runs:
        raise ValueError(f"{folder}: no finished training below it; run the sweep of the experiment first")
    order = list(dict.fromkeys(run.arm for run in runs))
    return sorted(runs, key=lambda run: (run.decoder, run.arm != "dense", order.index(run.arm), run.seed))


def content_of_data() -> Callable[[Any], str]:
    """``data_digest`` of a folder or a list of folders, that reads each data set once."""
    known = cache(data_digest)
    return lambda folders: known(tuple(folders) if isinstance(folders, list) else folders)


def check_comparable(runs: Sequence[Run], data: Callable[[Any], str] = data_digest) -> None:
    """Raise ValueError where trainings differ in more than arm, decoder and seed, or one is there twice.

    data: what identifies a data set, wherever it lies. Raises DatasetError where one is not there.
    """
    known: dict[tuple[str, str, int], Run] = {}
    for run in runs:
        twin = known.setdefault((run.decoder, run.arm, run.seed), run)
        if twin is not run:
            raise ValueError(f"{run.folder} and {twin.folder} are the same arm and seed; take one of them away")
        if key := _first_difference(run.settings, runs[0].settings, data):
            raise ValueError(
                f"{run.folder} was trained with {key} {run.settings.get(key)}, {runs[0].folder} with "
                f"{runs[0].settings.get(key)}; only trainings that differ in decoder, policy and seed alone can be "
                "compared"
            )


def _first_difference(one: Mapping[str, Any], other: Mapping[str, Any], data: Callable[[Any], str]) -> str | None:
    """The first setting, in the order of the file, by which two trainings differ; None where there is none."""

    def same(*settings: Mapping[str, Any]) -> bool:
        return len({configuration_digest(each, MAY_DIFFER, data) for each in settings}) == 1

    if same(one, other):
        return None
    keys = dict.fromkeys([*one, *other])
    return next(key for key in keys if not same(*({k: v for k, v in s.items() if k == key} for s in (one, other))))
