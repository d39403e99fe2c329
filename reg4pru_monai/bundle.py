"""What the bundle's configuration files call: where the bundle is, checks before work starts, and the run itself."""

import logging
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
import yaml
from monai.bundle import ConfigParser
from monai.bundle.workflows import ConfigWorkflow
from monai.utils import set_determinism
from torch.nn import SyncBatchNorm

from . import processes
from .after_training import AfterTraining
from .configuration import (
    check_configuration,
    check_no_other_tracking,
    check_texts,
    command_line,
    merged_configuration,
    training_digests,
)
from .environment import SystemMetrics, frozen_packages, hardware
from .evaluation import Evaluation, check_labels
from .fundus.angle import angle_of_view as angle_of_view  # for the configurations
from .fundus.datasets import datalist, digest, find_samples, has_validation, split
from .fundus.splits import PARTS
from .inference import DIGEST, IDENTITY, trained
from .networks import Network, UNetSegmenter, build_network
from .output_folder import claim, releasing
from .policies import removes_tokens
from .processes import is_main_process, wait_for_main_process
from .results import UNFINISHED, description, headline, table
from .runtime import EXPECTED, ConfigurationError, root_cause
from .tracking import JOURNAL_ID, OFF, SilentTracker, Tracker, TrackingHandler, environment_tags, terminate_as_interrupt
from .tracking_store import JOURNAL_NAME, masked, read_journal
from .training import TrainingState, VesselTrainer, progress_bar
from .weights import load_backbone, load_checkpoint, load_network

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

    Outside a workflow nothing is checked. name: the configuration file of the bundle that lists all keys, such as
    "train.yaml".
    """
    workflow = calling_workflow()
    if workflow is None:
        return
    folder = Path(root()) / "configs"
    known = ConfigParser.load_config_file(str(folder / name))
    if name != "train.yaml":
        below = {k: v for k, v in merged_configuration([folder / "train.yaml"], {}).get().items() if k != "_meta_"}
        known = {**below, **known} if below.keys() <= configuration().keys() else known  # as an overlay of it
    asked = [each["id"].split("::")[0] for each in (workflow.properties or {}).values()]  # as attributes, by MONAI
    merged = configuration()
    check_no_other_tracking(merged)
    check_texts(merged, command_line(sys.argv))
    check_configuration(merged, known, name, [workflow.init_id, workflow.run_id, workflow.final_id, *asked])


def flag(name: str, value: Any) -> bool:
    """A yes or no from the command line, where true and false arrive as text. Raises ConfigurationError."""
    found = {"true": True, "false": False}.get(str(value).lower())
    if found is None:
        raise ConfigurationError(f"{name} must be true or false, got {value!r}")
    return found


def probability(name: str, value: Any) -> float:
    """A number between 0 and 1. Raises ConfigurationError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise ConfigurationError(f"{name} must be a number in (0, 1), got {value!r}")
    return float(value)


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
            print(masked("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)
        print(f"error: {masked(str(cause)) or type(cause).__name__}", file=sys.stderr)

    sys.excepthook = hook


def without_passwords(record: logging.LogRecord) -> bool:
    """Logging filter that masks the passwords in URLs."""
    record.msg, record.args = masked(record.getMessage()), ()
    return True


# --- data ------------------------------------------------------------------------------------------------------------


def dataset(dataset_dir: Any, output_dir: str, phantoms: Mapping[str, Any]) -> Any:
    """The data set to use: the given folder or folders, or generated phantoms where none is given.

    Claims the output folder for this process. Raises DatasetError, ConfigurationError.
    """
    if dataset_dir:  # it may be called 2024
        found = list(map(str, dataset_dir)) if isinstance(dataset_dir, list | tuple) else str(dataset_dir)
        find_samples(found)  # before the output folder is made: it may lie inside
        _claim(output_dir)
        return found
    if not isinstance(phantoms, Mapping) or {"train", "test", "size", "seed"} - phantoms.keys():
        raise ConfigurationError(
            f"phantoms must have train, test, size and seed, got {phantoms}; change one with --phantoms#train 4"
        )
    _claim(output_dir)
    folder = Path(output_dir).parent / "phantoms-{train}-{test}-{size}-{seed}".format(**phantoms)
    logger.info("no --dataset_dir: using generated phantoms in %s", folder)
    if is_main_process():
        from .fundus.phantom import write_phantoms

        write_phantoms(folder, **phantoms)
    wait_for_main_process()
    return str(folder)


def _claim(output_dir: str) -> None:
    if is_main_process():
        claim(output_dir)


def entries(
    dataset_dir: Any, part: str, validation_fraction: float = 0.2, angle: float | None = None
) -> list[dict[str, str]]:
    """Images and masks of one part of a data set, each mask checked (see check_labels). angle: see datalist."""
    data = datalist(dataset_dir, part, validation_fraction=validation_fraction, angle=angle)
    check_labels(data)
    return data


def validation_entries(
    dataset_dir: Any, validation_fraction: float = 0.2, angle: float | None = None
) -> list[dict[str, str]]:
    """As :func:`entries`, of the validation part; empty where nothing is held out."""
    if not has_validation(find_samples(dataset_dir), validation_fraction):
        return []
    return entries(dataset_dir, "validation", validation_fraction, angle)


def repeated(data: list[dict[str, str]], times: int) -> list[dict[str, str]]:
    """Each image ``times`` times: one random crop is taken from each, so that a batch holds many images."""
    if not isinstance(times, int) or times < 1:
        raise ConfigurationError(f"crops_per_image must be a whole number of at least 1, got {times}")
    if times * len(data) < processes.count():
        raise ConfigurationError(
            f"{times * len(data)} crops in an epoch do not suffice for {processes.count()} processes: raise "
            "crops_per_image, or start fewer processes"
        )
    return [entry for _ in range(times) for entry in data]


def share(data: Sequence[Any]) -> range:
    """Which items of a data set this process works on, as :func:`processes.share`."""
    return processes.share(len(data))


# --- the run ---------------------------------------------------------------------------------------------------------


def begin(name: str, seed: int | None = None, **network: Any) -> None:
    """First step of every command, before data is read: readable errors, unknown keys, a network that can be built."""
    if is_main_process():
        readable_errors()
    logging.getLogger("monai.bundle.scripts").addFilter(without_passwords)  # it logs the command line
    check_keys(name)
    if network:
        with torch.device("meta"):
            build_network(**network)
    if seed is not None:
        set_determinism(seed)


def start_processes() -> None:
    """Join the processes that torchrun started: NCCL on GPUs, each process on its own, gloo on CPUs.

    A process that ends takes the others along within seconds; one that hangs, after ten minutes.
    """
    if "LOCAL_RANK" not in os.environ:
        readable_errors()
        raise ConfigurationError("multi_gpu_train.yaml is for several processes: start it with torchrun, as it says")
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # metrics are gathered on the current device
    backend, timeout = "nccl" if torch.cuda.is_available() else "gloo", timedelta(minutes=10)
    store, rank, count = next(torch.distributed.rendezvous("env://", timeout=timeout))
    # torchrun keeps one store for all attempts on a machine: without a prefix an attempt meets the dead of the last.
    if os.environ.get("LOCAL_WORLD_SIZE") == str(count):
        store = torch.distributed.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=timeout)


def initialized(network: Network, backbone: str | None, start_from: str | None, **preprocessing: Any) -> Network:
    """The network as training begins: from scratch, on a pretrained backbone, or from a checkpoint of this bundle.

    preprocessing: of this training; a checkpoint that saw its photographs otherwise is worth a warning. Raises
    CheckpointError, ConfigurationError.
    """
    if start_from is not None:
        if backbone is not None:
            raise ConfigurationError("backbone and start_from both say where weights come from; leave one out")
        load_network(network, start_from, new_policy=True)
        found = trained(start_from)
        for key, value in preprocessing.items():
            if found[key] != value:
                logger.warning("%s was trained with %s %s, this training has %s", start_from, key, found[key], value)
        logger.info("training starts from %s", start_from)
    if backbone is not None:
        if isinstance(network, UNetSegmenter):
            raise ConfigurationError(f"backbone belongs to transformers; take it out for {network.name}")
        initial = load_backbone(network, backbone)
        logger.info("backbone %s loaded; %d parameters start from scratch", backbone, len(initial))
    return network


def prepared(network: Network, compile_blocks: Any, checkpoint_blocks: Any) -> Network:
    """The network as it is trained: compiled and checkpointed where wanted, and with batch norm over all GPUs."""
    if flag("checkpoint_blocks", checkpoint_blocks):
        if isinstance(network, UNetSegmenter):
            raise ConfigurationError(f"checkpoint_blocks belongs to transformers; take it out for {network.name}")
        network.checkpoint_blocks()
    if processes.count() > 1 and torch.cuda.is_available():  # it knows no CPUs
        network = SyncBatchNorm.convert_sync_batchnorm(network)
    return compiled(network, compile_blocks)


def compiled(network: Network, wanted: Any) -> Network:
    """The network, its blocks compiled in place where ``wanted``."""
    return network.compile_blocks() if flag("compile", wanted) else network


def train(
    trainer: VesselTrainer,
    state: TrainingState,
    evaluation: Evaluation,
    settings: Mapping[str, Any],
    resume: bool | str = False,
    after: AfterTraining | None = None,
) -> dict[str, float]:
    """Train, then evaluate the best weights, and track both in one run that is always closed.

    settings: of `Tracker.start`, parameters among them. resume: true, false, or "auto": where there is something of
    this very training. Returns the metrics of the evaluation.
    """
    wanted = str(resume).lower()
    if wanted not in ("true", "false", "auto"):
        raise ConfigurationError(f"resume must be true, false or auto, got {resume!r}")
    with releasing(evaluation.output_dir), terminate_as_interrupt():
        if wanted == "auto":
            _take_up(state, Path(evaluation.output_dir), settings["tags"])
        elif wanted == "true":
            state.resume()
        elif state.last.exists():
            raise ConfigurationError(
                f"{state.last} holds an earlier training: continue it with --resume true, or choose another "
                "--output_dir"
            )
        with _tracker(evaluation, settings, state.run_id) as tracker:
            state.run_id = tracker.run_id
            state.identity = _identity(settings)
            _log_last_epoch(tracker, state, trainer.state.epoch)
            if trainer.state.epoch < trainer.state.max_epochs:
                _run(trainer, state, tracker)
            if not is_main_process():
                return {}
            network = load_network(trainer.segmenter, state.best)
            result = evaluate(evaluation, network, tracker, "test", settings["parameters"])
            tracker.log_artifact(state.best, "checkpoints")
            if after:
                after.run(tracker, state.best, evaluation.device)
            return result


def _take_up(state: TrainingState, output_dir: Path, tags: Mapping[str, Any]) -> None:
    """Go on where this training, of the same settings and data, was cut off; it need not have come to a checkpoint."""
    if state.last.exists():
        if load_checkpoint(state.last)["configuration"].get(DIGEST) != tags[DIGEST]:
            raise ConfigurationError(
                f"{state.last} holds a training with other settings or data: choose another --output_dir, or continue "
                "it nevertheless with --resume true"
            )
        state.resume()
    elif (output_dir / JOURNAL_NAME).is_file():
        told = [record for record in read_journal(output_dir) if record["kind"] == "tags"]
        same = [
            record["run"]
            for record in told
            if record["tags"].get("configuration_digest") == tags["configuration_digest"]
        ]
        state.run_id = JOURNAL_ID + same[-1] if same else None


def _identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of its training beside its configuration, for the runs that evaluate it."""
    told = {**settings["parameters"], **settings.get("tags", {})}
    return {key: told[key] for key in IDENTITY if key in told}


def _log_last_epoch(tracker: Tracker, state: TrainingState, epoch: int) -> None:
    """Log what a resumed training still owes: it may have been cut off between its checkpoint and its metrics."""
    if state.metrics and is_main_process():
        records = [record for record in read_journal(tracker.journal) if record["kind"] == "metrics"]
        if not any(record["step"] == epoch and state.metrics.keys() <= record["metrics"].keys() for record in records):
            tracker.log_metrics(state.metrics, epoch)


def _run(trainer: VesselTrainer, state: TrainingState, tracker: Tracker) -> None:
    """Train, with the load of the machine beside the metrics of each epoch where MLflow is used."""
    with ExitStack() as stack:
        load = stack.enter_context(SystemMetrics()) if tracker.tracking_uri != OFF else None
        TrackingHandler(tracker, lambda _: {**state.metrics, **(load.means() if load else {})}).attach(trainer)
        if is_main_process():
            stack.enter_context(progress_bar(trainer))
        trainer.run()


def _tracker(evaluation: Evaluation, settings: Mapping[str, Any], run_id: str | None) -> Tracker:
    if not is_main_process():
        return SilentTracker(evaluation.output_dir)
    several = {"processes": processes.count()} if processes.count() > 1 else {}
    tags = {**environment_tags(), "hardware": hardware(evaluation.device), **several, **settings.get("tags", {})}
    tracker = Tracker.start(evaluation.output_dir, run_id=run_id, **{**settings, "tags": tags})
    text = yaml.safe_dump(resolved_configuration(), sort_keys=False, allow_unicode=True)
    tracker.log_text(text, "configuration.yaml")
    tracker.log_text(frozen_packages(), "environment.txt")
    tracker.describe(UNFINISHED)
    return tracker


def evaluate(
    evaluation: Evaluation, network: Any, tracker: Tracker, part: str, parameters: Mapping[str, Any]
) -> dict[str, float]:
    """Evaluate and track: metrics under the name of the part, tables, pictures, and the description of the run."""
    result = evaluation.run(network)
    tracker.log_metrics({f"{part}/{name}": value for name, value in headline(result).items()}, step=0)
    measured_with = evaluation.measured_with(network)
    tracker.set_tags(measured_with)
    tracker.describe(description(result, parameters, measured_with, len(evaluation.data), part))
    folder = Path(evaluation.output_dir)
    for name in ("metrics.json", "precision_recall.png", "reliability.png"):
        tracker.log_artifact(folder / name)
    for name in ("per_image.csv", "precision_recall.csv"):
        tracker.log_artifact(folder / name, part)
    for path in sorted((folder / "overlays").glob("*.jpg")):
        tracker.log_artifact(path, "overlays")
    print(table(result))
    return result


def evaluate_checkpoint(
    evaluation: Evaluation, network: Any, checkpoint: str, part: str, settings: Mapping[str, Any]
) -> dict[str, float]:
    """Load a checkpoint, evaluate it on one part of the data, and track it in a run of its own."""
    with releasing(evaluation.output_dir), terminate_as_interrupt():
        network = load_network(network, checkpoint)
        earlier = evaluation.output_dir / "metrics.json"
        if earlier.exists():
            raise ConfigurationError(f"{earlier} holds an earlier result: choose another --output_dir")
        with _tracker(evaluation, settings, None) as tracker:
            tracker.log_artifact(checkpoint, "checkpoints")
            return evaluate(evaluation, network, tracker, part, settings["parameters"])


def run_tags(tags: Mapping[str, Any]) -> dict[str, Any]:
    """Tags of a run: the given ones, and the digests by which trainings are known again."""
    if not isinstance(tags, Mapping):
        raise ConfigurationError(f"tags must be a mapping such as {{'mlflow.parentRunId': 'RUN'}}, got {tags!r}")
    return {**tags, **training_digests(configuration())}


def run_parameters(data: Any, **values: Any) -> dict[str, Any]:
    """Parameters of a run: the settings that matter, and what identifies the data.

    A network that removes no tokens has no keep rate, stages or reactivation.
    """
    if not removes_tokens(values["policy"]):
        values = {key: value for key, value in values.items() if key not in ("keep_rate", "stages", "reactivate")}
    revision = environment_tags()["git.revision"]
    return {**values, "dataset": _dataset_name(data), "dataset_digest": digest(data)[:16], "git_revision": revision}


def run_datasets(data: Any, validation_fraction: float, parts: Sequence[str] = PARTS) -> list[dict[str, Any]]:
    """What a run reads, for MLflow: name, digest, folder and size of each part of each data set."""
    dataset, found = find_samples(data), []
    for part in parts:
        if part == "validation" and not has_validation(dataset, validation_fraction):
            continue
        samples = split(dataset, part, validation_fraction)
        for name in dict.fromkeys(sample.dataset for sample in samples):
            own = [sample for sample in samples if sample.dataset == name]
            source = os.path.commonpath([sample.image.parent.resolve() for sample in own])
            size = {"images": len(own), "subjects": len({sample.subject for sample in own})}
            found.append({"name": name, "digest": digest(own)[:16], "context": part, "source": source, **size})
    return found


def _dataset_name(data: Any) -> str:
    folders = data if isinstance(data, list | tuple) else [data]
    return "+".join(Path(str(folder)).name for folder in folders)
