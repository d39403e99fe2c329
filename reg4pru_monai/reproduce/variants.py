"""One trained network as several that share its weights, each different from the one before it in one thing."""

from collections.abc import Mapping
from typing import Any

import torch

from ..policies import Policy, Reg4Pru, build_policy
from ..policies.dynamicvit import DynamicViT
from ..presets import stage_plan
from ..segmenter import Segmenter

VARIANTS = {
    "dense": "every token in every block",
    "noisy": "the mask of training: tokens with a negative score, noise added, are masked, but computed, to the end",
    "soft": "as noisy, without the noise",
    "masked": "as many tokens as pruning keeps; the others masked, but computed, to the end",
    "returned": "as masked, and seen by all again where removed tokens come back",
    "pruned": "removed, and put back as they were: what the network is for",
    "random": "pruned by lot, with as many tokens",
}
KEEP_RATES = (0.3, 0.5, 0.85)
ALONE = 0.5  # kept by the only stage, to compare early stages with late ones
COURSE = ("dense", "pruned")
ASKED = {"final": [*VARIANTS], "course": [*COURSE], "keep_rates": [*map(str, KEEP_RATES), f"alone {ALONE}"]}


def pruning(network: Segmenter, settings: Mapping[str, Any]) -> Segmenter:
    """The network with a policy that prunes; one that was trained dense gets selectors that were never trained."""
    if network.encoder.policy.stages:
        return network
    encoder = network.encoder
    stages = stage_plan(len(encoder.blocks), settings["keep_rate"], settings["stages"], encoder.reactivate)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings["seed"])
        return network.with_policy(build_policy("dynamicvit", network.cls_token.shape[-1], stages).eval())


def final_variants(network: Segmenter) -> dict[str, Segmenter]:
    """The variants of VARIANTS, as far as the policy of the network has them. network: one that prunes, in eval."""
    policy = network.encoder.policy
    found = {
        "dense": network.dense(),
        "masked": network.with_soft_pruning(),
        "returned": network.with_soft_pruning(unmask=True),
        "pruned": network,
        "random": network.with_policy(build_policy("random", 0, policy.stages)),
    }
    if _learns_by_threshold(policy):
        found["soft"] = network.with_soft_pruning(above=0.0)
        found["noisy"] = network.with_soft_pruning(above=0.0, noise=True)
    return {name: found[name].eval() for name in VARIANTS if name in found}


def course_variants(network: Segmenter) -> dict[str, Segmenter]:
    """Those of :func:`final_variants` that show how far a training is."""
    return {name: variant for name, variant in final_variants(network).items() if name in COURSE}


def keep_rate_variants(network: Segmenter) -> dict[str, Segmenter]:
    """Pruned at other keep rates, and by one stage alone: ``pruned 0.5``, ``pruned before block 3``."""
    found = {f"pruned {keep}": network.with_keep_rate(keep) for keep in KEEP_RATES}
    stages = network.encoder.policy.stages
    for number, stage in enumerate(stages):
        rates = [ALONE if other == number else 1.0 for other in range(len(stages))]
        found[f"pruned before block {stage.block}"] = network.with_keep_rate(rates)
    return {name: variant.eval() for name, variant in found.items()}


def _learns_by_threshold(policy: Policy) -> bool:
    policy = policy.base if isinstance(policy, Reg4Pru) else policy
    return isinstance(policy, DynamicViT) and policy.keep_range is None
