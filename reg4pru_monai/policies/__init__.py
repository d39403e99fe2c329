"""Token pruning policies, one file each. ``POLICIES`` is the only list of them.

A name may carry ``+reg4pru``: random routing over any other policy. ``reg4pru`` alone is ``dynamicvit+reg4pru``.
"""

from collections.abc import Callable, Sequence
from typing import Any

from .base import Decision, Policy, Stage, StageTrace, Trace, Window, plan
from .dense import Dense
from .dynamicvit import DynamicViT
from .reg4pru import Reg4Pru

POLICIES: dict[str, Callable[..., Policy]] = {
    "dense": Dense,
    "dynamicvit": DynamicViT,
    "reg4pru": Reg4Pru.over_dynamicvit,
}

ROUTED = "+reg4pru"


def build_policy(name: str, dim: int, stages: Sequence[Stage], **options: Any) -> Policy:
    """Make a policy by name.

    dim: channels of the tokens. stages: blocks and keep rates. options: arguments of that policy.
    Raises ValueError for a name that is not in POLICIES and for options that the policy does not have.
    """
    plain = name.removesuffix(ROUTED)
    if plain not in POLICIES:
        names = ", ".join(sorted(POLICIES))
        raise ValueError(f"policy must be one of {names}, with {ROUTED} behind it or not, got {name!r}")
    try:
        if plain == name:
            return POLICIES[name](dim=dim, stages=tuple(stages), **options)
        route = {"route_keep": options.pop("route_keep")} if "route_keep" in options else {}
        return Reg4Pru(POLICIES[plain](dim=dim, stages=tuple(stages), **options), **route)
    except TypeError as error:  # an option that this policy does not take
        raise ValueError(f"policy_options do not suit the policy {name}: {error}") from error


__all__ = ["POLICIES", "Decision", "Policy", "Stage", "StageTrace", "Trace", "Window", "build_policy", "plan"]
