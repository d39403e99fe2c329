"""The trained network as an MLflow model: whole photographs in; masks, probabilities and measurements out.

A model folder holds weights and plain text, no code and no pickled objects: MLflow loads it through `_load_pyfunc` of
the installed package. Every photograph goes through the engine of ``reg4pru segment``, so the results are the same.
mlflow is imported at the first use, not here.
"""

import base64
import hashlib
import os
import re
import sqlite3
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import imagecodecs
import numpy as np

from . import __version__
from .batch.failures import StageError, error_row
from .batch.inputs import Item
from .batch.photograph import Photograph
from .batch.rows import COLUMNS as ROW
from .batch.settings import settings_of
from .batch.work import Prepared, Work
from .fundus.phantom import make_phantom
from .inference import Pipeline, load_pipeline
from .tracking import environment_tags
from .tracking_store import (
    JOURNAL_NAME,
    RunStore,
    calm,
    flatten,
    masked,
    now,
    read_journal,
    reason,
    resolve_uri,
    store_folder,
    unique_name,
)
from .weights import averaged_weights, load_checkpoint, save_checkpoint

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.models import Model, ModelSignature

OUTPUTS = ("mask", "probability")
_LEFT_OUT = ("path", "status", "frame", "frames", "identifier")  # of the columns of results.csv: one photograph a row
MEASURED = tuple(column.name for column in ROW if column.name not in _LEFT_OUT)
COLUMNS = ("error", *OUTPUTS, *MEASURED)
_TEXT = ("error", "sha256", "format", "camera_maker", "camera_model", "laterality")
_WHOLE = ("height_px", "width_px", "bits", "fov_full_frame", "branch_count", "branch_point_count")
_PACKAGES = ("torch", "monai", "numpy", "scipy", "scikit-image", "imagecodecs", "tifffile", "pillow", "pandas")
_SHORTEST_DATA = 300  # characters: no photograph is less in base64, and hardly a path is more


# --- prediction ---------------------------------------------------------------------------------------------------


