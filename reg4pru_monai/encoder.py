"""Blocks and a policy: tokens in, tokens out.

There is one store of all tokens in grid order, and a route to those that are active now, always in grid coordinates.
Whatever changes the active set (a stage, the opening or closing of a random window, reactivation) is the same
operation: restore, then gather.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import processes
from .blocks import Block, rotary_table
from .policies import FINAL, Policy, StageTrace, Step, Window
from .tokens import Route, Tokens, compose, gather, restore, route_top


class Encoded(NamedTuple):
    """x: (B, N, D) all tokens in grid order; query: (B, Q, D); both before the final norm."""

    x: Tensor
    query: Tensor


class EncoderTrace(NamedTuple):
    """lengths: sequence length of each block; stages: decisions."""

    lengths: tuple[int, ...]
    stages: tuple[StageTrace, ...]


class _Active(NamedTuple):
    """What the blocks see. x: (B, P + K, D), prefix and active tokens; the others as Attention takes them."""

    x: Tensor
    rope: Tensor | None
    weight: Tensor | None
    visible: Tensor | None
    route: Route


class Encoder(nn.Module):
    """Runs the blocks on the tokens that the policy leaves active.

    reactivate: block before which all removed tokens come back, with the features they had when they left; the depth
        itself means after the last block.
    coordinate_scale: centred patch coordinates are divided by half this number for the rotary positions, so that
        distances mean the same at every image size; None divides by half the grid at hand, as DINOv3 does.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        policy: Policy,
        reactivate: int,
        rotary: bool = True,
        coordinate_scale: float | None = None,
    ):
        super().__init__()
        stages = [stage.block for stage in policy.stages]
        if not 0 < reactivate <= len(blocks) or any(not 0 <= block < reactivate for block in stages):
            raise ValueError(
                f"pruning stages must lie before the reactivation block, and that within 1..depth: "
                f"got stages at {stages}, reactivation at {reactivate}, depth {len(blocks)}"
            )
        self.blocks = nn.ModuleList(blocks)
        self.policy = policy
        self.head_dim = blocks[0].attn.qkv.in_features // blocks[0].attn.heads
        self.reactivate = reactivate
        self.rotary = rotary
        self.coordinate_scale = coordinate_scale
        self.checkpointed = False

    def forward(
        self,
        tokens: Tokens,
        prefix: Tensor,
        query: Tensor,
        grid: tuple[int, int],
        inside: Route | None = None,
        step: Step = FINAL,
        query_blocks: int = 0,
        observe: Callable[[Encoded], Tensor | None] | None = None,
    ) -> tuple[Encoded, EncoderTrace]:
        """Encode.

        tokens: N = h*w of ``grid`` (h, w). prefix: (B, P, D) class and register tokens. query: (B, Q, D), joins before
        the last ``query_blocks`` blocks. inside: the tokens to compute at all (field of view), or None for all.
        step: what this training step drew. observe: called with the input of every query block, for deep supervision;
        returns which tokens the queries may attend to there, (B, Q, N) bool, or None for all.
        """
        batch, count, _ = tokens.x.shape
        if inside is None:
            inside = Route(torch.arange(count, device=tokens.x.device).expand(batch, -1), None)
        window = step.window
        noise = None if window is None else processes.uniform(batch, count, device=tokens.x.device)
        first_query = len(self.blocks) - query_blocks if query.shape[1] else len(self.blocks)
        stage_at = {stage.block: number for number, stage in enumerate(self.policy.stages)}
        changes = {0, first_query, self.reactivate, *stage_at} | ({window.start, window.end} if window else set())
        if observe is not None:
            changes.update(range(first_query, len(self.blocks)))

        store, pool, after = tokens, inside, None
        lengths: list[int] = []
        stages: list[StageTrace] = []
        active = self._enter(store, prefix, pool, grid)
        for i, block in enumerate(self.blocks):
            if i in changes or after is not None:
                visible = None
                store, prefix = _leave(active, store, prefix.shape[1])
                if i == first_query:
                    prefix = torch.cat((query, prefix), dim=1)
                if observe is not None and i >= first_query:
                    visible = observe(Encoded(store.x, prefix[:, : query.shape[1]]))
                if after is not None:
                    store, pool = store._replace(weight=None), compose(pool, after)
                    after = None
                if i in stage_at:
                    others = prefix.shape[1] + (query.shape[1] if i + 1 == first_query else 0)
                    decision = self.policy.decide(stage_at[i], gather(store, pool), others, step)
                    stage = self.policy.active_stages(step)[stage_at[i]]
                    stages.append(StageTrace(stage, pool, decision.score, decision.keep))
                    store = _with_weight(store, pool, decision.weight)
                    pool = pool if decision.before is None else compose(pool, decision.before)
                    after = decision.after
                if i == self.reactivate:
                    pool = inside
                    store = store._replace(weight=None) if self.policy.unmask else store
                route = _routed(pool, noise, window, i, prefix.shape[1])
                active = self._enter(store, prefix, route, grid, visible)
            active = active._replace(x=self._through(block, active))
            lengths.append(active.x.shape[1])
        store, prefix = _leave(active, store, prefix.shape[1])
        encoded = Encoded(store.x, prefix[:, : query.shape[1]] if first_query < len(self.blocks) else query)
        return encoded, EncoderTrace(tuple(lengths), tuple(stages))

    def _through(self, block: nn.Module, active: _Active) -> Tensor:
        """The active tokens behind a block; where ``checkpointed``, its inner results are computed again for gradients.

        Nothing is drawn inside a block, so that it sees the same draw both times without states of generators.
        """
        inputs = active.x, active.rope, active.weight, active.visible
        if self.checkpointed and self.training:
            return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
        return block(*inputs)

    def _enter(
        self, store: Tokens, prefix: Tensor, route: Route, grid: tuple[int, int], visible: Tensor | None = None
    ) -> _Active:
        """Gather the active tokens behind the prefix, with their rotary positions, weights and visibility."""
        tokens = gather(store, route)
        weight = tokens.weight
        if weight is not None:
            weight = torch.cat((weight.new_ones(prefix.shape[:2]), weight), dim=1)
        if visible is not None:
            columns = visible.gather(2, route.index.unsqueeze(1).expand(-1, visible.shape[1], -1))
            visible = torch.cat((columns.new_ones(*columns.shape[:2], prefix.shape[1]), columns), dim=2)
        rope = self._rope(tokens.pos, prefix.shape[1], grid) if self.rotary else None
        return _Active(torch.cat((prefix, tokens.x), dim=1), rope, weight, visible, route)

    def _rope(self, pos: Tensor, others: int, grid: tuple[int, int]) -> Tensor:
        """Rotary table of the active tokens; the prefix is not rotated (sine 0, cosine 1). (2, B, P + K, head_dim)."""
        size = pos.new_tensor(grid)
        scale = size if self.coordinate_scale is None else self.coordinate_scale
        table = rotary_table((2 * pos - size) / scale, self.head_dim)
        still = table.new_zeros(2, table.shape[1], others, table.shape[3])
        still[1] = 1
        return torch.cat((still, table), dim=2)


def _leave(active: _Active, store: Tokens, others: int) -> tuple[Tokens, Tensor]:
    """Put the active tokens back into the store; also returns the prefix (B, others, D)."""
    tokens = Tokens(active.x[:, others:], store.pos, None)
    return restore(tokens, store, active.route), active.x[:, :others]


def _with_weight(store: Tokens, pool: Route, weight: Tensor | None) -> Tokens:
    """The store with new soft weights (B, K) on the tokens of the pool."""
    if weight is None:
        return store
    ones = weight.new_ones(store.x.shape[:2])
    return store._replace(weight=ones.scatter(1, pool.index, weight))


def _routed(pool: Route, noise: Tensor | None, window: Window | None, block: int, others: int) -> Route:
    """The tokens of the pool that are active at a block: all, or a random share inside the window.

    The noise (B, N) is drawn once per forward pass, so the share stays the same while the pool does.
    """
    if window is None or noise is None or not window.start <= block < window.end:
        return pool
    return compose(pool, route_top(noise.gather(1, pool.index), pool.valid, window.keep, others))
