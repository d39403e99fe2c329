"""A quick start for commands that need little of MONAI."""

import sys

# MONAI imports all of itself, and these where they are installed: together as long as itself and torch.
OPTIONAL = ("ignite", "matplotlib", "mlflow", "onnx", "onnxruntime", "pandas", "tensorboard")


def import_monai_alone() -> None:
    """Import MONAI as if the optional packages were not installed; they can be imported afterwards as usual.

    What MONAI offers on top of them (engines, handlers) is then missing in this process. Does nothing where MONAI is
    imported already.
    """
    if "monai" in sys.modules:
        return
    hidden = [name for name in OPTIONAL if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None makes an import fail
    try:
        import monai  # noqa: F401
    finally:
        for name in hidden:
            del sys.modules[name]
