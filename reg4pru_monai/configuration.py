"""Configurations of the bundle as values: merged, checked key by key, identified by a digest. Nothing is run."""

import difflib
import hashlib
import inspect
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from monai.bundle import ConfigComponent, ConfigParser, ReferenceResolver
from monai.utils import optional_import

from .fundus.datasets import digest, find_samples
from .runtime import ConfigurationError
from .tracking_store import masked

# What a run is called, where it is kept, what is done with its result, on what it runs: the same training.
NOT_RESULTS = frozenset(
    {
        *("output_dir", "run_name", "experiment", "tracking_uri", "tags", "tracking", "resume", "bundle_root"),
        *("device", "num_workers", "run", "log_model", "inspect_images", "after", "_meta_"),
    }
)
# Settings of a network that prunes; where nothing is pruned they change nothing.
OF_PRUNING = ("keep_rate", "stages", "reactivate", "policy_options")
# Paths and names, which Fire or MONAI may turn into others.
TEXTS = frozenset(
    {
        *("dataset_dir", "output_dir", "bundle_root", "checkpoint", "backbone", "start_from", "root"),
        *("experiment", "run_name", "tracking_uri"),
    }
)
_STEPS = ("initialize", "run", "finalize")  # MONAI's own


def merged_configuration(files: Sequence[str | Path], overrides: Mapping[str, Any]) -> ConfigParser:
    """What MONAI makes of configuration files, the first the whole one, and of overrides behind them."""
    parser = ConfigParser()
    parser.read_config([str(path) for path in files])
    _check_roots(parser, overrides)
    parser.update(dict(overrides))
    parser.resolve_macro_and_relative_ids()
    return parser


def _check_roots(parser: ConfigParser, overrides: Mapping[str, Any]) -> None:
    """An override of something inside a key needs the key; MONAI would say no more than its name."""
    for path in overrides:
        key = ReferenceResolver.split_id(path)[0]
        if key != path and key not in parser:
            raise ConfigurationError(f"unknown key {key!r} in {path!r}{_nearest(key, parser.get())}")


def _nearest(key: str, valid: Collection[str]) -> str:
    close = difflib.get_close_matches(key, sorted(map(str, valid)), n=1, cutoff=0.4)
    return f"; did you mean {close[0]!r}?" if close else ""


# --- keys ------------------------------------------------------------------------------------------------------------


def check_configuration(merged: Mapping[str, Any], known: Mapping[str, Any], name: str, entries: Sequence[str]) -> None:
    """Raise ConfigurationError for a key that does not exist, with the nearest that does, or that has no effect.

    merged: the configuration with overlays and overrides. known: the file of the bundle that lists all keys; name: its
    name. entries: what will be used; a key that was changed and that nothing on the way from there reads is dead.
    """
    for path, valid in _unknown(merged, dict.fromkeys(_STEPS) | dict(known)):
        close = difflib.get_close_matches(path[-1], sorted(valid), n=1, cutoff=0.4)
        hint = f"did you mean {'::'.join([*path[:-1], close[0]])!r}?" if close else f"see {name} for those that exist"
        raise ConfigurationError(f"unknown key {'::'.join(path)!r}: {hint}")
    _check_numbers(merged, known)
    starts = [*entries, *_STEPS, *_references(known.get("run")), "imports", "bundle_root"]
    read = _read_from(merged, starts)
    _check_references(merged, read)
    for key in merged.keys() - read:
        if merged[key] != known.get(key):
            raise ConfigurationError(
                f"key {key!r} has no effect: nothing that runs reads it; take it out, or let a component refer to "
                f"'@{key}' as in {name}"
            )


def check_no_other_tracking(merged: Mapping[str, Any]) -> None:
    """Raise ConfigurationError if MONAI's option ``--tracking`` was given; it leaves traces in the configuration."""
    if (written := merged.get("save_execute_config")) is None:
        return
    Path(re.sub(r" \+ '(.*)'$", r"\1", str(written))).unlink(missing_ok=True)  # MONAI's copy of all settings
    raise ConfigurationError(
        "leave out --tracking: this bundle tracks every run in MLflow by itself; --tracking_uri and --experiment say "
        "where, and --tracking_uri none turns it off"
    )


def command_line(arguments: Sequence[str]) -> dict[str, str]:
    """The options of MONAI's command line as typed; none in other programs. arguments: `sys.argv`.

    Fire, which parses it, reads values as Python: ``1e5`` becomes 100000.0, and ``data#1`` becomes ``data``.
    """
    if Path(arguments[0]).parts[-3:] != ("monai", "bundle", "__main__.py"):
        return {}
    found = {}
    for word, after in pairwise([*arguments, ""]):
        if word.startswith("-"):
            key, given, text = word.lstrip("-").partition("=")
            found[key.replace("-", "_")] = text if given else after
    return found


def check_texts(merged: Mapping[str, Any], typed: Mapping[str, str]) -> None:
    """Raise ConfigurationError for a name or path that the command line changed.

    merged: the configuration. typed: from `command_line`.
    """
    for key in TEXTS & merged.keys():
        value, text = merged[key], typed.get(key, "")
        if str(value).startswith(("$", "@", "%")):
            continue
        if "#" in text or "::" in str(value):
            raise ConfigurationError(
                f"{key} {masked(text or str(value))!r} cannot be used: MONAI's command line cuts a value off at '#', "
                "and its configurations turn '#' into '::'; rename it, or for a path give a link without either"
            )
        parts = [part.strip("'\"") for part in re.split(r"[\s,()[\]]+", text)]
        for number in value if isinstance(value, list | tuple) else [value]:
            if text and isinstance(number, int | float) and str(number) not in parts:
                raise ConfigurationError(
                    f"{key} {text!r} was read as the number {number}: put two kinds of quotes around it, "
                    f"--{key} \"'{text}'\""
                )


