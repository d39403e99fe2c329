"""Token pruning policies, one file each. ``POLICIES`` is the only list of them.

A name may carry ``+reg4pru``: random routing over any other policy. ``reg4pru`` alone is ``dynamicvit+reg4pru``.
"""

import difflib
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from .base import FINAL, Decision, Policy, Stage, StageTrace, Step, Trace, Window, plan
from .cropr import Cropr
from .dense import Dense
from .dynamicvit import DynamicViT
from .gumbel import Gumbel
from .random import Random
from .reg4pru import Reg4Pru
from .soft import Soft

POLICIES: dict[str, Callable[..., Policy]] = {
    "dense": Dense,
    "dynamicvit": DynamicViT,
    "gumbel": Gumbel,
    "cropr": Cropr,
    "random": Random,
    "reg4pru": partial(Reg4Pru.over, DynamicViT),
}

ROUTED = "+reg4pru"


def build_policy(name: str, dim: int, stages: Sequence[Stage], **options: Any) -> Policy:
    """Make a policy by name.

    dim: channels of the tokens. stages: blocks and keep rates. options: arguments of that policy.
    Raises ValueError for a name that is not in POLICIES and for options that the policy does not have.
    """
    plain = name.removesuffix(ROUTED)
    if plain not in POLICIES or name == "reg4pru" + ROUTED:
        names = ", ".join(POLICIES)
        raise ValueError(f"policy must be one of {names}, with {ROUTED} behind it or not, got {name!r}")
    build = POLICIES[plain] if plain == name else partial(Reg4Pru.over, POLICIES[plain])
    known = sorted(_options(build))
    for option in sorted(options.keys() - set(known)):
        close = difflib.get_close_matches(option, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(known)}"
        raise ValueError(f"policy_options do not suit the policy {name}: unknown option {option!r}, {hint}")
    try:
        return build(dim=dim, stages=tuple(stages), **options)
    except TypeError as error:  # a value of another type than the option wants
        raise ValueError(f"policy_options do not suit the policy {name}: {error}") from error


def removes_tokens(name: str) -> bool:
    """Whether a policy of this name removes tokens at inference, and so has a keep rate."""
    return name.removesuffix(ROUTED) != "dense"


def _options(build: Callable[..., Policy]) -> set[str]:
    """The options that a policy takes; those of all policies where it takes any, to stand in for any of them."""
    if isinstance(build, partial):
        return {*Reg4Pru.OPTIONS, *_options(build.args[0])}
    parameters = inspect.signature(build).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return set().union(*(_options(other) for other in POLICIES.values() if other is not build))
    return {parameter.name for parameter in parameters} - {"dim", "stages"}


__all__ = [
    "FINAL",
    "POLICIES",
    "Decision",
    "Policy",
    "Soft",
    "Stage",
    "StageTrace",
    "Step",
    "Trace",
    "Window",
    "build_policy",
    "plan",
    "removes_tokens",
]
