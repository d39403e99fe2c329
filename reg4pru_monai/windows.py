"""Sliding windows over fundus photographs: window geometry, then a MONAI inferer that skips what no one looks at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import Inferer

BACKGROUND_LOGIT = -30.0  # written outside the field of view: a probability of 1e-13, finite in half precision
BLENDS = ("gaussian", "constant")
GAUSSIAN_SCALE = 0.125  # standard deviation / window size, MONAI's default


def window_positions(size: tuple[int, int], window: tuple[int, int], overlap: float) -> list[tuple[int, int]]:
    """Top-left corners (row, column) of the windows that cover an image, in row order.

    size: (H, W) pixels, at least the window; overlap: fraction shared by neighbours, in [0, 1). Windows advance by
    int(window * (1 - overlap)) pixels; the last one of a row or column is moved back to end at the image border.

    >>> window_positions((4, 11), (4, 4), 0.25)  # a step of 3; a window at 9 would leave the image: moved back to 7
    [(0, 0), (0, 3), (0, 6), (0, 7)]
    >>> window_positions((5, 4), (4, 4), 0.25)
    [(0, 0), (1, 0)]
    """
    _check_geometry(window, overlap)
    if size[0] < window[0] or size[1] < window[1]:
        raise ValueError(f"a window of {window} does not fit in an image of {size}: pad the image first")
    step = [max(1, int(w * (1 - overlap))) if w < s else s for s, w in zip(size, window, strict=True)]
    return [(int(rows.start), int(columns.start)) for rows, columns in dense_patch_slices(size, window, step)]


def _check_geometry(window: Sequence[int], overlap: float) -> None:
    if len(window) != 2 or min(window) < 1:
        raise ValueError(f"window_size must be one or two positive numbers of pixels, got {window}")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap must be in [0, 1), got {overlap}")


class _Window(NamedTuple):
    """Place of a window: image of the batch, first row, first column, and how many field-of-view pixels it holds."""

    image: int
    row: int
    column: int
    pixels: int


class FundusWindowInferer(Inferer):
    """Sliding-window inference that blends logits and never computes a window without field of view.

    window_size: pixels (h, w), or one number for a square, or None for the whole image in one forward.
    overlap: fraction shared by neighbouring windows, in [0, 1). batch_size: windows per forward.
    blend: "gaussian" weights a window's centre more, "constant" weights all pixels alike.
    device: where the result is put together (e.g. "cpu" saves GPU memory); by default where the image is.
    """

    def __init__(
        self,
        window_size: int | Sequence[int] | None,
        overlap: float = 0.25,
        batch_size: int = 8,
        blend: str = "gaussian",
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        window = (window_size, window_size) if isinstance(window_size, int) else window_size
        _check_geometry((1, 1) if window is None else window, overlap)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if blend not in BLENDS:
            raise ValueError(f"blend must be one of {BLENDS}, got {blend!r}")
        self.window_size = None if window is None else (int(window[0]), int(window[1]))
        self.overlap, self.batch_size, self.blend, self.device = overlap, batch_size, blend, device

    def __call__(
        self,
        inputs: torch.Tensor,
        network: Callable[..., torch.Tensor],
        *args: Any,
        fov: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Run the network over the windows and blend its logits.

        inputs: (B, C, H, W); fov: (B, 1, H, W), > 0 inside the field of view, or None for the whole frame.
        network: called as network(windows (b, C, h, w), fov (b, 1, h, w) bool), or network(windows) when fov is None,
            returns logits (b, 1, h, w).
        Returns logits (B, 1, H, W) float32, BACKGROUND_LOGIT outside the field of view.
        """
        image, inside = plain(inputs), None if fov is None else plain(fov) > 0
        _check_inputs(image, inside)
        window = self.window_size or (image.shape[-2], image.shape[-1])
        padding = _padding((image.shape[-2], image.shape[-1]), window)
        image = F.pad(image, padding)
        inside = None if inside is None else F.pad(inside.to(image.device), padding)
        windows = self._plan(image, inside, window)
        logits = self._blend(image, inside, windows, window, lambda *batch: network(*batch, *args, **kwargs))
        if inside is not None:
            logits = torch.where(inside.to(logits.device), logits, BACKGROUND_LOGIT)
        left, right, top, bottom = padding
        logits = logits[..., top : logits.shape[-2] - bottom, left : logits.shape[-1] - right]
        return MetaTensor(logits).copy_meta_from(inputs, copy_attr=False) if isinstance(inputs, MetaTensor) else logits

    def _plan(self, image: torch.Tensor, inside: torch.Tensor | None, window: tuple[int, int]) -> list[_Window]:
        """Windows of all images that hold field of view, fullest first.

        Sorted so that a forward gets windows of similar content: its cost is that of the fullest one.
        """
        h, w = window
        positions = window_positions((image.shape[-2], image.shape[-1]), window, self.overlap)
        places = [(b, row, column) for b in range(len(image)) for row, column in positions]
        if inside is None:
            return [_Window(*place, pixels=h * w) for place in places]
        counts = torch.stack([inside[b, :, r : r + h, c : c + w].sum() for b, r, c in places]).tolist()
        windows = [_Window(*place, pixels=n) for place, n in zip(places, counts, strict=True) if n > 0]
        return sorted(windows, key=lambda item: -item.pixels)

    def _blend(
        self,
        image: torch.Tensor,
        inside: torch.Tensor | None,
        windows: list[_Window],
        window: tuple[int, int],
        network: Callable[..., torch.Tensor],
    ) -> torch.Tensor:
        """Weighted mean of the windows' logits (B, 1, H, W) float32; 0 where no window was computed."""
        h, w = window
        device = torch.device(self.device) if self.device is not None else image.device
        weight = compute_importance_map(window, self.blend, GAUSSIAN_SCALE, device=device)
        total = torch.zeros((len(image), 1, *image.shape[-2:]), device=device)
        norm = torch.zeros_like(total)
        for start in range(0, len(windows), self.batch_size):
            batch = windows[start : start + self.batch_size]
            places = [(b, slice(None), slice(r, r + h), slice(c, c + w)) for b, r, c, _ in batch]
            parts = [image] if inside is None else [image, inside]
            logits = network(*(torch.stack([part[place] for place in places]) for part in parts))
            _check_logits(logits, (len(batch), 1, h, w))
            for place, logit in zip(places, plain(logits).to(device, torch.float32), strict=True):
                total[place] += logit * weight
                norm[place] += weight
        return total / torch.where(norm > 0, norm, 1.0)


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """Without metadata, whose bookkeeping costs time at every slice."""
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor


def _padding(size: tuple[int, int], window: tuple[int, int]) -> tuple[int, int, int, int]:
    """(left, right, top, bottom) pixels that bring an image to at least the window, centred."""
    rows, columns = (max(w - s, 0) for s, w in zip(size, window, strict=True))
    return columns // 2, columns - columns // 2, rows // 2, rows - rows // 2


def _check_inputs(image: torch.Tensor, inside: torch.Tensor | None) -> None:
    if image.ndim != 4:
        raise ValueError(f"inputs must be (B, C, H, W), got shape {tuple(image.shape)}")
    expected = (image.shape[0], 1, *image.shape[2:])
    if inside is not None and tuple(inside.shape) != expected:
        raise ValueError(f"fov must be (B, 1, H, W) = {expected} like the inputs, got shape {tuple(inside.shape)}")


def _check_logits(logits: torch.Tensor, expected: tuple[int, int, int, int]) -> None:
    if tuple(logits.shape) != expected:
        raise ValueError(f"the network must return logits of shape {expected}, got {tuple(logits.shape)}")
