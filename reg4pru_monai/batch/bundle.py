"""Bundles: inference.yaml runs the batch engine, and the command takes the network of any bundle."""

from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from ..fundus.angle import checked_angle
from ..inference import Pipeline
from ..runtime import ConfigurationError, root_cause
from .inputs import list_inputs, parse_shard
from .progress import Display
from .segment import segment_photographs
from .settings import SettingsError, settings_of

_KEYS = ("network", "preprocessing", "inferer", "torch_device")


def photographs(dataset_dir: Any, output_dir: str, angle: Any = None) -> list[dict[str, Any]]:
    """The photographs that inference was given, as MONAI wants a data list: path, name and angle of view."""
    told, items = checked_angle(angle) or "", list_inputs(_inputs(dataset_dir), output_dir).items
    return [{"image": item.path, "name": item.name, "angle": item.angle or told} for item in items]


def _inputs(dataset_dir: Any) -> list[str]:
    if not dataset_dir:
        raise ConfigurationError("inference needs photographs: give --dataset_dir FOLDER")
    # Fire makes a number of a folder called 2020.
    return [str(each) for each in (dataset_dir if isinstance(dataset_dir, list | tuple) else [dataset_dir])]


def run_bundle(
    dataset_dir: Any,
    output_dir: str,
    pipeline: Pipeline,
    workers: int,
    batch_size: int,
    overwrite: bool = False,
    root: Any = None,
    shard: str = "1/1",
    limit: int | None = None,
    **choices: Any,
) -> None:
    """The ``run`` of inference.yaml. Raises SystemExit with the status of the run where it is not 0."""
    display = Display()
    outputs = choices.get("outputs")
    if outputs is not None:
        choices["outputs"] = tuple(outputs.split(",") if isinstance(outputs, str) else outputs)
    summary = segment_photographs(
        _inputs(dataset_dir),
        str(output_dir),
        pipeline,
        settings_of(pipeline, **choices),
        workers=workers,
        batch_size=batch_size,
        overwrite=overwrite,
        root=None if root is None else str(root),
        part=parse_shard(shard),
        limit=limit,
        started=display.started,
        progress=display.progress,
    )
    display.ended(summary)
    if summary.exit_status:
        raise SystemExit(summary.exit_status)


def load_bundle(folder: Path, device: str) -> tuple[Pipeline, float | None]:
    """Network, preprocessing, windows and threshold as a bundle's inference.yaml defines them, which can run any code.

    The threshold is None where it says nothing of one. Raises SettingsError where the folder is no such bundle.
    """
    path = folder / "configs" / "inference.yaml"
    if not path.is_file():
        raise SettingsError(f"{folder}: no bundle for segmentation, it has no configs/inference.yaml")
    try:
        parser = ConfigParser()
        parser.read_config(str(path))
        parser.update({"bundle_root": str(folder.resolve()), "device": device})
        missing = [key for key in _KEYS if key not in parser]
        if missing:
            raise SettingsError(f"{path}: {', '.join(missing)} not defined there; only bundles of this project are run")
        threshold = parser.get_parsed_content("threshold") if "threshold" in parser else None
        return Pipeline(*(parser.get_parsed_content(key) for key in _KEYS)), threshold
    except SettingsError:
        raise
    except Exception as error:  # whatever its code raises
        cause = root_cause(error)
        raise SettingsError(f"{path}: the bundle cannot be loaded ({type(cause).__name__}: {cause})") from error