class ServedModel:
    """What MLflow calls. Made by `_load_pyfunc`; use it through ``mlflow.pyfunc.load_model``."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.settings = settings_of(pipeline, outputs=OUTPUTS)

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> "pd.DataFrame":
        """Segment photographs, one row each.

        model_input: DataFrame whose first column holds them, or a sequence. A photograph is the path of a file, the
            bytes of one, or an array (H, W, 3) RGB, uint8 or float in [0, 1]. A server takes base64 and opens no path.
        params: threshold in (0, 1), default: the one chosen for the network; millimetres_per_pixel; angle, of view in
            degrees, for weights trained by angle, default: what DICOM says, else 45 is assumed.
        Returns the columns COLUMNS. error: None, or why this photograph has no result. mask: PNG of 0 and 255;
            probability: 16-bit PNG of 65535 times the probability; both bytes, in the photograph's own pixels.
        Raises SettingsError for params out of their range.
        """
        import pandas as pd

        table = isinstance(model_input, pd.DataFrame)
        photographs = list(model_input.iloc[:, 0] if table else model_input)
        settings = replace(self.settings, **(params or {}))
        with TemporaryDirectory() as scratch:
            work = Work(self.pipeline, settings, Path(scratch))
            rows = [self._row(work, str(number), each) for number, each in enumerate(photographs)]
        # As objects, because a missing number would become nan, which JSON does not have.
        return pd.DataFrame(rows, columns=list(COLUMNS), index=model_input.index if table else None, dtype=object)

    def _row(self, work: Work, name: str, photograph: Any) -> dict[str, Any]:
        item = Item(name, str(work.output / name))
        try:
            return self._segment(work, item, photograph)
        except StageError as error:
            row = error_row(item, error.stage, error.cause)
            return dict.fromkeys(COLUMNS) | {"error": f"{row['message']}. {row['remedy']}"}
        except ValueError as error:  # of the request itself, and it says what to do
            return dict.fromkeys(COLUMNS) | {"error": str(error)}

    def _segment(self, work: Work, item: Item, photograph: Any) -> dict[str, Any]:
        """The row of a photograph. Raises StageError, ValueError."""
        prepared = self._prepare(work, item, photograph)
        if len(prepared.frames) > 1:
            raise ValueError(f"the file holds {len(prepared.frames)} photographs: send one, or use reg4pru segment")
        (found,) = work.infer([prepared])
        if isinstance(found, StageError):
            raise found
        record = work.finish(prepared, found).record
        pictures = [(work.output / path).read_bytes() for path in record.outputs]
        for path in record.outputs:
            (work.output / path).unlink()
        values = {name: record.rows[0].get(name) for name in MEASURED}
        return {"error": None, **dict(zip(OUTPUTS, pictures, strict=True)), **values}

    def _prepare(self, work: Work, item: Item, photograph: Any) -> Prepared:
        if isinstance(photograph, np.ndarray):
            frame = work.frame(Photograph(photograph, 1, 1, {}))
            return Prepared(item, 0, 0, "", None, [frame], 0.0)
        if isinstance(photograph, str | os.PathLike):
            photograph = _file_or_data(os.fspath(photograph))
        if isinstance(photograph, bytes):
            Path(item.path).write_bytes(photograph)
            try:
                return work.prepare(item)
            finally:
                os.unlink(item.path)
        if isinstance(photograph, Path):
            return work.prepare(Item(item.name, str(photograph)))
        raise ValueError(f"a photograph is a path, bytes or an array, got {type(photograph).__name__}")


def _file_or_data(text: str) -> Path | bytes:
    """A file to open, or what base64 text holds. Raises ValueError.

    A server never opens a file by name: whoever reaches its port would see the photographs of its machine.
    """
    served = os.environ.get("_MLFLOW_IS_IN_SERVING_ENVIRONMENT") == "true"  # set by mlflow's scoring server
    if not served and (len(text) < _SHORTEST_DATA or os.path.isfile(text)):
        return Path(text)
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        wanted = "send the bytes of its file as base64; a server opens no path" if served else "check the path"
        raise ValueError(f"the photograph is text, but not base64: {wanted}") from None


def _load_pyfunc(path: str) -> ServedModel:
    """What MLflow calls to load a model. path: the checkpoint in the model folder."""
    return ServedModel(load_pipeline(path))


# --- the model folder ---------------------------------------------------------------------------------------------


def save_model(checkpoint: str | Path, folder: str | Path, mlflow_model: "Model | None" = None) -> None:
    """Write a model folder, to be loaded with ``mlflow.pyfunc.load_model`` where this package is installed.

    checkpoint: file written by a training; only its (average) weights and configuration are kept. mlflow_model: where
    the folder belongs, for `log_model`. Raises CheckpointError, and MlflowException for a folder that is not empty.
    """
    pipeline = load_pipeline(checkpoint, "cpu")
    settings = settings_of(pipeline, outputs=OUTPUTS)
    network, state = averaged_weights(checkpoint)
    with TemporaryDirectory() as scratch, calm():
        weights = Path(scratch) / "model.pt"
        save_checkpoint(weights, {"network": network, "configuration": state["configuration"]})
        _pyfunc().save_model(
            path=str(folder),
            loader_module=__name__,
            data_path=str(weights),
            mlflow_model=mlflow_model,
            signature=_signature(settings.threshold, pipeline.by_angle),
            input_example=[_example()],
            pip_requirements=requirements(),
            metadata={"settings": settings.to_dict(), "settings_digest": settings.digest},
        )


def _pyfunc() -> Any:
    """mlflow.pyfunc, without what it warns of in its own definitions at the first import."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*Any type hint is inferred as AnyType", UserWarning)
        import mlflow.pyfunc
    return mlflow.pyfunc


def requirements() -> list[str]:
    """What a model needs, in the versions it was written with; MLflow adds itself."""
    found = [f"reg4pru-monai=={__version__}"]
    return found + [f"{name}=={metadata.version(name).split('+')[0]}" for name in _PACKAGES]  # indexes know no +cpu


