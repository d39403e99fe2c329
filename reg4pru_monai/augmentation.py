"""What training does to a preprocessed photograph: other positions, other scales, other cameras."""

import io
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    RandAffined,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSharpend,
    RandGaussianSmoothd,
    RandomizableTransform,
    RandScaleIntensityd,
    RandShiftIntensityd,
    RandSimulateLowResolutiond,
    RandZoomd,
    SelectItemsd,
    SpatialPadd,
)
from PIL import Image
from scipy import ndimage

from .windows import plain

AUGMENTATIONS = ("plain", "cameras", "strangers")
Keys = tuple[str, str, str]
KEYS: Keys = ("image", "label", "fov")


def augmentation(crop_size: int, kind: str = "cameras", soft_label: bool = False, keys: Keys = KEYS) -> Compose:
    """A random crop inside the field of view of a preprocessed image, changed at random.

    plain: turned, flipped, scaled by a fifth, recoloured, blurred, noisy. cameras: also what other cameras differ in:
    angle of view (0.65 to 1.5 times the scale), resolution, sharpening, colours down to none, sensor noise, JPEG
    compression. strangers: also out of focus, up to the width of a wide vessel.
    soft_label: interpolate the label, coverage in [0, 1], instead of taking the nearest value.

    Returns tensors (C, crop_size, crop_size) under the keys. The crop is taken larger and cut after turning, so that
    corners rarely hold padding. Raises ValueError.
    """
    if crop_size < 1:
        raise ValueError(f"crop_size must be a positive number of pixels, got {crop_size}")
    if kind not in AUGMENTATIONS:
        raise ValueError(f"augmentation must be one of {', '.join(AUGMENTATIONS)}, got {kind!r}")
    modes = ("bilinear", "bilinear" if soft_label else "nearest", "nearest")
    cameras = kind != "plain"
    larger = int(np.ceil(crop_size * (1.8 if cameras else 1.5)))
    return Compose(
        [
            SpatialPadd(keys, spatial_size=(larger, larger)),
            RandCropByPosNegLabeld(keys, label_key=keys[2], spatial_size=(larger, larger), pos=1, neg=0),
            *([RandZoomd(keys, prob=0.7, min_zoom=0.65, max_zoom=1.5, mode=modes, padding_mode="constant")] * cameras),
            RandAffined(
                keys,
                prob=1.0,
                spatial_size=(crop_size, crop_size),
                rotate_range=np.pi,
                scale_range=(0.2, 0.2),
                mode=modes,
                padding_mode="zeros",
            ),
            RandFlipd(keys, prob=0.5, spatial_axis=0),
            *([RandDefocusd(keys[0], prob=0.4)] * (kind == "strangers")),
            *(_cameras(keys[0]) if cameras else ()),
            RandScaleIntensityd(keys[0], factors=0.3, prob=0.8, channel_wise=True),
            RandShiftIntensityd(keys[0], offsets=0.3, prob=0.5, channel_wise=True),
            RandGaussianSmoothd(keys[0], sigma_x=(0.3, 1.0), sigma_y=(0.3, 1.0), prob=0.2),
            RandGaussianNoised(keys[0], std=0.2, prob=0.3),
            *([RandJpegd(keys[0], prob=0.2)] * cameras),
            SelectItemsd(keys),
        ]
    )


def _cameras(image: str) -> list[Any]:
    """How cameras differ once illumination and colour cast are normalised away."""
    return [
        RandChannelMixd(image, prob=0.4),
        RandGaussianSharpend(
            image, sigma1_x=(0.5, 1.5), sigma1_y=(0.5, 1.5), sigma2_x=0.5, sigma2_y=0.5, alpha=(0.5, 3.0), prob=0.15
        ),
        RandSimulateLowResolutiond(image, prob=0.2, zoom_range=(0.4, 1.0), upsample_mode="bilinear"),
        RandSensorNoised(image, prob=0.3),
    ]


