"""How much memory a training step needs, calculated without a GPU: nothing is computed, only shapes are followed.

    python docs/measure/training_memory.py --preset base --size 1024 --batches 1 2

Weights, gradients, the two moments of AdamW and the moving average are float32; the step is forward, losses, backward
and optimiser in bfloat16 autocast, on images whose field of view covers them all and without a random window, which is
what needs most. Every tensor counts from when it is made until nothing holds it. What a GPU needs beyond that is not
in it: its context, workspaces of its libraries, and memory that its allocator cannot use because it is in pieces.
"""

import argparse
import warnings
import weakref
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from reg4pru_monai.losses import segmentation_loss
from reg4pru_monai.policies import Step
from reg4pru_monai.segmenter import build_segmenter
from reg4pru_monai.training import build_optimizer


class Allocations(TorchDispatchMode):
    """Bytes of all storages that operations make while it is active: now, and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, Tensor):
                self._count(each.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, size)

    def _freed(self, size: int) -> None:
        self.now -= size


def needed(
    preset: str, decoder: str, policy: str, size: int, batch: int, checkpointed: bool = False, amp: bool = True
) -> tuple[float, float]:
    """GiB of a second training step: what stays between steps, and the peak."""
    with FakeTensorMode(), warnings.catch_warnings(), Allocations() as allocations:
        warnings.simplefilter("ignore", UserWarning)
        network = build_segmenter(preset, policy, decoder).train()
        if checkpointed:
            network.checkpoint_blocks()
        optimizer = build_optimizer(network, 1e-3)
        average = [parameter.detach().clone() for parameter in network.parameters()]
        image, label = torch.zeros(batch, 3, size, size), torch.zeros(batch, 1, size, size)

        def step() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=amp):
                logits, trace = network.forward_with_trace(image, None, Step())
                terms = [segmentation_loss(each.float(), label) for each in (*trace.auxiliary, logits)]
                terms += network.encoder.policy.loss(trace, label, 1.0).values()
                loss = torch.stack(terms).sum()
            del logits, trace, terms
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        step()  # makes the moments
        between, allocations.peak = allocations.now, 0
        step()
        del average
    return between / 2**30, allocations.peak / 2**30


def main(arguments: list[str] | None = None) -> None:
    """Calculate and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="base")
    parser.add_argument("--decoders", nargs="+", default=["eomt", "skip"])
    parser.add_argument("--policies", nargs="+", default=["dense", "reg4pru"])
    parser.add_argument("--size", type=int, default=1024, help="pixels per side")
    parser.add_argument("--batches", type=int, nargs="+", default=[1])
    chosen = parser.parse_args(arguments)
    print(
        f"| {chosen.preset}, {chosen.size} x {chosen.size} | between steps, GiB | peak, GiB | with checkpoint_blocks |"
    )
    print("|---|---|---|---|")
    for decoder in chosen.decoders:
        for policy in chosen.policies:
            for batch in chosen.batches:
                case = (chosen.preset, decoder, policy, chosen.size, batch)
                (between, peak), (_, less) = needed(*case), needed(*case, checkpointed=True)
                print(f"| {decoder}, {policy}, batch {batch} | {between:.1f} | {peak:.1f} | {less:.1f} |", flush=True)


if __name__ == "__main__":
    main()
