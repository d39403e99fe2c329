"""What ships with the package: the bundle, its weights, the overlays; and whether the weights are the released ones."""

import hashlib
import json
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_SHIPPED = _PACKAGE if (_PACKAGE / "bundles").is_dir() else _PACKAGE.parent  # in the wheel; in a checkout
BUNDLE = _SHIPPED / "bundles" / "fundus_vessel_segmentation"
CONFIGS = _SHIPPED / "configs"  # overlays, and the experiments of sweeps
WEIGHTS = "models/model.pt"  # in a bundle
CHECKPOINT = BUNDLE / WEIGHTS
_POINTER = b"version https://git-lfs"
_AGAIN = (
    "get the file again (git checkout -- FILE, or git lfs pull where it is kept in Git LFS; install a wheel again with "
    "--force-reinstall)"
)


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read, written, or does not fit the network."""


def sha256(path: Path) -> str:
    """Of the content of a file, hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def missing_weights(path: Path) -> str | None:
    """What to do about shipped weights that are not there; None for any other file."""
    if path.resolve() != CHECKPOINT:
        return None
    return f"{path}: the weights of the bundle are missing; {_AGAIN}, or name another with --checkpoint FILE"


def check_shipped(path: Path) -> None:
    """Raise CheckpointError where the weights of a bundle are not the file that its metadata.json was written for.

    Any other file is not judged, unless it is a pointer of Git LFS, which is no file of weights anywhere.
    """
    with open(path, "rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise CheckpointError(
                f"{path}: is the pointer that Git LFS leaves in place of a file, not the weights; run: git lfs install "
                "&& git lfs pull"
            )
    known = released_file(path)
    if known is None or known["sha256"] == (found := sha256(path)):
        return
    size = path.stat().st_size
    if size < known["bytes"]:
        raise CheckpointError(f"{path}: cut off, {size} of {known['bytes']} bytes are there; {_AGAIN}")
    raise CheckpointError(
        f"{path}: not the weights of this bundle: SHA-256 {found[:12]}…, expected {known['sha256'][:12]}…; {_AGAIN}. "
        "Weights of your own are used from any other place: --checkpoint FILE"
    )


def released_file(path: Path) -> dict | None:
    """sha256 and bytes of a bundle's models/model.pt, as its metadata.json has them; None for any other file."""
    bundle = path.absolute().parent.parent
    metadata = bundle / "configs" / "metadata.json"
    if path.absolute() != bundle / WEIGHTS or not metadata.is_file():
        return None
    try:
        return json.loads(metadata.read_text(encoding="utf-8")).get("weights", {}).get(WEIGHTS)
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{metadata}: not the metadata of a bundle ({error}); get the file again") from error