def _signature(threshold: float, by_angle: bool) -> "ModelSignature":
    _pyfunc()
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, ParamSchema, ParamSpec, Schema

    names = ("millimetres_per_pixel", "angle") if by_angle else ("millimetres_per_pixel",)
    unset = [ParamSpec(name, "double", None) for name in names]
    parameters = [ParamSpec("threshold", "double", threshold), *unset]
    outputs: list[Any] = [ColSpec(_kind(name), name, required=False) for name in COLUMNS]
    # Unnamed, so that a plain list will do; of any type, as MLflow fails the whole request for one bad base64 text.
    return ModelSignature(Schema([ColSpec(AnyType())]), Schema(outputs), ParamSchema(parameters))


def _kind(name: str) -> str:
    """MLflow's type of an output column."""
    if name in OUTPUTS:
        return "binary"
    return "string" if name in _TEXT else "long" if name in _WHOLE else "double"


def _example() -> str:
    """A small generated photograph as base64."""
    return base64.b64encode(imagecodecs.png_encode(make_phantom((96, 112), seed=0).image)).decode()


# --- the registry -------------------------------------------------------------------------------------------------


class Logged(NamedTuple):
    """A model in an MLflow store. model_uri: ``models:/<model id>``."""

    tracking_uri: str
    run_id: str
    model_id: str

    @property
    def model_uri(self) -> str:
        """What ``mlflow.pyfunc.load_model`` takes."""
        return f"models:/{self.model_id}"


class Registered(NamedTuple):
    """A version of a registered model; alias is None where none was asked for."""

    name: str
    version: int
    alias: str | None
    logged: Logged

    @property
    def model_uri(self) -> str:
        """By the alias, which follows a later registration, or by the version."""
        return f"models:/{self.name}@{self.alias}" if self.alias else f"models:/{self.name}/{self.version}"


def log_model(
    checkpoint: str | Path,
    run_id: str | None = None,
    tracking_uri: str | None = None,
    experiment: str = "fundus_vessels",
) -> Logged:
    """Put the model of a checkpoint into MLflow, once: where its run has it already, that one is returned.

    run_id: run it belongs to; default: that of the training where the store has it, else a run of its own.
    tracking_uri: default: ``MLFLOW_TRACKING_URI``, else the SQLite store of the training, else runs/mlflow.db.
    Raises CheckpointError, ConnectionError where the store is not there, and what mlflow raises.
    """
    _pyfunc()
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    uri = store_of(checkpoint, tracking_uri)
    with TemporaryDirectory() as scratch, calm():
        client = _client(uri)
        run_id = run_id or _run_of_training(client, Path(checkpoint)) or _own_run(uri, experiment, checkpoint)
        run, tags = client.get_run(run_id), {"checkpoint_sha256": _digest(checkpoint)}
        if earlier := _already_logged(client, run, tags):
            return Logged(uri, run_id, earlier)
        model = client.create_logged_model(
            run.info.experiment_id, _model_name(run.info.run_name), run_id, tags=tags, params=run.data.params
        )
        folder, place = str(Path(scratch) / "model"), model.artifact_location
        try:
            save_model(checkpoint, folder, Model(place, run_id, model_uuid=model.model_id, model_id=model.model_id))
            client.log_model_artifacts(model.model_id, folder)
        except BaseException:
            with suppress(Exception):  # the store may be what went away
                client.finalize_logged_model(model.model_id, "FAILED")
            raise
        client.finalize_logged_model(model.model_id, "READY")
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        _link_metrics(client, run_id, model.model_id)
    return Logged(uri, run_id, model.model_id)


def _model_name(run_name: str) -> str:
    """The name of its run, as far as MLflow allows; models of the same name cannot be told apart when compared."""
    return re.sub(r"[/:.%\"']", "-", run_name)


def _link_metrics(client: Any, run_id: str, model_id: str) -> None:
    """Attach the result of a run to its model: MLflow compares models by the metrics that were logged for them."""
    from mlflow.entities import Metric

    found = [
        Metric(name, each.value, each.timestamp, each.step, model_id, run_id=run_id)
        for name in client.get_run(run_id).data.metrics
        if not name.startswith(("train/", "validation/", "system/"))
        for each in client.get_metric_history(run_id, name)[-1:]
    ]
    client.log_batch(run_id, metrics=found)