def _check_numbers(merged: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Where the file of the bundle has a number, text and mappings are a mistake, unless they are to be evaluated."""
    for key, default in known.items():
        value = merged.get(key)
        if isinstance(default, bool) or not isinstance(default, int | float):
            continue
        if isinstance(value, bool | Mapping) or (isinstance(value, str) and not value.startswith(("$", "@", "%"))):
            hint = " (in YAML 1e-3 is text: write 1.0e-3)" if "e" in str(value).lower() else ""
            raise ConfigurationError(f"{key} must be a number such as {default}, got {value!r}{hint}")


def _check_references(merged: Mapping[str, Any], read: Collection[str]) -> None:
    """Every ``@key`` that is read must exist."""
    for key in sorted(read):
        for found in _references(merged[key]):
            if found not in merged:
                hint = _nearest(found, merged.keys() - {key})
                raise ConfigurationError(f"key {key!r} refers to '@{found}', which does not exist{hint}")


def _unknown(given: Any, known: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[list[str], set[str]]]:
    """Paths of keys that are neither in the file nor in the signature of their component, and the keys valid there."""
    if isinstance(given, Mapping):
        target = given.get("_target_")
        there = known if isinstance(known, Mapping) and known.get("_target_") == target else {}
        valid = {*map(str, there), *(_parameters(target) or set())}
        for key, value in given.items():
            if valid and key not in valid and key not in ConfigComponent.non_arg_keys:
                if target is None or _parameters(target) is not None:
                    yield [*above, str(key)], valid
            else:
                yield from _unknown(value, there.get(key), (*above, str(key)))
    elif isinstance(given, list):
        before = known if isinstance(known, list) else []
        for index, value in enumerate(given):
            yield from _unknown(value, before[index] if index < len(before) else None, (*above, str(index)))


@cache
def _parameters(target: Any) -> set[str] | None:
    """Argument names of a component named as MONAI does; None where they cannot be known.

    Those of its base classes too, as long as a class hands on what it does not know.
    """
    if not isinstance(target, str):
        return None
    module, _, name = ConfigComponent({"_target_": target}).resolve_module_name().rpartition(".")
    component, found = optional_import(module, name=name)
    if not found:
        return None
    names: set[str] = set()
    for part in inspect.getmro(component) if inspect.isclass(component) else (component,):
        function = part.__dict__.get("__init__") if inspect.isclass(part) else part
        if function is None:
            continue
        if function is object.__init__:
            break
        parameters = inspect.signature(function).parameters.values()
        names |= {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names - {"self"}


def _read_from(merged: Mapping[str, Any], entries: Sequence[str]) -> set[str]:
    """The top-level keys that are reached from ``entries`` through references, themselves included."""
    reached: set[str] = set()
    todo = [key for key in entries if key in merged]
    while todo:
        key = todo.pop()
        if key not in reached:
            reached.add(key)
            todo += [found for found in _references(merged[key]) if found in merged]
    return reached


def _references(value: Any) -> Iterator[str]:
    """Top-level keys that a value refers to with ``@``, or copies with ``%``."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from _references(part)
    elif isinstance(value, str):
        found = [value[1:]] if value.startswith("%") else ReferenceResolver.match_refs_pattern(value)
        yield from (ReferenceResolver.split_id(each)[0] for each in found)


# --- identity --------------------------------------------------------------------------------------------------------


def data_digest(dataset_dir: Any) -> str:
    """What identifies a data set: the contents of images and masks, and which part each belongs to. DatasetError."""
    several = isinstance(dataset_dir, list | tuple)
    dataset = find_samples([str(folder) for folder in dataset_dir] if several else str(dataset_dir))
    parts = sorted((sample.name, sample.part) for sample in dataset.samples)
    return digest(dataset) + hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def configuration_digest(
    merged: Mapping[str, Any], without: Collection[str] = (), data: Callable[[Any], str] = data_digest
) -> str:
    """What identifies a training: 16 hex digits of the SHA-256 of all settings that change its result.

    merged: a configuration of train.yaml with overlays and overrides. The data set and the files that weights come from
    enter by their content, wherever they lie; ``NOT_RESULTS`` and the keys in ``without`` do not enter. Raises
    DatasetError.
    """
    settings = {key: value for key, value in merged.items() if key not in NOT_RESULTS | set(without)}
    if folder := settings.pop("dataset_dir", None):
        settings["phantoms"] = data(folder)
    for key in ("backbone", "start_from"):
        file = settings.get(key)
        if isinstance(file, str) and Path(file).is_file():
            settings[key] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    text = json.dumps(_plain(settings), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def training_digests(merged: Mapping[str, Any]) -> dict[str, str]:
    """Tags that identify a training, as :func:`configuration_digest`, whose errors it raises.

    configuration_digest: of all settings. settings_digest: without the seed, and of a dense network without the
    settings of pruning, so that runs with the same one differ in their seed only.
    """
    folder = merged.get("dataset_dir")
    content = data_digest(folder) if folder else ""  # read once: a data set may be large
    no_result = OF_PRUNING if merged.get("policy") == "dense" else ()
    return {
        "configuration_digest": configuration_digest(merged, (), lambda _: content),
        "settings_digest": configuration_digest(merged, ("seed", *no_result), lambda _: content),
    }


def _plain(value: Any) -> Any:
    """The value with one form for what YAML, Python and a command line write differently: true, 1.0, tuples."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    return value
