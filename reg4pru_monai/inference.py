"""Segment photographs with a trained checkpoint from Python; the folder command is the bundle's inference.yaml."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from .evaluation import predict
from .fundus import DEFAULT_DIAMETER
from .fundus.angle import checked_angle
from .fundus.io import read_image
from .fundus.picture import BLACK, is_black
from .fundus.rim import RIM
from .networks import Network, build_network
from .policies import build_policy, removes_tokens
from .presets import KEEP_RATE
from .released import CHECKPOINT
from .runtime import select_device
from .transforms import preprocessing
from .weights import EARLIER, CheckpointError, load_checkpoint, load_network
from .windows import FundusWindowInferer

DEFAULT_THRESHOLD = 0.5
ARCHITECTURE = ("preset", "policy", "decoder", "keep_rate", "stages", "reactivate")
OF_TRAINING = ("seed", "max_epochs", "learning_rate", "batch_size", "crop_size")  # parameters that say how it was made
DIGEST = "settings_digest"  # of all settings but the seed
IDENTITY = (DIGEST, "learning_rate", "batch_size", "crop_size")  # of these, what resuming may change


UNTRAINED: dict[str, Any] = {
    **{"preset": "tiny", "decoder": "skip", "policy": "reg4pru", "keep_rate": KEEP_RATE, "stages": None},
    **{"reactivate": None, "diameter": DEFAULT_DIAMETER, "normalization": "local", "rim": RIM},
    "by_angle": True,
}


def trained(checkpoint: str) -> dict[str, Any]:
    """Architecture and preprocessing a checkpoint was trained with, and the threshold chosen for it.

    The defaults where there is no checkpoint yet. Raises CheckpointError.
    """
    if not Path(checkpoint).is_file():
        return {"threshold": DEFAULT_THRESHOLD, **UNTRAINED}
    found = load_checkpoint(checkpoint).get("configuration")
    if not isinstance(found, dict) or UNTRAINED.keys() - found.keys() - EARLIER.keys():
        raise CheckpointError(f"{checkpoint}: says nothing of its configuration; it was not written by this bundle")
    return {"threshold": DEFAULT_THRESHOLD, **EARLIER, **found}


def training_parameters(trained: Mapping[str, Any], policy: str, keep_rate: Any) -> dict[str, Any]:
    """Parameters of an evaluation that tell of the training, by the names they have there; none where it is unknown.

    A checkpoint that lacks the digest of its training is known by its path alone: seeds of what may be different
    trainings are not to be taken for seeds of one. trained: of :func:`trained`. policy, keep_rate: what is evaluated;
    those of the training are added as trained_policy and trained_keep_rate where they are others.
    """
    if DIGEST not in trained:
        return {}
    known = {key: trained[key] for key in (*OF_TRAINING, "epoch") if key in trained}
    other: dict[str, Any] = {"policy": policy}
    if removes_tokens(trained["policy"]):
        other["keep_rate"] = keep_rate if removes_tokens(policy) else None
    return known | {f"trained_{key}": trained[key] for key, value in other.items() if trained[key] != value}


def training_tags(trained: Mapping[str, Any]) -> dict[str, Any]:
    """Tags of an evaluation: the digest of the training that `reg4pru compare` groups seeds by."""
    return {DIGEST: trained[DIGEST]} if DIGEST in trained else {}


def evaluated_options(trained: Mapping[str, Any], policy: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the policy that is evaluated: those of its training under the given ones."""
    own = trained.get("policy_options") or {} if policy == trained["policy"] else {}
    return {**own, **options}


@dataclass(frozen=True)
class Segmentation:
    """probability: (H, W) float32 in [0, 1], the photograph's own pixels, 0 outside the field of view.

    threshold: the one chosen for the network.
    """

    probability: np.ndarray
    threshold: float = DEFAULT_THRESHOLD

    def mask(self, threshold: float | None = None) -> np.ndarray:
        """Vessels, (H, W) bool. threshold: in (0, 1); default: the one chosen for the network."""
        threshold = self.threshold if threshold is None else threshold
        if not 0 < threshold < 1:
            raise ValueError(f"threshold must be in (0, 1), got {threshold}")
        return self.probability >= threshold


