"""The trainings of a sweep before any of them starts: checked, identified, and as commands to run by hand."""

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser

from ..configuration import check_configuration, configuration_digest, data_digest, merged_configuration
from ..networks import build_network
from ..released import BUNDLE
from ..runtime import ConfigurationError, root_cause
from ..tracking_store import masked, resolve_uri
from .experiments import RESERVED, Experiment, Member, check_settings

TRAIN = BUNDLE / "configs" / "train.yaml"


@dataclass(frozen=True)
class Job:
    """One training of a sweep. digest: of its configuration. folder: its output_dir. settings: overrides by key."""

    member: str
    seed: int
    digest: str
    folder: Path
    files: tuple[Path, ...]
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Member and seed, as in the name of the folder."""
        return f"{self.member}-seed{self.seed}"

    @property
    def checkpoint(self) -> Path:
        """Where a training that was cut off goes on."""
        return self.folder / "checkpoints" / "last.pt"

    def command(self, tags: Mapping[str, Any]) -> list[str]:
        """The training as a command. It resumes where the folder holds a checkpoint. tags: of the MLflow run."""
        more: dict[str, Any] = {"tags": dict(tags)} if tags else {}
        if self.checkpoint.exists():
            more["resume"] = True
        files = [str(path) for path in self.files]
        words = [_python(), "-m", "monai.bundle", "run", "training", "--config_file", _word(files)]
        return words + [word for key, value in {**self.settings, **more}.items() for word in (f"--{key}", _word(value))]


@dataclass(frozen=True)
class Plan:
    """The jobs of a sweep, seed after seed. digest: of what they share. mlflow_experiment: that keeps their runs."""

    jobs: tuple[Job, ...]
    digest: str
    mlflow_experiment: str


def plan(
    experiment: Experiment,
    output_dir: Path,
    dataset_dirs: Sequence[Path] = (),
    tracking_uri: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Plan:
    """Check every member as a whole configuration, and lay out its training.

    overrides: settings of all members, behind their own. tracking_uri: written into the commands. Raises
    ConfigurationError that names the member, and DatasetError.
    """
    folder = output_dir.resolve() / experiment.name
    everywhere = dict(overrides or {})
    if dataset_dirs:
        found = [str(each.resolve()) for each in dataset_dirs]
        everywhere["dataset_dir"] = found[0] if len(found) == 1 else found
    data = lru_cache(lambda text: data_digest(DefaultParseValue(text)))

    def digest_of(parser: ConfigParser, without: Sequence[str] = ()) -> str:
        return configuration_digest(parser.get(), without, lambda folders: data(_word(folders)))

    jobs = []
    for seed in experiment.seeds:
        for member in experiment.members:
            settings = {**member.settings, **everywhere, "seed": seed}
            digest = digest_of(_checked(member, settings))
            name = f"{member.name}-seed{seed}"
            where = {"output_dir": str(folder / f"{name}-{digest[:8]}"), "run_name": f"{experiment.name}-{name}"}
            if tracking_uri:
                where["tracking_uri"] = tracking_uri
            files = (TRAIN, *member.configs)
            jobs.append(Job(member.name, seed, digest, Path(where["output_dir"]), files, {**settings, **where}))
    _check_different(jobs)
    shared = merged_configuration([TRAIN, *experiment.shared.configs], {**experiment.shared.settings, **everywhere})
    return Plan(tuple(jobs), digest_of(shared, ("seed",)), str(shared["experiment"]))


def _check_different(jobs: Sequence[Job]) -> None:
    """Raise ConfigurationError for two members that are one training: they would share one run."""
    found: dict[str, Job] = {}
    for job in jobs:
        if (other := found.setdefault(job.digest, job)) is not job:
            raise ConfigurationError(
                f"members {other.member} and {job.member} are the same training: their settings, with those of all "
                "members, have the same effect; take one out, or change it"
            )


def _checked(member: Member, settings: Mapping[str, Any]) -> ConfigParser:
    """The configuration of a member, its keys checked and its network built without memory for the weights."""
    known = ConfigParser.load_config_file(str(TRAIN))
    try:
        parser = merged_configuration([TRAIN, *member.configs], settings)
        merged = {key: value for key, value in parser.get().items() if key != "_meta_"}
        check_configuration(merged, known, TRAIN.name, ("initialize", "training", "finalize"))
        _check_reads(merged, known)
        network = {key: parser.get_parsed_content(key) for key in ("architecture", "masked_attention")}
        with torch.device("meta"):
            build_network(**network["architecture"], masked_attention=network["masked_attention"])
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:  # as MONAI meets odd values
        raise ConfigurationError(f"member {member.name}: {root_cause(error)}") from None
    return parser


def _check_reads(merged: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Raise ConfigurationError where a part no longer reads what the sweep gives, such as tracking its tracking_uri."""
    for key, value in known.items():
        for lost in sorted(_reserved_in(value) - _reserved_in(merged.get(key))):
            raise ConfigurationError(
                f"{key!r} no longer reads '@{lost}', which belongs to the sweep and cannot be set here; give "
                f"{RESERVED[lost]}"
            )


def _reserved_in(value: Any) -> set[str]:
    """Keys of the sweep that a value of a configuration refers to."""
    return set(re.findall(rf"@({'|'.join(RESERVED)})\b", json.dumps(value, default=str)))


def tracking_uris(tracking_uri: str | None, output_dir: Path) -> tuple[str, str | None]:
    """The store to ask, and the one to write into commands: none if they find it in the environment.

    The default is one SQLite file for all experiments in ``output_dir``. A URI with a password goes into the
    environment, because commands are printed and logged.
    """
    uri = resolve_uri(tracking_uri, output_dir)
    if masked(uri) != uri:
        os.environ["MLFLOW_TRACKING_URI"], tracking_uri = uri, None
    from_environment = tracking_uri is None and os.environ.get("MLFLOW_TRACKING_URI")
    return uri, None if from_environment else uri


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """``--key value --key=value`` as MONAI's command line reads them. Raises ConfigurationError."""
    found: dict[str, Any] = {}
    rest = list(words)
    while rest:
        key, equals, value = rest.pop(0).partition("=")
        if not key.startswith("--") or len(key) == 2 or not (equals or rest):
            raise ConfigurationError(f"settings behind -- must be pairs such as --max_epochs 20, got {key!r}")
        found[key[2:]] = DefaultParseValue(value if equals else rest.pop(0))
    return check_settings(found, "settings behind --")


def _word(value: Any) -> str:
    """A value as a command line says it, so that MONAI reads exactly this value again."""
    for text in (json.dumps(value, default=str) if isinstance(value, dict | list) else str(value), repr(value)):
        read = DefaultParseValue(text)
        if type(read) is type(value) and read == value:
            return text
    raise ConfigurationError(f"{value!r} cannot be given on a command line; put it into an overlay file")


def _python() -> str:
    """``python`` where that is this interpreter, so that the command reads as in the documentation."""
    return "python" if shutil.which("python") == sys.executable else sys.executable


def as_text(command: Sequence[str], threads: int | None = None) -> str:
    """A command to copy and paste into a shell."""
    return (f"OMP_NUM_THREADS={threads} " if threads else "") + shlex.join(command)
