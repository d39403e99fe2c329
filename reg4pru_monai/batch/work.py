"""What is done with one photograph: read, prepare, compute, measure, write. Engines decide where and when."""

import copy
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.data import MetaTensor
from torch import Tensor

from ..evaluation import restored
from ..fundus import FieldOfView
from ..inference import Pipeline
from .failures import (
    DeviceError,
    NetworkError,
    ProcessEndedError,
    StageError,
    WriteError,
    error_row,
    is_device_lost,
    is_fatal,
    is_out_of_memory,
)
from .inputs import Item
from .journal import STATE, Record
from .measurements import measure_vessels
from .names import output_name, path_within, sample_name
from .photograph import Photograph, read_photographs
from .quality import quality_indicators
from .settings import Settings
from .store import FolderStore, Store, store_of
from .volumes import encode_dicom_seg
from .writers import WRITERS, Outputs, Result, encode_thumbnail


class Frame(NamedTuple):
    """A frame that the network can take.

    item: image (3, h, w) and fov (1, h, w) at canonical scale. angle: of view, degrees, where it is known.
    """

    photograph: Photograph
    item: dict[str, MetaTensor]
    angle: float | None


class Prepared(NamedTuple):
    """A file that was read. source: its bytes where a segmentation must copy from them. seconds: spent on it so far."""

    item: Item
    size: int
    mtime_ns: int
    sha256: str
    source: bytes | None
    frames: list[Frame]
    seconds: float

    @property
    def pixels(self) -> int:
        """Of all frames, at the size of the photograph."""
        return sum(frame.photograph.pixels[..., 0].size for frame in self.frames)


class Inferred(NamedTuple):
    """What the network said. logits: (1, h, w) of every frame, on the CPU. tokens: share of them computed."""

    logits: list[Tensor]
    tokens: float
    seconds: float


class Finished(NamedTuple):
    """record: of a file. archived: outputs that are still to be put into an archive, by their names there."""

    record: Record
    archived: dict[str, bytes]


class Work:
    """The steps, for one network and one output folder. ``prepare`` and ``finish`` may run in many threads.

    thumbnails: names of the photographs whose picture the report will show.
    """

    def __init__(self, pipeline: Pipeline, settings: Settings, output: Path, thumbnails: frozenset[str] = frozenset()):
        self.pipeline = pipeline
        self.settings = settings
        self.output = output
        self.thumbnails = thumbnails

    @property
    def store(self) -> Store:
        """Where outputs go."""
        return store_of(self.output, self.settings.store)

    def prepare(self, item: Item) -> Prepared:
        """Read and prepare a file. Raises StageError."""
        started, stage = time.perf_counter(), "read"
        try:
            size, changed = item.status()
            source = read_photographs(
                item.path, max_pixels=self.settings.max_pixels, identifiers=self.settings.identifiers
            )
            frames = []
            for photograph in source.photographs:
                stage = "prepare"
                frames.append(self.frame(photograph, item.angle))
        except Exception as error:
            raise StageError(stage, error) from error
        copied = "dicom-seg" in self.settings.outputs and frames[0].photograph.details["format"] == "DICOM"
        data = source.data if copied else None
        return Prepared(item, size, changed, source.sha256, data, frames, time.perf_counter() - started)

    def frame(self, photograph: Photograph, told: float | None = None) -> Frame:
        """Prepare a photograph. told: its angle of view, in degrees, where its manifest has it."""
        angle = _angle(told, self.settings, photograph)
        return Frame(photograph, self.pipeline.prepare(photograph.pixels, angle), angle)

    def infer(self, files: Sequence[Prepared]) -> list[Inferred | StageError]:
        """Run the network over files whose windows share the forwards; what fails together is tried one by one."""
        try:
            return list(self._infer(files))
        except Exception as error:
            if is_device_lost(error):
                raise DeviceError(f"the device {self.pipeline.device} failed: {error}") from error
            # Without its traceback, which holds the tensors of the attempt: a smaller one needs their memory.
            failure = error.with_traceback(None)
        if len(files) > 1:
            return [self.infer([file])[0] for file in files]
        return [self._infer_small(files[0], failure)]

    def _infer(self, files: Sequence[Prepared], windows: int | None = None) -> list[Inferred]:
        started = time.perf_counter()
        frames = [frame for file in files for frame in file.frames]
        network = _Counting(self.pipeline.network)
        inferer = copy.copy(self.pipeline.inferer)
        inferer.batch_size = windows or inferer.batch_size
        device = self.pipeline.device
        images, fovs = ([frame.item[key].as_tensor().to(device) for frame in frames] for key in ("image", "fov"))
        with torch.inference_mode():
            logits = [each.float().cpu() for each in inferer.each(images, network, fovs)]
        if not all(bool(torch.isfinite(each).all()) for each in logits):
            raise NetworkError("the network returned values that are not numbers")
        spent, rest = (time.perf_counter() - started) / len(files), iter(logits)
        return [Inferred([next(rest) for _ in file.frames], network.share, spent) for file in files]

    def _infer_small(self, file: Prepared, error: Exception) -> Inferred | StageError:
        """After memory ran out: once more, window by window."""
        if is_out_of_memory(error):
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            try:
                return self._infer([file], windows=1)[0]
            except Exception as second:
                error = second.with_traceback(None)
        return StageError("network", error)

    def finish(self, file: Prepared, found: Inferred) -> Finished:
        """Measure and write. Raises StageError, and WriteError where the output folder or the store fails."""
        started, stage = time.perf_counter(), "measure"
        try:
            rows, masks = [], []
            outputs = Outputs(file.item.name, None if self.settings.archives else self.store)
            for frame, logits in zip(file.frames, found.logits, strict=True):
                stage = "measure"
                result, row = self._measured(frame, logits)
                stage = "write"
                self._write(file, frame, result, outputs)
                masks.append(result.mask)
                rows.append({"sha256": file.sha256, "tokens_computed_fraction": found.tokens, **row})
            if file.source is not None:
                digests = self.settings.weights, self.settings.digest
                outputs.add("dicom-seg", encode_dicom_seg(file.source, masks, *digests))
        except Exception as error:
            if isinstance(error, WriteError):
                raise
            if stage == "write" and is_fatal(error):
                raise WriteError(getattr(error, "errno", None), f"{self.output}: {error}") from error
            raise StageError(stage, error) from error
        spent = file.seconds + found.seconds + time.perf_counter() - started
        own = {"path": file.item.name, "status": "done", "seconds": round(spent, 4)}
        finite = [{key: _finite(value) for key, value in {**own, **row}.items()} for row in rows]
        if self.settings.archives:
            outputs.archived[f"{sample_name(file.item.name)}.json"] = json.dumps(finite).encode()
        record = Record(file.item.name, "done", file.size, file.mtime_ns, finite, None, outputs.sizes, file.item.angle)
        return Finished(record, outputs.archived)

    def failed(self, item: Item, error: StageError) -> Record:
        """The record of a file that could not be segmented."""
        size, changed = _status(item)
        row = {"path": item.name, "status": "failed"}
        error_columns = error_row(item, error.stage, error.cause)
        return Record(item.name, "failed", size, changed, [row], error_columns, {}, item.angle)

    def given_up(self, item: Item) -> Record:
        """The record of a file that ended the process whenever it was tried."""
        error = ProcessEndedError("the process ended, perhaps killed by the system, whenever it worked on this file")
        return self.failed(item, StageError("process", error))

    def _measured(self, frame: Frame, logits: Tensor) -> tuple[Result, dict[str, Any]]:
        photograph = frame.photograph
        fov = FieldOfView.from_dict(frame.item["image"].meta["fov"])
        # Shared by threads: what MONAI marks while it inverts belongs to the step that reads, which is not used here.
        probability = restored(frame.item, logits[None], self.pipeline.preprocessing)[0].numpy()
        mask = probability >= self.settings.threshold
        spacing = _spacing(photograph, self.settings.millimetres_per_pixel)
        pixels = photograph.pixels
        row = {
            "frame": photograph.frame,
            "height_px": pixels.shape[0],
            "width_px": pixels.shape[1],
            **photograph.details,
            "angle_of_view_deg": frame.angle,
            "fov_center_row_px": fov.center[0],
            "fov_center_column_px": fov.center[1],
            "fov_diameter_px": fov.diameter,
            "fov_confidence": fov.confidence,
            "fov_full_frame": int(fov.full_frame),
            **quality_indicators(pixels, fov),
            **measure_vessels(mask, fov, _scale(spacing)),
        }
        return Result(pixels, probability, mask, spacing), row

    def _write(self, file: Prepared, frame: Frame, result: Result, outputs: Outputs) -> None:
        if file.item.name in self.thumbnails and frame is file.frames[0]:
            FolderStore(self.output).put(_thumbnail(file.item.name), encode_thumbnail(result))
        number = frame.photograph.frame if len(file.frames) > 1 else None
        for kind in self.settings.outputs:
            if kind in WRITERS:
                outputs.add(kind, WRITERS[kind].encode(result), number)


