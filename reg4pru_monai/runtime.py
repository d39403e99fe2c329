"""The device to run on, and errors as users should read them. Light: no training, no tracking."""

import platform
import sys
from pathlib import Path

import torch

from .fundus.datasets import DatasetError
from .fundus.io import FundusReadError
from .weights import CheckpointError

EXPECTED = (ValueError, DatasetError, FundusReadError, CheckpointError, FileNotFoundError, FloatingPointError, OSError)


class ConfigurationError(ValueError):
    """A key or value of the configuration that cannot be right."""


def select_device(name: str = "auto") -> torch.device:
    """The device to run on. name: "auto" is the first GPU where there is one, else the CPU; or a torch device name."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):  # others lack operations, or hold no values
            raise RuntimeError("no such kind is supported")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device must be auto, cpu or an available GPU such as cuda:0, got {name!r} ({error})"
        ) from None
    return device


def device_name(device: torch.device) -> str:
    """Model of a GPU; of the CPU where Linux tells it, else its architecture, and the instructions that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"


def root_cause(error: BaseException) -> BaseException:
    """The innermost of our own errors along the chain of causes; else of those a user can mend; else the innermost."""
    chain = [error]
    while (
        cause := chain[-1].__cause__ or (None if chain[-1].__suppress_context__ else chain[-1].__context__)
    ) is not None:
        chain.append(cause)
    own = [e for e in chain if type(e).__module__.startswith("reg4pru_monai")]
    expected = [e for e in chain if isinstance(e, EXPECTED)]
    return (own or expected or chain)[-1]


def bar_interval() -> float:
    """Seconds between updates of a progress bar: often on a terminal, seldom in a log file."""
    return 0.2 if sys.stderr.isatty() else 30.0
