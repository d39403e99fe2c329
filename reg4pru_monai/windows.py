"""Sliding windows over fundus photographs: window geometry, then a MONAI inferer that skips what no one looks at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import Inferer

BACKGROUND_LOGIT = -30.0  # written outside the field of view: a probability of 1e-13, finite in half precision
BLENDS = ("gaussian", "constant")
FLIPS = ((), (-1,), (-2,), (-1, -2))  # axes
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


Place = tuple[int, int, int]


@lru_cache(maxsize=8)
def _importance(window: tuple[int, int], blend: str, device: torch.device) -> torch.Tensor:
    """Weight of a window's pixels, (h, w) float32. Shared between calls: never written to."""
    with torch.inference_mode(False):  # an inference tensor could not serve a later call that needs gradients
        return compute_importance_map(window, blend, GAUSSIAN_SCALE, device=device)


@lru_cache(maxsize=4)
def _normaliser(
    size: tuple[int, int], window: tuple[int, int], overlap: float, blend: str, device: torch.device
) -> torch.Tensor:
    """Sum of the weights of all windows at every pixel, (H, W) float32. Shared between calls: never written to."""
    weight = _importance(window, blend, device)
    with torch.inference_mode(False):
        total = torch.zeros(size, device=device)
        for row, column in window_positions(size, window, overlap):
            total[row : row + window[0], column : column + window[1]] += weight
    return total


class FundusWindowInferer(Inferer):
    """Sliding-window inference that blends logits and never computes a window without field of view.

    window_size: pixels (h, w), or one number for a square, or None for the whole image in one forward.
    overlap: fraction shared by neighbouring windows, in [0, 1). batch_size: windows per forward, from all images of a
        batch together; by default 8, and 2 on a CPU, where more fall out of its cache and run slower.
    blend: "gaussian" weights a window's centre more, "constant" weights all pixels alike.
    flips: average the probabilities of every window as it is and flipped along either axis and both; four forwards.
    device: where the result is put together (e.g. "cpu" saves GPU memory); by default where the image is.

    Memory beside the network's own: the result (B, 1, H, W) float32, a copy of the image, and the weights of the
    last four image sizes, (H, W) float32 each, which photographs of one size share. Calls share nothing else, so that
    one inferer serves several threads.
    """

    def __init__(
        self,
        window_size: int | Sequence[int] | None,
        overlap: float = 0.25,
        batch_size: int | None = None,
        blend: str = "gaussian",
        device: torch.device | str | None = None,
        flips: bool = False,
    ) -> None:
        super().__init__()
        window = (window_size, window_size) if isinstance(window_size, int) else window_size
        _check_geometry((1, 1) if window is None else window, overlap)
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if blend not in BLENDS:
            raise ValueError(f"blend must be one of {BLENDS}, got {blend!r}")
        self.window_size = None if window is None else (int(window[0]), int(window[1]))
        self.overlap, self.batch_size, self.blend, self.device = overlap, batch_size, blend, device
        self.flips = flips

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
            returns logits (b, 1, h, w). The windows are in channels_last layout, in which convolutions are faster.
        Returns logits (B, 1, H, W) float32, BACKGROUND_LOGIT outside the field of view.
        """
        image, inside = plain(inputs), None if fov is None else plain(fov)
        _check_inputs(image, inside)
        fovs = None if inside is None else inside.unbind(0)
        logits = torch.stack(self.each(image.unbind(0), lambda *batch: network(*batch, *args, **kwargs), fovs))
        return MetaTensor(logits).copy_meta_from(inputs, copy_attr=False) if isinstance(inputs, MetaTensor) else logits

    def each(
        self,
        images: Sequence[torch.Tensor],
        network: Callable[..., torch.Tensor],
        fovs: Sequence[torch.Tensor] | None = None,
    ) -> list[torch.Tensor]:
        """The same for images of different sizes, whose windows share the forwards.

        images: (C, H, W) each, on one device. fovs: (1, H, W) each, or None. Returns logits (1, H, W) each.
        """
        canvases = [
            _canvas(image, None if fovs is None else fovs[number], self.window_size)
            for number, image in enumerate(images)
        ]
        windows = sorted(
            (canvas.window, -filled, number, row, column)
            for number, canvas in enumerate(canvases)
            for filled, row, column in _filled(canvas, self.overlap)
        )
        totals = self._blend(canvases, [(number, row, column) for _, _, number, row, column in windows], network)
        return [canvas.result(total) for canvas, total in zip(canvases, totals, strict=True)]

    def _blend(
        self,
        canvases: Sequence[_Canvas],
        windows: Sequence[tuple[int, int, int]],
        network: Callable[..., torch.Tensor],
    ) -> list[torch.Tensor]:
        """Weighted mean of the windows' logits, (1, 1, H, W) float32 for each canvas; 0 where none was computed.

        windows: (canvas, row, column); those of one size follow each other.
        """
        device = torch.device(self.device) if self.device is not None else canvases[0].image.device
        totals = [torch.zeros((1, 1, *canvas.image.shape[-2:]), device=device) for canvas in canvases]
        together = self.batch_size or (2 if canvases[0].image.device.type == "cpu" else 8)
        for (h, w), group in groupby(windows, key=lambda place: canvases[place[0]].window):
            weight = _importance((h, w), self.blend, device)
            for batch in _batches(list(group), together):
                places = [(number, (..., slice(r, r + h), slice(c, c + w))) for number, r, c in batch]
                parts = [torch.cat([canvases[number].image[place] for number, place in places])]
                insides = [(canvases[number].inside, place) for number, place in places]
                if fovs := [inside[place] for inside, place in insides if inside is not None]:
                    parts.append(torch.cat(fovs))
                logits = _over_flips(network, parts) if self.flips else network(*parts)
                _check_logits(logits, (len(batch), 1, h, w))
                found = plain(logits).to(device, torch.float32).split(1)
                for (number, place), logit in zip(places, found, strict=True):
                    totals[number][place].addcmul_(logit, weight)
        for canvas, total in zip(canvases, totals, strict=True):
            # Where a window was left out there is no field of view, so the weights of all windows do for every image.
            size = (total.shape[-2], total.shape[-1])
            total.div_(_normaliser(size, canvas.window, self.overlap, self.blend, device))
        return totals


def _over_flips(network: Callable[..., torch.Tensor], parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Logit of the mean probability over the four flips of a batch of windows, (b, 1, h, w) float32.

    parts: windows (b, C, h, w), and their field of view where there is one. In logarithms, as float32 has no
    probability between 1 - 6e-8 and 1.
    """
    found = []
    for axes in FLIPS:
        logits = plain(network(*(part.flip(axes).contiguous(memory_format=torch.channels_last) for part in parts)))
        found.append(logits.float().flip(axes))
    stacked = torch.stack(found)
    return F.logsigmoid(stacked).logsumexp(0) - F.logsigmoid(-stacked).logsumexp(0)