class _Counting:
    """The network, and how many of the tokens it was given its blocks computed."""

    def __init__(self, network: Any) -> None:
        self.network = network
        self.computed = self.possible = 0

    def __call__(self, windows: Tensor, fov: Tensor | None = None) -> Tensor:
        logits, lengths = self.network.forward_with_lengths(windows, fov)
        patch = self.network.patch_embed.patch
        grid = -(-windows.shape[-2] // patch) * -(-windows.shape[-1] // patch)
        self.computed += len(windows) * sum(lengths)
        self.possible += len(windows) * len(lengths) * grid
        return logits

    @property
    def share(self) -> float:
        """See the column tokens_computed_fraction."""
        return self.computed / max(self.possible, 1)


def thumbnail_path(output: Path, name: str) -> Path:
    """Where the report finds the small picture of a photograph."""
    return path_within(output, _thumbnail(name))


def _thumbnail(name: str) -> str:
    return output_name(f"{STATE}/thumbnails", name, ".jpg")


def _spacing(photograph: Photograph, given: float | None) -> tuple[float, float] | None:
    """Millimetres per row and column: what the user says, or what the file says."""
    if given is not None:
        return given, given
    found = [photograph.details.get(f"{axis}_spacing_mm") for axis in ("row", "column")]
    return (float(found[0]), float(found[1])) if all(found) else None  # type: ignore[arg-type]


def _angle(told: float | None, settings: Settings, photograph: Photograph) -> float | None:
    """Degrees of view: what the manifest says of the photograph, else the user of all, else the file."""
    known: tuple[Any, ...] = (told, settings.angle, photograph.details.get("angle_of_view_deg"))
    return next((angle for angle in known if angle is not None), None)


def _scale(spacing: tuple[float, float] | None) -> float | None:
    """Millimetres per pixel; None where rows and columns differ by more than 1 %: lengths would depend on direction."""
    if spacing is None or max(spacing) > 1.01 * min(spacing):
        return None
    return sum(spacing) / 2


def _finite(value: Any) -> Any:
    """The value, or None where it is no number, which JSON does not know."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _status(item: Item) -> tuple[int, int]:
    try:
        return item.status()
    except (OSError, ValueError):  # such as a name with a NUL
        return 0, 0
