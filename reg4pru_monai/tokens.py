"""The token algebra: which tokens take a path, and how they come back. Pure functions on plain tuples, torch only.

Letters: B batch, N tokens of the full grid, K kept tokens, D channels.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Tokens(NamedTuple):
    """A set of tokens, in whatever order; nothing depends on the order.

    x: (B, N, D) float, features.
    pos: (B, N, 2) float, patch coordinates (row, column), centres at +0.5. B may be 1 where all images share them.
    weight: how far other tokens may attend to a token. (B, N) float in [0, 1] (soft keep), (B, N) bool (False is
        invisible), or None (all are visible, the fused attention kernel is used).
    """

    x: Tensor
    pos: Tensor
    weight: Tensor | None


class Route(NamedTuple):
    """Which tokens take a path.

    index: (B, K) int64, distinct positions in the full token set.
    valid: (B, K) bool, or None where all are valid. Images of one batch may keep different numbers of tokens; the
        shorter ones are padded with tokens that are not valid: never attended to and never written back.
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nothing calls
    valid: Tensor | None


def gather(tokens: Tokens, route: Route) -> Tokens:
    """Tokens (B, N, ...) -> the routed tokens (B, K, ...)."""
    batch = route.index.shape[0]
    x = _take(tokens.x, route.index)
    pos = _take(tokens.pos.expand(batch, -1, -1), route.index)
    weight, valid = tokens.weight, route.valid
    if weight is not None:
        weight = weight.expand(batch, -1).gather(1, route.index)
    if valid is not None:
        weight = valid if weight is None else weight * valid
    return Tokens(x, pos, weight)


def restore(active: Tokens, full: Tokens, route: Route) -> Tokens:
    """Put the routed tokens back; every other token keeps the features it had when it left.

    The inverse of :func:`gather`: ``restore(gather(full, route), full, route)`` is bit-identical to ``full``. Positions
    and weights are those of ``full``.
    """
    x = active.x
    valid = route.valid
    if valid is not None:
        x = torch.where(valid.unsqueeze(-1), x, _take(full.x, route.index))
    index = route.index.unsqueeze(-1).expand(-1, -1, x.shape[-1])
    return Tokens(full.x.scatter(1, index, x), full.pos, full.weight)


def compose(outer: Route, inner: Route) -> Route:
    """The route that first takes ``outer`` and then, among those, ``inner``."""
    valid = inner.valid
    if outer.valid is not None:
        outer_valid = outer.valid.gather(1, inner.index)
        valid = outer_valid if valid is None else valid & outer_valid
    return Route(outer.index.gather(1, inner.index), valid)


def keep_count(pool: int, rate: float, others: int, multiple: int = 8) -> int:
    """How many of ``pool`` tokens a keep rate leaves, rounded so that the sequence length is a multiple of 8.

    ``others`` tokens (class, register, query) share the sequence. A rate of 1 keeps all. Published counts for 4096
    tokens and rate 0.7: 2867, 2003, 1402.
    """
    if not 0.0 < rate <= 1.0:
        raise ValueError(f"keep rate must be in (0, 1], got {rate}")
    if rate == 1.0:
        return pool
    count = int(_rounded(pool, rate, others, multiple))
    return max(min(count, pool), min(pool, 1))


def _keep_counts(pool: Tensor, rate: float, others: int, multiple: int = 8) -> Tensor:
    """:func:`keep_count` of every image, without waiting for the device. pool, returned: (B,) int64."""
    if rate == 1.0:
        return pool
    count = _rounded(pool.double(), rate, others, multiple).long()
    return torch.minimum(count.clamp(min=1), pool)


def _rounded(pool: Any, rate: float, others: int, multiple: int) -> Any:
    return ((pool * rate + others) / multiple + 0.5) // 1 * multiple - others


def route_top(score: Tensor, valid: Tensor | None, rate: float, others: int) -> Route:
    """Keep the highest-scoring tokens of each image.

    score: (B, P) float. valid: (B, P) bool or None. The count follows :func:`keep_count` for each image on its own, so
    that an image is treated alike in every batch; indices are ascending, which keeps memory access in order. The width
    of the route depends on P and the rate alone: no device is waited for, and a compiler knows the shapes.
    """
    largest = keep_count(score.shape[1], rate, others)
    if valid is None:
        return Route(score.topk(largest, dim=1, sorted=False).indices.sort(dim=1).values, None)
    index = score.masked_fill(~valid, -torch.inf).topk(largest, dim=1).indices
    limit = _keep_counts(valid.sum(1), rate, others).unsqueeze(1)
    kept = torch.arange(largest, device=score.device).unsqueeze(0) < limit
    index, order = index.sort(dim=1)
    return Route(index, kept.gather(1, order))


def route_mask(mask: Tensor, least: int = 1) -> Route:
    """The tokens where ``mask`` (B, N) bool holds, padded to the largest count in the batch, at least ``least``."""
    counts = mask.sum(1)
    largest = max(int(counts.max()), least)
    # A stable descending sort of the mask lists the tokens inside first and keeps grid order.
    index = mask.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, :largest]
    if int(counts.min()) == largest:  # nothing is padded: the fused attention kernel takes no mask then
        return Route(index, None)
    return Route(index, mask.gather(1, index))


def _take(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(1, index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
