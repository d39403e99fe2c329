"""Experiment files: which trainings are compared, and in what they differ. Reading and expanding; nothing is run."""

import difflib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser

from ..released import CONFIGS
from ..runtime import ConfigurationError

KEYS = ("description", "configs", "set", "members", "vary", "seeds", "baseline")
# Keys of train.yaml that belong to the sweep, and what to give instead.
RESERVED = {
    "seed": "seeds in the experiment, or --seeds",
    "dataset_dir": "--dataset-dir",
    "output_dir": "--output-dir",
    "tracking_uri": "--tracking-uri",
    **dict.fromkeys(("resume", "run_name", "tags"), "nothing: the sweep chooses it"),
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


@dataclass(frozen=True)
class Member:
    """One training but for its seed. configs: overlays in order. settings: overrides behind them, by key."""

    name: str
    configs: tuple[Path, ...]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Experiment:
    """Trainings to compare. name: of the file. shared: what all members have in common. baseline: name of a member."""

    name: str
    description: str
    shared: Member
    members: tuple[Member, ...]
    seeds: tuple[int, ...]
    baseline: str | None


def read_experiment(path: Path) -> Experiment:
    """Read and expand an experiment file. Raises ConfigurationError that names the file, the key and the remedy.

    path: the file, or the name of a shipped experiment, such as policies.
    """
    path = _shipped(path)
    content = _read(path)
    _check_names(path, content, KEYS)
    shared = _member(path, path.stem, content)
    members = [*_listed(path, content, shared), *_varied(path, content, shared)]
    if not members:
        raise ConfigurationError(f"{path}: no members; give members: {{NAME: {{set: …}}}} or vary: {{KEY: [VALUES]}}")
    names = [member.name for member in members]
    for name in names:
        if not _NAME.fullmatch(name):
            raise ConfigurationError(f"{path}: member name {name!r} must be of letters, digits and . _ + -")
        if names.count(name) > 1:
            raise ConfigurationError(f"{path}: two members are called {name!r}; name them under members:")
    baseline = content.get("baseline")
    if baseline is not None and baseline not in names:
        raise ConfigurationError(f"{path}: baseline {baseline!r} is no member{_nearest(str(baseline), names)}")
    seeds = check_seeds(content.get("seeds", [42]), f"{path}: seeds")
    return Experiment(path.stem, str(content.get("description", "")), shared, tuple(members), seeds, baseline)


def check_seeds(values: Any, where: str) -> tuple[int, ...]:
    """Different whole numbers, at least one. Raises ConfigurationError that starts with ``where``."""
    whole = isinstance(values, list | tuple) and all(type(value) is int and value >= 0 for value in values)
    if not whole or not values or len(set(values)) < len(values):
        raise ConfigurationError(f"{where} must be different whole numbers such as [42, 43], got {values!r}")
    return tuple(values)


def check_settings(values: Any, where: str) -> dict[str, Any]:
    """Overrides by key, none that belongs to the sweep. Raises ConfigurationError that starts with ``where``."""
    if not isinstance(values, Mapping):
        raise ConfigurationError(f"{where} must be a mapping of keys to values, got {values!r}")
    for key in values:
        first = re.split("::|#", str(key).lstrip("+~"))[0]  # MONAI: + adds to a value, ~ takes a key out
        if instead := RESERVED.get(first):
            raise ConfigurationError(f"{where}: {key!r} cannot be set here; give {instead}")
    return {str(key).replace("#", "::"): value for key, value in values.items()}


# --- parts of a file -------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would keep the last in silence."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """As of any mapping."""
        found = super().construct_mapping(node, deep)
        if len(found) < len(node.value):
            raise yaml.YAMLError(f"a key is given twice in the mapping at line {node.start_mark.line + 1}")
        return found


def _shipped(path: Path) -> Path:
    """Turn a bare name into the path of the shipped experiment, unless a file has that name."""
    if path.is_file() or path.name != str(path) or path.suffix:
        return path
    found = CONFIGS / "experiments" / f"{path}.yaml"
    if not found.is_file():
        known = sorted(each.stem for each in found.parent.glob("*.yaml"))
        raise ConfigurationError(f"{path}: neither a file nor an experiment that ships{_nearest(str(path), known)}")
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # a safe one
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror}); give an experiment file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: is no YAML file ({error})") from None
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path}: is no experiment; it must have the key members or vary")
    return content


def _member(path: Path, name: str, content: Any, below: Member | None = None) -> Member:
    """The overlays and settings of a mapping with the keys configs and set, behind those of ``below``."""
    where = f"{path}: {name}"
    configs, settings = (below.configs, below.settings) if below else ((), {})
    own = check_settings(content.get("set") or {}, f"{where}: set")
    return Member(name, (*configs, *_overlays(path, content.get("configs") or [], where)), {**settings, **own})


def _overlays(path: Path, names: Any, where: str) -> list[Path]:
    """Overlay files, relative to the folder of the experiment, without the keys that belong to the sweep."""
    if isinstance(names, str):
        names = [names]
    if not isinstance(names, list):
        raise ConfigurationError(f"{where}: configs must be a list of files, got {names!r}")
    files = [(path.parent / str(name)).resolve() for name in names]
    for file in files:
        if not file.is_file():
            raise ConfigurationError(f"{where}: {file} does not exist; configs are relative to {path.parent}")
        check_settings(_overlay(file, where) or {}, f"{where}: {file}")
    return files


def _overlay(file: Path, where: str) -> Any:
    """The content of an overlay as MONAI reads it."""
    try:
        return ConfigParser.load_config_file(str(file))
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigurationError(f"{where}: {file}: is no configuration file of YAML or JSON ({error})") from None


def _listed(path: Path, content: Mapping[str, Any], shared: Member) -> list[Member]:
    """The members under ``members``."""
    listed = content.get("members") or {}
    if not isinstance(listed, Mapping) or not all(isinstance(value or {}, Mapping) for value in listed.values()):
        raise ConfigurationError(f"{path}: members must be a mapping NAME: {{configs: […], set: {{…}}}}")
    for name, value in listed.items():
        _check_names(path, value or {}, ("configs", "set"), f"members::{name}::")
    return [_member(path, str(name), value or {}, shared) for name, value in listed.items()]


def _varied(path: Path, content: Mapping[str, Any], shared: Member) -> list[Member]:
    """The product of the lists under ``vary``; the key configs stands for one overlay file each."""
    vary = content.get("vary") or {}
    if not isinstance(vary, Mapping) or not all(isinstance(values, list) and values for values in vary.values()):
        raise ConfigurationError(f"{path}: vary must be a mapping KEY: [VALUES], got {vary!r}")
    if not vary:
        return []
    found = []
    for values in itertools.product(*vary.values()):
        chosen = dict(zip(vary, values, strict=True))
        name = "-".join(_label(key, value) for key, value in chosen.items())
        settings = {key: value for key, value in chosen.items() if key != "configs"}
        found.append(_member(path, name, {"configs": chosen.get("configs"), "set": settings}, shared))
    return found


def _label(key: str, value: Any) -> str:
    """What a value adds to the name of a member: words speak for themselves, other values follow their key."""
    if isinstance(value, str):
        return Path(value).stem if key == "configs" else value
    return f"{key.rpartition('::')[2]}_{re.sub(r'[^A-Za-z0-9.+]+', '_', str(value)).strip('_')}"


def _check_names(path: Path, given: Mapping[str, Any], known: Sequence[str], above: str = "") -> None:
    for key in given:
        if key not in known:
            raise ConfigurationError(f"{path}: unknown key {above + str(key)!r}{_nearest(str(key), known)}")


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"
