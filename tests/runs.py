"""The commands of the bundle, in this process and in others, with settings so small that a training takes a second."""

import os
import random
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from conftest import ROOT
from reg4pru_monai.runtime import root_cause

BUNDLE = ROOT / "bundles" / "fundus_vessel_segmentation"
TINY: dict[str, Any] = {
    **{"phantoms": {"train": 4, "test": 2, "size": 112, "seed": 0}, "diameter": 96, "crop_size": 48, "window_size": 64},
    **{"crops_per_image": 1, "batch_size": 2, "max_epochs": 2, "val_interval": 1, "device": "cpu"},
    **{"log_model": False, "inspect_images": 0},  # seconds each
}


def config(name: str) -> str:
    """Path of a configuration file of the bundle."""
    return str(BUNDLE / "configs" / f"{name}.yaml")


def settings(name: str, **overrides: Any) -> dict[str, Any]:
    """TINY as far as the configuration has its keys (a checkpoint has its diameter), no MLflow, and the overrides."""
    known = ConfigParser.load_config_file(config(name))
    ours = {key: value for key, value in TINY.items() if key in known and (key != "diameter" or name == "train")}
    return deepcopy(ours) | ({"tracking_uri": "none"} if "tracking_uri" in known else {}) | overrides


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put back what a command changes in its process: the error hook, the module path, the random numbers."""
    hook, path, random_state = sys.excepthook, list(sys.path), (random.getstate(), np.random.get_state())  # noqa: NPY002
    determinism = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "parsing config_file", UserWarning)  # MONAI, before it reads any file
            yield
    finally:
        sys.excepthook, sys.path[:] = hook, path
        random.setstate(random_state[0])
        np.random.set_state(random_state[1])  # noqa: NPY002
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = determinism


def workflow(name: str, **overrides: Any) -> ConfigWorkflow:
    """A command that has not begun."""
    kind = "train" if name == "train" else "infer"
    with undisturbed():
        return ConfigWorkflow(config(name), workflow_type=kind, logging_file=False, **settings(name, **overrides))


def run(name: str, **overrides: Any) -> ConfigWorkflow:
    """Run a command to its end in this process."""
    command = workflow(name, **overrides)
    with undisturbed():
        command.initialize()
        command.run()
        command.finalize()
    return command


def failure(name: str, **overrides: Any) -> BaseException:
    """The cause that a command which must fail names."""
    try:
        run(name, **overrides)
    except Exception as error:
        return root_cause(error)
    raise AssertionError(f"{name} with {overrides} did not fail")


def arguments(values: dict[str, Any]) -> list[str]:
    """Overrides as they are written on a command line."""
    return [text for key, value in values.items() for text in (f"--{key}", str(value))]


def command(*parts: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own, with as many threads as this one has, so that its numbers are the same."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    environment.pop("MLFLOW_TRACKING_URI", None)
    return subprocess.run(
        [sys.executable, *parts], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