def _digest(checkpoint: str | Path) -> str:
    with open(checkpoint, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def _already_logged(client: Any, run: Any, tags: Mapping[str, str]) -> str | None:
    """Id of a finished model of this run with these tags."""
    for output in run.outputs.model_outputs if run.outputs else []:
        model = client.get_logged_model(output.model_id)
        if tags.items() <= model.tags.items() and str(model.status) == "READY":
            return str(model.model_id)
    return None


def register(
    checkpoint: str | Path, name: str, alias: str | None = None, tracking_uri: str | None = None
) -> Registered:
    """Log the model of a checkpoint (see `log_model`) as the next version of ``name``, and move the alias to it.

    Raises CheckpointError, ConnectionError where the store is not there, ValueError for an alias that MLflow would
    refuse, and what mlflow raises.
    """
    from mlflow.exceptions import MlflowException

    _check_alias(alias)
    load_pipeline(checkpoint, "cpu")  # a bad checkpoint must not leave a name without versions
    with calm():
        client = _client(store_of(checkpoint, tracking_uri))
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        logged = log_model(checkpoint, tracking_uri=tracking_uri)
        place = client.get_logged_model(logged.model_id).artifact_location  # models:/ID is looked up in another store
        made = client.create_model_version(name, place, logged.run_id, model_id=logged.model_id)
        if alias:
            client.set_registered_model_alias(name, alias, made.version)
    return Registered(name, int(made.version), alias, logged)


def store_of(checkpoint: str | Path, tracking_uri: str | None = None) -> str:
    """The MLflow store for a checkpoint; see `log_model`. Raises ValueError for "none"."""
    training = _training_of(Path(checkpoint))
    uri = resolve_uri(tracking_uri, store_folder(training) if training else Path("runs"))
    if uri == "none":
        raise ValueError('the tracking URI is "none": give --tracking-uri URI of the store that is to hold the model')
    return uri


def _client(uri: str) -> Any:
    """Raises ConnectionError within seconds where nothing is there."""
    from mlflow.tracking import MlflowClient

    try:
        RunStore(uri, "").probe()
    except (OSError, sqlite3.Error) as error:
        raise ConnectionError(
            f"MLflow at {masked(uri)} cannot be used ({reason(error)}); start it, or give another --tracking-uri"
        ) from error
    return MlflowClient(tracking_uri=uri)


def _training_of(checkpoint: Path) -> Path | None:
    """The output folder of the training that wrote <folder>/checkpoints/best.pt."""
    folder = checkpoint.resolve().parent.parent
    return folder if (folder / JOURNAL_NAME).is_file() else None


def _run_of_training(client: Any, checkpoint: Path) -> str | None:
    """The run of the training that wrote the checkpoint, where this store has it."""
    from mlflow.exceptions import MlflowException

    folder = _training_of(checkpoint)
    records = read_journal(folder) if folder else []
    for record in reversed(records):
        if record["kind"] == "run_id" and record["run"] == records[-1]["run"]:
            with suppress(MlflowException):
                if client.get_run(record["run_id"]).info.lifecycle_stage == "active":
                    return str(record["run_id"])
    return None


def _own_run(uri: str, experiment: str, checkpoint: str | Path) -> str:
    """A run that holds nothing but the model."""
    store = RunStore(uri, experiment)
    store.open(None, unique_name("model"), now())
    configuration = load_checkpoint(checkpoint)["configuration"]
    store.send([{"parameters": flatten(configuration), "tags": environment_tags()}])
    store.finish("FINISHED")
    return store.run_id


def _check_alias(alias: str | None) -> None:
    if alias is not None and not re.fullmatch(r"(?!(latest|v\d+)$)[\w-]+", alias, re.IGNORECASE):
        raise ValueError(f"alias must be a word such as champion, and not latest or v1, got {alias!r}")