class _RandImaged(RandomizableTransform):
    """Changes the image with a probability; the generator is ``self.R``."""

    def __init__(self, image_key: str = "image", prob: float = 0.1) -> None:
        RandomizableTransform.__init__(self, prob)
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Change the image or pass it on."""
        out = dict(data)
        self.randomize(None)
        if self._do_transform:
            image = out[self.image_key]
            changed = MetaTensor(self.changed(plain(torch.as_tensor(image))))
            out[self.image_key] = changed.copy_meta_from(image) if isinstance(image, MetaTensor) else changed
        return out

    def changed(self, image: torch.Tensor) -> torch.Tensor:
        """(C, H, W) float32 -> the same shape."""
        raise NotImplementedError


class RandChannelMixd(_RandImaged):
    """Draw the channels together: x + u (m - x), m a random convex mean of the channels, u uniform in [0, 1].

    From the colours as they are to a photograph without colour, such as a red-free one.
    """

    def changed(self, image: torch.Tensor) -> torch.Tensor:
        """(C, H, W) float32 -> the same shape."""
        weights = torch.as_tensor(self.R.dirichlet(np.ones(len(image))), dtype=image.dtype)
        grey = torch.einsum("c,chw->hw", weights, image)
        return torch.lerp(image, grey.expand_as(image), float(self.R.uniform()))


class RandDefocusd(_RandImaged):
    """Put the photograph out of focus by a Gaussian of 0.5 to 4 px, whose width at half height is up to 9 px.

    Each channel keeps its deviation: normalisation divides by that of the blurred photograph.
    """

    def changed(self, image: torch.Tensor) -> torch.Tensor:
        """(C, H, W) float32 -> the same shape."""
        sigma = self.R.uniform(0.5, 4)
        pixels = image.numpy()
        blurred = ndimage.gaussian_filter(pixels, (0, sigma, sigma))
        mean = blurred.mean((1, 2), keepdims=True)
        gain = pixels.std((1, 2), keepdims=True) / np.maximum(blurred.std((1, 2), keepdims=True), 1e-3)
        return torch.from_numpy(mean + gain * (blurred - mean))


class RandSensorNoised(_RandImaged):
    """Add white noise of a photograph's own pixels, which are enlarged up to three times.

    Unlike white noise at canonical scale it is as coarse as thin vessels. The deviation, in those of the photograph's
    brightness, is uniform in [0, 0.8], and at least 0.3 of that in each channel: normalisation amplifies the channel
    that is darkest. Noise of 4 of 255 levels in photographs of 12 pixels to a degree becomes 0.12 (red), 0.2 (green)
    and 0.46 (blue).
    """

    def changed(self, image: torch.Tensor) -> torch.Tensor:
        """(C, H, W) float32 -> the same shape."""
        channels, *size = image.shape
        enlarged = self.R.uniform(1, 3)
        deviation = self.R.uniform(0, 0.8) * self.R.uniform(0.3, 1, (channels, 1, 1))
        noise = self.R.normal(0, deviation, (channels, *(max(1, round(side / enlarged)) for side in size)))
        pixels = torch.as_tensor(noise, dtype=image.dtype)[None]
        return image + F.interpolate(pixels, size, mode="bilinear", align_corners=False)[0]


class RandJpegd(_RandImaged):
    """Compress a normalised image of three channels as JPEG of quality 30 to 90.

    A unit of the normalised image, a deviation of the photograph's brightness, counts as 8 to 25 of 255 levels.
    """

    def changed(self, image: torch.Tensor) -> torch.Tensor:
        """(3, H, W) float32 -> the same shape."""
        levels = self.R.uniform(8, 25)
        pixels = np.clip(image.numpy() * levels + 128, 0, 255).round().astype(np.uint8)
        with io.BytesIO() as file:
            Image.fromarray(pixels.transpose(1, 2, 0)).save(file, "JPEG", quality=int(self.R.randint(30, 91)))
            decoded = np.asarray(Image.open(file), np.float32).transpose(2, 0, 1)
        return torch.from_numpy((decoded - 128) / np.float32(levels))