class Pipeline:
    """Photograph in, vessel probability out, by the same steps as the bundle. Made by :func:`load_pipeline`."""

    def __init__(
        self,
        network: Network,
        preprocessing: Compose,
        inferer: FundusWindowInferer,
        device: torch.device,
        threshold: float = DEFAULT_THRESHOLD,
    ) -> None:
        self.network = network.to(device).eval()
        self.preprocessing = preprocessing
        self.inferer = inferer
        self.device = device
        self.threshold = threshold

    @property
    def by_angle(self) -> bool:
        """Whether the angle of view of a photograph decides its scale."""
        return bool(self.preprocessing.transforms[1].by_angle)

    def __call__(self, photograph: str | Path | np.ndarray, angle: float | str | None = None) -> Segmentation:
        """Segment one photograph.

        photograph: path of an image file, or (H, W, 3) RGB, uint8 or float in [0, 1]. angle: see prepare.
        Raises FundusReadError for a file, and ValueError for an array, that is no such image.
        """
        item = self.prepare(photograph, angle)
        found = predict(self.network, item, self.preprocessing, self.inferer, self.device)
        return Segmentation(found.probability[0].numpy(), self.threshold)

    def prepare(self, photograph: str | Path | np.ndarray, angle: float | str | None = None) -> dict[str, MetaTensor]:
        """What the network sees: image (3, h, w) and fov (1, h, w) at canonical scale, float32.

        angle: of view, in degrees, which decides the scale where the network was trained by angle; None or "": not
        known, 45 is assumed. Raises as a call does.
        """
        pixels = photograph if isinstance(photograph, np.ndarray) else read_image(photograph)
        item: dict[str, Any] = {"image": _planes(pixels), "angle": checked_angle(angle)}
        for step in self.preprocessing.transforms[1:]:  # all but the reading; not Compose, which hides what a step says
            item = step(item)
        return {key: item[key] for key in ("image", "fov")}


def load_pipeline(
    checkpoint: str | Path = CHECKPOINT,
    device: str = "auto",
    keep_rate: float | list[float] | None = None,
    window_size: int | None = 256,
    policy: str | None = None,
    flips: bool = False,
) -> Pipeline:
    """Load a trained network with the preprocessing it was trained with.

    checkpoint: file written by a training; default: the one of the bundle. device: "auto", "cpu", "cuda:0". keep_rate:
    share of the tokens kept at each stage, 1.0 prunes nothing; default: as trained. window_size: px at canonical scale,
    None for the whole image at once. policy: "dense", or "random" to remove as many tokens by lot; default: as trained.
    flips: average over the four flips of every window, at four times the cost.
    Raises CheckpointError.
    """
    where = select_device(device)
    settings = trained(str(checkpoint))
    options = settings.get("policy_options")  # the seed of random acts at inference, too
    network = build_network(**{key: settings[key] for key in ARCHITECTURE}, policy_options=options)
    load_network(network, checkpoint)
    if keep_rate is not None:
        network = network.with_keep_rate(keep_rate)
    network = _with_policy(network, policy or settings["policy"], settings["policy"])
    own = {key: settings[key] for key in ("normalization", "rim", "by_angle")}
    steps = preprocessing(settings["diameter"], with_label=False, **own)
    inferer = FundusWindowInferer(window_size, flips=flips)
    return Pipeline(network, steps, inferer, where, settings["threshold"])


def _with_policy(network: Network, policy: str, trained_with: str) -> Network:
    if policy == trained_with:
        return network
    if policy == "dense":
        return network.dense()
    if policy == "random":
        return network.with_policy(build_policy("random", 0, network.encoder.policy.stages))
    raise CheckpointError(
        f"the checkpoint was trained for {trained_with!r}: give that, dense or random, not {policy!r}"
    )


def _planes(pixels: np.ndarray) -> MetaTensor:
    """(H, W, 3) uint8 or float in [0, 1] -> (3, H, W) float32 in [0, 1]."""
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"photograph must be (H, W, 3) RGB, got shape {pixels.shape}")
    if pixels.dtype == np.uint8:
        pixels = pixels / np.float32(255)
    elif pixels.dtype.kind != "f" or not (pixels.min() >= 0 and pixels.max() <= 1):
        raise ValueError(f"photograph must be uint8, or float in [0, 1], got {_extent(pixels)}; scale it first")
    if is_black(pixels):
        raise ValueError(f"photograph {BLACK}")
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32)))


def _extent(pixels: np.ndarray) -> str:
    return f"{pixels.dtype} from {pixels.min()} to {pixels.max()}"