class _Canvas(NamedTuple):
    """An image that windows are cut from.

    image: (1, C, H, W), padded to at least the window, channels_last, a layout that slices and torch.cat keep. inside:
    (1, 1, H, W) bool, or None. window: (h, w). padding: (left, right, top, bottom).
    """

    image: torch.Tensor
    inside: torch.Tensor | None
    window: tuple[int, int]
    padding: tuple[int, int, int, int]

    def result(self, logits: torch.Tensor) -> torch.Tensor:
        """(1, 1, H, W) -> (1, h, w) without the padding, background outside the field of view."""
        if self.inside is not None:
            logits.masked_fill_(~self.inside.to(logits.device), BACKGROUND_LOGIT)
        left, right, top, bottom = self.padding
        return logits[0, :, top : logits.shape[-2] - bottom, left : logits.shape[-1] - right]


def _canvas(image: torch.Tensor, fov: torch.Tensor | None, window_size: tuple[int, int] | None) -> _Canvas:
    window = window_size or (image.shape[-2], image.shape[-1])
    padding = _padding((image.shape[-2], image.shape[-1]), window)
    padded = _padded(plain(image)[None], padding).contiguous(memory_format=torch.channels_last)
    inside = None if fov is None else _padded(plain(fov)[None].to(image.device) > 0, padding)
    return _Canvas(padded, inside, window, padding)


def _filled(canvas: _Canvas, overlap: float) -> list[tuple[int, int, int]]:
    """(pixels of the field of view, row, column) of the windows that hold any.

    By their number, windows of similar content can share a forward, whose cost is that of the fullest one.
    """
    h, w = canvas.window
    positions = window_positions((canvas.image.shape[-2], canvas.image.shape[-1]), canvas.window, overlap)
    if canvas.inside is None:
        return [(h * w, *position) for position in positions]
    rows, columns = ([*dict.fromkeys(starts)] for starts in zip(*positions, strict=True))
    # Along the columns, then along the rows: no pixel is counted for every window it lies in.
    strips = torch.stack([canvas.inside[0, 0, :, c : c + w].sum(1) for c in columns], dim=1)
    counts = torch.stack([strips[r : r + h].sum(0) for r in rows]).flatten().tolist()
    return [(count, *position) for count, position in zip(counts, positions, strict=True) if count]


def _batches(items: Sequence[Place], size: int) -> Iterator[Sequence[Place]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """Without metadata, whose bookkeeping costs time at every slice."""
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor


def _padding(size: tuple[int, int], window: tuple[int, int]) -> tuple[int, int, int, int]:
    """(left, right, top, bottom) pixels that bring an image to at least the window, centred."""
    rows, columns = (max(w - s, 0) for s, w in zip(size, window, strict=True))
    return columns // 2, columns - columns // 2, rows // 2, rows - rows // 2


def _padded(tensor: torch.Tensor, padding: tuple[int, int, int, int]) -> torch.Tensor:
    """With zeros around it; itself, not a copy, where there are none to add."""
    return F.pad(tensor, padding) if any(padding) else tensor


def _check_inputs(image: torch.Tensor, inside: torch.Tensor | None) -> None:
    if image.ndim != 4:
        raise ValueError(f"inputs must be (B, C, H, W), got shape {tuple(image.shape)}")
    expected = (image.shape[0], 1, *image.shape[2:])
    if inside is not None and tuple(inside.shape) != expected:
        raise ValueError(f"fov must be (B, 1, H, W) = {expected} like the inputs, got shape {tuple(inside.shape)}")


def _check_logits(logits: torch.Tensor, expected: tuple[int, int, int, int]) -> None:
    if tuple(logits.shape) != expected:
        raise ValueError(f"the network must return logits of shape {expected}, got {tuple(logits.shape)}")
