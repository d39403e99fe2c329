"""What the bundle's configuration files call: where the bundle is, checks before work starts, and the run itself."""

import difflib
import inspect
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
import yaml
from monai.bundle import ConfigComponent, ConfigParser
from monai.bundle.workflows import ConfigWorkflow
from monai.utils import optional_import, set_determinism

from .evaluation import Evaluation, check_labels
from .fundus.datasets import datalist, digest
from .runtime import EXPECTED, ConfigurationError, root_cause
from .segmenter import Segmenter, build_segmenter
from .tracking import SilentTracker, Tracker, TrackingHandler, environment_tags, terminate_as_interrupt
from .training import TrainingState, VesselTrainer, progress_bar
from .weights import load_backbone, load_network

logger = logging.getLogger(__name__)

# --- where the bundle is, and what it was asked ----------------------------------------------------------------------


def calling_workflow() -> ConfigWorkflow | None:
    """The MONAI workflow that is evaluating the configuration right now.

    MONAI gives expressions no handle on the merged configuration; the workflow that evaluates them is up the stack.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, ConfigWorkflow):
            return owner
        frame = frame.f_back
    return None


def root() -> str:
    """The bundle's folder, wherever the command was started: beside its configuration files."""
    workflow = calling_workflow()
    places = [Path(workflow.config_root_path).parent] if workflow else []
    for place in [*places, Path.cwd()]:
        if (place / "configs" / "metadata.json").is_file():
            return str(place.resolve())
    raise ConfigurationError(
        f"no bundle found: {places[0] if places else Path.cwd()} has no configs/metadata.json; "
        "work in the folder of the bundle, or give --bundle_root FOLDER"
    )


def configuration() -> dict[str, Any]:
    """The merged configuration of the running workflow, overrides included; empty outside a workflow."""
    workflow = calling_workflow()
    return {} if workflow is None else {k: v for k, v in workflow.parser.get().items() if k != "_meta_"}


def resolved_configuration() -> dict[str, Any]:
    """As :func:`configuration`, with the values of those expressions that came to a plain value."""
    workflow = calling_workflow()
    values = {} if workflow is None else workflow.parser.ref_resolver.resolved_content
    plain = (str, int, float, bool, type(None))
    return {k: values[k] if k in values and isinstance(values[k], plain) else v for k, v in configuration().items()}


def check_keys(name: str) -> None:
    """Raise ConfigurationError for an override that no component reads, with the nearest key that exists.

    name: the configuration file of the bundle that lists all keys, such as "train.yaml".
    """
    merged = configuration()
    if not merged:
        return
    steps: dict[str, Any] = {"initialize": None, "run": None, "finalize": None}  # MONAI's own
    known = steps | ConfigParser.load_config_file(str(Path(root()) / "configs" / name))
    for path in _unknown(merged, known):
        parent = known
        for part in path[:-1]:
            parent = parent[part]
        there = sorted({*map(str, parent), *_parameters(parent.get("_target_"))})
        close = difflib.get_close_matches(path[-1], there, n=1, cutoff=0.4)
        hint = f"did you mean {'::'.join([*path[:-1], close[0]])!r}?" if close else f"see {name} for those that exist"
        raise ConfigurationError(f"unknown key {'::'.join(path)!r}: {hint}")


