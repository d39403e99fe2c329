"""Training on several processes, one for each device: which one this is, and what all of them share. Torch only.

Everything here is the identity where there is one process. DistributedDataParallel averages gradients; what is said of
gradients below is said with that.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def is_main_process() -> bool:
    """Whether this process writes files and tracks: rank 0, or the only one."""
    return rank() == 0


def wait_for_main_process() -> None:
    """Wait until every process has come here."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def share(total: int) -> range:
    """The items of ``total`` that this process works on: each is worked on once.

    Where there are fewer items than processes every process works on all of them: none may stand aside while the others
    gather, and no pooled metric changes where everything counts the same number of times.
    """
    return range(rank(), total, count()) if total >= count() else range(total)


def highest(value: Tensor) -> int:
    """The highest of one whole number from each process. value: () int64."""
    if count() > 1:
        value = value.clone()
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return int(value)


def sums(*values: Tensor) -> tuple[Tensor, ...]:
    """Each value summed over all processes, for terms of the whole batch. values: () each, of one dtype.

    The gradient of a function of these sums, averaged over the processes, is that of the whole batch: each process
    contributes its own part ``count()`` times, and needs no second exchange for it.
    """
    if count() == 1:
        return values
    own = torch.stack(values)
    total = own.detach().clone()
    dist.all_reduce(total)
    return (total + count() * (own - own.detach())).unbind()


def means(values: Tensor) -> Tensor:
    """Values averaged over all processes, without a gradient. values: (K,) float."""
    values = values.detach().clone()
    if count() > 1:
        dist.all_reduce(values)
    return values / count()


def uniform(rows: int, *shape: int, device: torch.device) -> Tensor:
    """Random numbers in [0, 1) for the images of this process: (rows, *shape) float32.

    All processes draw those of the whole batch, from generators in the same state, and each takes every ``count()``-th
    row, as the sampler deals out the images. So they are the numbers that one process would draw.
    """
    if count() == 1:
        return torch.rand(rows, *shape, device=device)
    return torch.rand(rows * count(), *shape, device=device)[rank() :: count()]


def share_batch_statistics(module: nn.Module) -> None:
    """Average the running statistics of batch norms over all processes, so that every process holds the same."""
    if count() == 1:
        return
    norms = [each for each in module.modules() if isinstance(each, _BatchNorm)]
    found = [value for norm in norms for value in (norm.running_mean, norm.running_var) if value is not None]
    if found:
        mean = means(torch.cat(found))
        torch._foreach_copy_(found, mean.split([len(each) for each in found]))
