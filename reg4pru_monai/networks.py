"""Networks by the name of their preset: our transformers, and MONAI's U-Nets as what a user would take instead."""

from types import SimpleNamespace
from typing import Any, NoReturn, TypeAlias

import torch.nn.functional as F
from torch import Tensor, nn

from .peers import PEERS
from .policies import FINAL, Step, Trace
from .policies.dense import Dense
from .presets import PRESETS
from .segmenter import Segmenter, build_segmenter

U_NETS = ("BasicUNet", "DynUNet")  # of the peers those that take images of any size
NO_DECODER = "none"
MULTIPLE = 32  # px: six levels halve a side five times


class UNetSegmenter(nn.Module):
    """A U-Net with the interface of :class:`Segmenter`, so that all that trains, evaluates and segments takes both.

    It computes every pixel, in the field of view or not, and prunes nothing. name: of its preset, for messages.
    """

    def __init__(self, name: str, network: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.network = network
        # What is read of a transformer: as one whose tokens are the pixels, with no block to leave one out of.
        self.encoder = SimpleNamespace(blocks=(), policy=Dense(), reactivate=None)
        self.patch_embed = SimpleNamespace(patch=1)

    @property
    def decoder(self) -> nn.Module:
        """The U-Net itself: its class is what is recorded as the decoder."""
        return self.network

    def forward(self, image: Tensor, fov: Any = None) -> Tensor:
        """image: (B, 3, H, W) float32, normalised, any height and width. fov: unused. Returns logits (B, 1, H, W)."""
        height, width = image.shape[-2:]
        logits: Tensor = self.network(F.pad(image, (0, _missing(width), 0, _missing(height))))
        return logits[..., :height, :width]

    def forward_with_lengths(self, image: Tensor, fov: Any = None) -> tuple[Tensor, tuple[int, ...]]:
        """As ``forward``, and the number of pixels."""
        return self(image), (image.shape[-2] * image.shape[-1],)

    def forward_with_trace(self, image: Tensor, fov: Any = None, step: Step = FINAL) -> tuple[Tensor, Trace]:
        """As ``forward``, and a trace without stages and deep supervision. step: unused."""
        logits, lengths = self.forward_with_lengths(image)
        return logits, Trace((image.shape[-2], image.shape[-1]), 1, lengths, (), ())

    def draw(self, progress: float = 1.0) -> Step:
        """Nothing is left to chance. progress: share of the training done."""
        return Step(progress)

    def compile_blocks(self) -> "UNetSegmenter":
        """Compile in place, once for all sizes; returns the network."""
        self.network.compile(dynamic=True)
        return self

    def dense(self) -> "UNetSegmenter":
        """Itself."""
        return self

    def with_policy(self, policy: Any) -> NoReturn:
        """Raises ValueError: there are no tokens to prune."""
        raise ValueError(f"{self.name} has no tokens to prune; leave out policy and keep_rate, or take another network")

    def with_keep_rate(self, keep_rate: Any) -> NoReturn:
        """Raises ValueError, as :meth:`with_policy`."""
        self.with_policy(None)


def _missing(side: int) -> int:
    """Pixels to add to a side: whole multiples, at least two, because instance norm needs more than one value."""
    return max(-side % MULTIPLE, 2 * MULTIPLE - side)


Network: TypeAlias = Segmenter | UNetSegmenter


def build_network(preset: str = "tiny", policy: str = "reg4pru", decoder: str = "skip", **options: Any) -> Network:
    """Build the network of a preset.

    preset: a name in PRESETS or U_NETS. policy, decoder, options: as of :func:`build_segmenter`; of a U-Net "dense" and
    "none", and keep_rate, stages and reactivate change nothing. Raises ValueError.
    """
    if preset in PRESETS:
        return build_segmenter(preset, policy, decoder, **options)
    if preset not in U_NETS:
        raise ValueError(f"preset must be one of {', '.join((*PRESETS, *U_NETS))}, got {preset!r}")
    if (policy, decoder) != ("dense", NO_DECODER):
        raise ValueError(
            f"{preset} has no tokens to prune and a decoder of its own: give policy dense and decoder {NO_DECODER}, as "
            f"configs/models does, got {policy!r} and {decoder!r}"
        )
    for name in ("policy_options", "masked_attention"):
        if options.get(name):
            raise ValueError(f"{name} belongs to transformers; take it out for {preset}, got {options[name]!r}")
    return UNetSegmenter(preset, PEERS[preset](MULTIPLE))


def transformer(network: Network, what: str) -> Segmenter:
    """The network, if it has tokens. what: that needs them, for the message. Raises ValueError."""
    if isinstance(network, UNetSegmenter):
        raise ValueError(
            f"{what} is for transformers; the checkpoint is of MONAI's {network.name}, which has no tokens"
        )
    return network


def variants(network: Network) -> dict[str, Network]:
    """Networks to measure side by side: pruned, if the network removes tokens at all, and dense."""
    pruned: dict[str, Network] = {"pruned": network} if network.encoder.policy.stages else {}
    return pruned | {"dense": network.dense()}