def _unknown(given: Mapping[str, Any], known: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[list[str]]:
    """Paths of keys that are in neither the file nor the signature of the component they were given to."""
    for key, value in given.items():
        if key not in known:
            if not (key.startswith("_") or key in _parameters(known.get("_target_"))):
                yield [*above, key]
        elif isinstance(value, Mapping) and isinstance(there := known[key], Mapping) and there:
            same = value.get("_target_") == there.get("_target_")
            yield from _unknown(value, there, (*above, key)) if same else ()


def _parameters(target: Any) -> set[str]:
    """Argument names of a component named as MONAI does, those of its base classes too; empty where it is none."""
    if not isinstance(target, str):
        return set()
    module, _, name = ConfigComponent({"_target_": target}).resolve_module_name().rpartition(".")
    component, found = optional_import(module, name=name)
    if not found:
        return set()
    parts = inspect.getmro(component)[:-1] if inspect.isclass(component) else (component,)
    parameters = [parameter for part in parts for parameter in inspect.signature(part).parameters.values()]
    return {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def flag(name: str, value: Any) -> bool:
    """A yes or no from the command line, where true and false arrive as text. Raises ConfigurationError."""
    found = {"true": True, "false": False}.get(str(value).lower())
    if found is None:
        raise ConfigurationError(f"{name} must be true or false, got {value!r}")
    return found


# --- readable errors -------------------------------------------------------------------------------------------------


def readable_errors() -> None:
    """End the program with one readable line, exit status 1, where the cause is an error a user can mend.

    MONAI wraps every error in "Failed to evaluate ConfigExpression". The whole traceback is shown for errors that
    nobody expected, and always with REG4PRU_TRACEBACK=1.
    """

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, KeyboardInterrupt):
            print(f"error: interrupted{f' by {error}' if error.args else ''}", file=sys.stderr)
            return
        cause = root_cause(error)
        if not isinstance(cause, EXPECTED) or os.environ.get("REG4PRU_TRACEBACK") == "1":
            traceback.print_exception(kind, error, trace)
        print(f"error: {cause or type(cause).__name__}", file=sys.stderr)

    sys.excepthook = hook


# --- data ------------------------------------------------------------------------------------------------------------


def dataset(dataset_dir: Any, output_dir: str, phantoms: Mapping[str, Any]) -> Any:
    """The data set to use: the given folder or folders, or generated phantoms where none is given."""
    if dataset_dir:
        return str(dataset_dir) if isinstance(dataset_dir, int) else dataset_dir  # a folder called 2024
    if not isinstance(phantoms, Mapping) or {"train", "test", "size", "seed"} - phantoms.keys():
        raise ConfigurationError(
            f"phantoms must have train, test, size and seed, got {phantoms}; change one with --phantoms#train 4"
        )
    folder = Path(output_dir).parent / "phantoms-{train}-{test}-{size}-{seed}".format(**phantoms)
    logger.info("no --dataset_dir: using generated phantoms in %s", folder)
    if is_main_process():
        from .fundus.phantom import write_phantoms

        write_phantoms(folder, **phantoms)
    wait_for_main_process()
    return str(folder)


def entries(dataset_dir: Any, part: str, validation_fraction: float = 0.2) -> list[dict[str, str]]:
    """Images and masks of one part of a data set, each mask checked to hold a vessel."""
    data = datalist(dataset_dir, part, validation_fraction=validation_fraction)
    check_labels(data)
    return data


def repeated(data: list[dict[str, str]], times: int) -> list[dict[str, str]]:
    """Each image ``times`` times: one random crop is taken from each, so that a batch holds many images."""
    if not isinstance(times, int) or times < 1:
        raise ConfigurationError(f"crops_per_image must be a whole number of at least 1, got {times}")
    return [entry for _ in range(times) for entry in data]


# --- the run ---------------------------------------------------------------------------------------------------------


def begin(name: str, seed: int | None = None, **network: Any) -> None:
    """First step of every command, before data is read: readable errors, unknown keys, a network that can be built."""
    if is_main_process():
        readable_errors()
    check_keys(name)
    if network:
        with torch.device("meta"):
            build_segmenter(**network)
    if seed is not None:
        set_determinism(seed)


def start_processes() -> None:
    """Join the processes that torchrun started: NCCL on GPUs, each process on its own, gloo on CPUs."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # metrics are gathered on the current device
    torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def with_backbone(network: Segmenter, backbone: str | None) -> Segmenter:
    """The network, with its encoder from the file of a pretrained backbone where one is given."""
    if backbone is not None:
        initial = load_backbone(network, backbone)
        logger.info("backbone %s loaded; %d parameters start from scratch", backbone, len(initial))
    return network


def compiled(network: Segmenter, wanted: Any) -> Segmenter:
    """The network, its blocks compiled in place where ``wanted``."""
    return network.compile_blocks() if flag("compile", wanted) else network


def is_main_process() -> bool:
    """Whether this process writes files and tracks: rank 0, or the only one."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def wait_for_main_process() -> None:
    """Wait until every process has come here; nothing to wait for with one."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def train(
    trainer: VesselTrainer,
    state: TrainingState,
    evaluation: Evaluation,
    settings: Mapping[str, Any],
    resume: bool | str = False,
) -> dict[str, float]:
    """Train, then evaluate the best weights, and track both in one run that is always closed.

    settings: experiment, run_name, tracking_uri, store_dir, parameters. Returns the metrics of the evaluation.
    """
    if flag("resume", resume):
        state.resume()
    elif state.last.exists():
        raise ConfigurationError(
            f"{state.last} holds an earlier training: continue it with --resume true, or choose another --output_dir"
        )
    with terminate_as_interrupt(), _tracker(evaluation.output_dir, settings, state.run_id) as tracker:
        state.run_id = tracker.run_id
        TrackingHandler(tracker, lambda _: state.metrics).attach(trainer)
        if trainer.state.epoch < trainer.state.max_epochs:
            with progress_bar(trainer) if is_main_process() else nullcontext():
                trainer.run()
        if not is_main_process():
            return {}
        return evaluate(evaluation, load_network(trainer.segmenter, state.best), tracker)


def _tracker(output_dir: Path, settings: Mapping[str, Any], run_id: str | None) -> Tracker:
    if not is_main_process():
        return SilentTracker(output_dir)
    tracker = Tracker.start(output_dir, tags=environment_tags(), run_id=run_id, **settings)
    text = yaml.safe_dump(resolved_configuration(), sort_keys=False, allow_unicode=True)
    tracker.log_text(text, "configuration.yaml")
    return tracker


def evaluate(evaluation: Evaluation, network: Any, tracker: Tracker, part: str = "test") -> dict[str, float]:
    """Evaluate and track: metrics under the name of the part, pictures, the table per image."""
    result = evaluation.run(network)
    tracker.log_metrics({f"{part}/{name}": value for name, value in headline(result).items()}, step=0)
    folder = Path(evaluation.output_dir)
    for name in ("metrics.json", "per_image.csv", "precision_recall.png"):
        tracker.log_artifact(folder / name)
    for path in sorted((folder / "overlays").glob("*.jpg")):
        tracker.log_artifact(path, "overlays")
    print(table(result))
    return result


HEADLINE = (
    "ap",
    "auc",
    "dice",
    "cldice",
    "sensitivity",
    "specificity",
    "ap_low",
    "ap_high",
    "per_image/dice",
    "full_frame/ap",
    "images_per_second",
    "gflops",
    "peak_memory_mib",
)


def headline(result: Mapping[str, float]) -> dict[str, float]:
    """The few metrics that go to MLflow; all of them stand in metrics.json."""
    names = [f"{variant}/{key}" for variant in ("pruned", "dense") for key in HEADLINE]
    return {name: result[name] for name in [*names, "pruned/speedup", "efficiency"] if name in result}


def table(result: Mapping[str, float]) -> str:
    """The result as a short table for the terminal."""
    columns = ("ap", "dice", "auc", "cldice", "images_per_second", "gflops")
    titles = ("AP", "Dice", "AUC", "clDice", "images/s", "GFLOPs")
    lines = ["".join([f"{'':<8}", *(f"{title:>10}" for title in titles)])]
    for variant in ("dense", "pruned"):
        values = (f"{result[f'{variant}/{c}']:>10.{1 if c == 'gflops' else 2 if '_' in c else 4}f}" for c in columns)
        lines.append(f"{variant:<8}" + "".join(values))
    return "\n".join(lines)


def evaluate_checkpoint(
    evaluation: Evaluation, network: Any, checkpoint: str, part: str, settings: Mapping[str, Any]
) -> dict[str, float]:
    """Load a checkpoint, evaluate it on one part of the data, and track it in a run of its own."""
    network = load_network(network, checkpoint)
    earlier = evaluation.output_dir / "metrics.json"
    if earlier.exists():
        raise ConfigurationError(f"{earlier} holds an earlier result: choose another --output_dir")
    with terminate_as_interrupt(), _tracker(evaluation.output_dir, settings, None) as tracker:
        return evaluate(evaluation, network, tracker, part)


def run_parameters(data: Any, **values: Any) -> dict[str, Any]:
    """Parameters of a run: the settings that matter, and what identifies the data."""
    revision = environment_tags()["git.revision"]
    return {**values, "dataset": _dataset_name(data), "dataset_digest": digest(data)[:16], "git_revision": revision}


def _dataset_name(data: Any) -> str:
    folders = data if isinstance(data, list | tuple) else [data]
    return "+".join(Path(str(folder)).name for folder in folders)
