"""What a run does with every photograph, and that an output folder never mixes results of different settings."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from .. import __version__
from ..files import replacing
from ..fundus.angle import angle_of_view
from ..fundus.remote import UrlError, checked, is_url
from ..inference import Pipeline
from .dicom import INSTALL, check_identifiers
from .journal import STATE

SETTINGS = f"{STATE}/settings.json"
OUTPUTS = ("mask", "probability", "overlay", "contour", "nifti", "dicom-seg")


class SettingsError(ValueError):
    """A setting that does not exist, or does not fit what the output folder holds."""


@dataclass(frozen=True)
class Settings:
    """What the results depend on, beside the photographs. Another value anywhere here makes other results.

    weights: digest of the network's weights. network: architecture and what is pruned. preprocessing: diameter (px),
    normalization, rim (share of the diameter) and by_angle. window: side (px, None for the whole image), overlap
    (fraction), flips. threshold: in (0, 1). outputs: names of OUTPUTS. millimetres_per_pixel: of the photographs, or
    None. angle: of view of all photographs, degrees, or None: as they say, where they do. identifiers: DICOM keywords
    that name a row. max_pixels: larger photographs are refused. store: URL of the object storage that outputs go to,
    or None. archives: whether they go into tar archives.
    """

    weights: str
    network: dict[str, Any]
    preprocessing: dict[str, Any]
    window: dict[str, Any]
    threshold: float = 0.5
    outputs: tuple[str, ...] = ("mask", "overlay")
    millimetres_per_pixel: float | None = None
    angle: float | None = None
    identifiers: tuple[str, ...] = ()
    max_pixels: int = 150_000_000
    store: str | None = None
    archives: bool = False
    version: str = __version__

    def __post_init__(self) -> None:
        if not 0.0 < self.threshold < 1.0:
            raise SettingsError(f"threshold must be in (0, 1), got {self.threshold}")
        unknown = [name for name in self.outputs if name not in OUTPUTS]
        if unknown or not self.outputs:
            raise SettingsError(f"outputs must be some of {', '.join(OUTPUTS)}, got {', '.join(unknown) or 'none'}")
        if "dicom-seg" in self.outputs and not find_spec("highdicom"):
            raise SettingsError(f"the output dicom-seg needs highdicom: {INSTALL}")
        if self.millimetres_per_pixel is not None and not 0.0 < self.millimetres_per_pixel < 1.0:
            raise SettingsError(
                f"millimetres per pixel must be in (0, 1), got {self.millimetres_per_pixel}; a fundus photograph has "
                "some 0.005"
            )
        try:
            by_angle = bool(self.preprocessing.get("by_angle"))
            object.__setattr__(self, "angle", angle_of_view(self.angle, by_angle))
        except ValueError as error:
            raise SettingsError(str(error)) from None
        if self.max_pixels < 1:
            raise SettingsError(f"max_pixels must be at least 1, got {self.max_pixels}")
        if self.store is not None and self.archives:
            raise SettingsError("--archives are written into the output folder: give them without --store")
        if self.store is not None:
            object.__setattr__(self, "store", _checked_store(self.store))
        check_identifiers(self.identifiers)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they come back from JSON; without max_pixels, which changes no result."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        del values["max_pixels"]
        # Without them the digest is that of folders made before there were any.
        return {key: value for key, value in values.items() if value or key not in ("store", "archives", "angle")}

    @property
    def digest(self) -> str:
        """SHA-256 of all values, hexadecimal."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


def _checked_store(url: str) -> str:
    if not is_url(url):
        raise SettingsError(f"--store must be the URL of object storage, such as s3://bucket/results, got {url}")
    try:
        return checked(url)
    except UrlError as error:
        raise SettingsError(str(error)) from None


def settings_of(pipeline: Pipeline, **choices: Any) -> Settings:
    """The settings of a pipeline. choices: threshold, outputs and what else is the user's. Raises SettingsError.

    threshold: default: the one chosen for the network.
    """
    encoder, inferer = pipeline.network.encoder, pipeline.inferer
    network = {
        "blocks": len(encoder.blocks),
        "policy": type(encoder.policy).__name__,
        "stages": [list(stage) for stage in encoder.policy.stages],
        "reactivate": encoder.reactivate,
        "decoder": type(pipeline.network.decoder).__name__,
    }
    _, canonical, normalize = pipeline.preprocessing.transforms
    preprocessing = {"diameter": canonical.diameter, "normalization": normalize.method}
    window: dict[str, Any] = {"size": inferer.window_size, "overlap": inferer.overlap, "blend": inferer.blend}
    # Without them the digest is that of folders made before there were any.
    preprocessing |= {"rim": normalize.rim} if normalize.rim else {}
    preprocessing |= {"by_angle": True} if pipeline.by_angle else {}
    window |= {"flips": True} if inferer.flips else {}
    choices = {"threshold": pipeline.threshold, **choices}
    return Settings(weights_digest(pipeline.network), network, preprocessing, window, **choices)


def weights_digest(network: nn.Module) -> str:
    """SHA-256 over names, shapes and values of the weights, whatever file they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Claim(NamedTuple):
    """What an output folder was made with. settings: plain values. root: absolute folder that names start from."""

    settings: dict[str, Any]
    digest: str
    root: str


def is_claimed(output: Path) -> bool:
    """Whether a folder is the output of earlier runs."""
    return _path(output).exists()


def claim(output: Path, settings: Settings, root: str) -> Claim:
    """Make an output folder, or enter one that was made with the same settings. Raises SettingsError, OSError."""
    if not is_claimed(output):
        create_once(_path(output), {"settings": settings.to_dict(), "digest": settings.digest, "root": root})
    return check_claim(output, settings)


def set_root(output: Path, settings: Settings, root: str) -> None:
    """Let names start from another folder from now on. Raises OSError."""
    _replace(_path(output), {"settings": settings.to_dict(), "digest": settings.digest, "root": root})


def check_claim(output: Path, settings: Settings) -> Claim:
    """What an output folder was made with, if with these settings. Raises SettingsError."""
    known = read_claim(output)
    different = _differences(known.settings, settings.to_dict())
    if different:
        raise SettingsError(
            f"{output} holds results of other settings ({'; '.join(different)}). Results of different settings are not "
            "mixed: give another --output, the earlier settings, or --overwrite"
        )
    return known


def read_claim(output: Path) -> Claim:
    """Settings and root of an output folder. Raises SettingsError."""
    path = _path(output)
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return Claim(dict(known["settings"]), str(known["digest"]), str(known["root"]))
    except FileNotFoundError:
        raise SettingsError(
            f"{output} is no output folder of `reg4pru segment`: it has no {STATE}/settings.json"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"{path}: damaged ({error!r}); give another --output, or --overwrite") from error


def _path(output: Path) -> Path:
    return output / SETTINGS


def create_once(path: Path, content: Mapping[str, Any]) -> None:
    """Write, unless another process was faster."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        _replace(beside, content)
        os.link(beside, path)
    except FileExistsError:
        pass
    except OSError:  # no hard links here, as on some network shares
        _replace(path, content)
    finally:
        beside.unlink(missing_ok=True)


def _replace(path: Path, content: Mapping[str, Any]) -> None:
    with replacing(path) as beside:
        beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A phrase for every value that is not what it was."""
    found = []
    for key in sorted(earlier.keys() | now.keys()):
        before, after = earlier.get(key), now.get(key)
        if before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            found += [f"{key} {phrase}" for phrase in _differences(before, after)]
        else:
            found.append(f"{key} was {_brief(before)}, is {_brief(after)}")
    return found


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:16] + "…" + text[-8:]
