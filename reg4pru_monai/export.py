"""A network in forms that run without this package, each checked before it appears: ONNX, torch.export, TorchScript."""

import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .files import replacing
from .fundus.phantom import make_phantom
from .inference import load_pipeline
from .networks import transformer
from .policies import Trace
from .segmenter import Segmenter

SMALLEST = 32  # pixels
Run = Callable[[Tensor], Tensor]


class ExportError(RuntimeError):
    """A network that cannot be exported, or a file that does not compute what the network does."""


class Format(NamedTuple):
    """write: (network, images (B, 3, H, W), path), for this H and W and any B. read: path -> images to logits.

    tolerance: largest difference of a logit, as a share of the largest logit.
    """

    write: Callable[[Segmenter, Tensor, Path], None]
    read: Callable[[Path], Run]
    tolerance: float


def export_checkpoint(
    checkpoint: str | Path,
    target: str | Path,
    size: int = 256,
    keep_rate: float | None = None,
    device: str = "cpu",
) -> float:
    """Load a checkpoint and export its network.

    keep_rate: share of the tokens kept at each stage, 1.0 prunes nothing; default: as trained. device: where .pt2 and
    .ts files are to run. The rest, what is returned and the errors: as :func:`export`; also raises CheckpointError.
    """
    network = transformer(load_pipeline(checkpoint, device, keep_rate).network, "export")
    return export(network, target, size)


def export(network: Segmenter, target: str | Path, size: int = 256) -> float:
    """Write a network for square images of one size, compare the file with the network, and rename it into place.

    target: ends with .onnx, .pt2 (torch.export) or .ts (TorchScript). What is written takes images (B, 3, size, size)
    float32, normalised, B free, and returns logits (B, 1, size, size); it refuses another size. size: pixels. Returns
    the largest difference of a logit, as a share of the largest logit. Raises ExportError, ValueError and OSError; an
    earlier file at ``target`` stays whole then.
    """
    target = Path(target)
    if target.suffix not in FORMATS:
        raise ExportError(f"target must end with one of {', '.join(FORMATS)}, got {target.name!r}")
    if size < SMALLEST:
        raise ValueError(f"size must be at least {SMALLEST} pixels, got {size}")
    written = FORMATS[target.suffix]
    network = copy.deepcopy(network).eval()
    with torch.no_grad(), replacing(target) as beside:
        images = probes(network, size)
        with _quiet():
            written.write(network, images[:2], beside)
        difference = _difference(written.read(beside), network, images)
        if not difference <= written.tolerance:
            raise ExportError(
                f"{target}: not written: its logits would differ from the network's by {difference:.1e} of the largest "
                f"logit, where {written.tolerance:.0e} is allowed; other versions of torch or onnx may help"
            )
    return difference


@torch.no_grad()
def probes(network: Segmenter, size: int, count: int = 3) -> Tensor:
    """Images to compare on: (count, 3, size, size) float32, cut from a generated photograph, turned and mirrored.

    Of eight, those whose tokens are selected most clearly: where the scores of two tokens are equal up to rounding,
    another program may keep the other one and be right as well.
    """
    photograph = make_phantom((3 * size // 2, 3 * size // 2), seed=0).image
    edge = size // 4  # what is cut off lies outside the field of view, or nearly so
    pixels = photograph[edge : edge + size, edge : edge + size].astype(np.float32)
    image = torch.from_numpy((pixels - pixels.mean()) / pixels.std()).permute(2, 0, 1)
    turned = [torch.rot90(each, turns, (1, 2)) for each in (image, image.flip(2)) for turns in range(4)]
    images = torch.stack(turned).to(next(network.parameters()).device)
    clear = torch.tensor([_margin(network.forward_with_trace(each[None])[1]) for each in images])
    return images[clear.argsort(descending=True, stable=True)[:count].to(images.device)]


def _margin(trace: Trace) -> float:
    """By how much the tokens kept score higher than those dropped, at the closest stage; infinite without pruning."""
    gaps = [
        record.score.masked_fill(record.keep < 0.5, torch.inf).amin()
        - record.score.masked_fill(record.keep >= 0.5, -torch.inf).amax()
        for record in trace.stages
    ]
    return float(min(gaps, default=torch.inf))


def _difference(run: Run, network: Segmenter, images: Tensor) -> float:
    """Largest difference of a logit as a share of the largest logit, over one batch of all images and one of one."""
    expected = network(images)
    found = torch.cat((run(images), run(images[:1])))
    return float((found.to(expected) - torch.cat((expected, network(images[:1])))).abs().max() / expected.abs().max())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters say of themselves and of packages that are not needed."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _write_onnx(network: Segmenter, images: Tensor, path: Path) -> None:
    try:
        import onnxruntime  # noqa: F401  # not needed before the comparison, which is too late to say so
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError(f"{error}; writing .onnx needs: pip install onnx onnxscript onnxruntime") from None
    torch.onnx.export(
        network,
        (images,),
        path,
        dynamo=True,
        verbose=False,
        external_data=False,  # one file, so that it is there as a whole or not at all
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes={"image": {0: "batch"}},
    )


def _read_onnx(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"image": images.numpy(force=True)})[0])


def _write_program(network: Segmenter, images: Tensor, path: Path) -> None:
    batch = {0: torch.export.Dim("batch")}
    torch.export.save(torch.export.export(network, (images,), dynamic_shapes={"image": batch}), path)


def _read_program(path: Path) -> Run:
    return torch.export.load(path).module()


def _write_script(network: Segmenter, images: Tensor, path: Path) -> None:
    torch.jit.trace(network, (images,), check_trace=False).save(path)


def _read_script(path: Path) -> Run:
    return torch.jit.load(path)


FORMATS = {
    ".onnx": Format(_write_onnx, _read_onnx, 1e-4),
    ".pt2": Format(_write_program, _read_program, 1e-5),
    ".ts": Format(_write_script, _read_script, 1e-5),
}
