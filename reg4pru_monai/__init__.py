"""Retinal vessel segmentation with a token-pruned vision transformer (Reg4Pru).

Public names are loaded at their first use, so importing the package alone does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .startup import adapt_environment

if TYPE_CHECKING:
    from .inference import Pipeline as Pipeline
    from .inference import load_pipeline as load_pipeline
    from .policies import POLICIES as POLICIES
    from .segmenter import build_segmenter as build_segmenter

__version__ = "0.1.0"
adapt_environment()
_PLACES = {
    "Pipeline": "inference",
    "load_pipeline": "inference",
    "POLICIES": "policies",
    "build_segmenter": "segmenter",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PLACES[name]}", __name__), name)
