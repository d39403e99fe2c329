"""The fundus steps as MONAI dictionary transforms. Arrays are (C, H, W) with rows first."""

import logging
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import AsDiscreted, Compose, InvertibleTransform, MapTransform, Transform
from scipy import ndimage

from reg4pru_monai.fundus import (
    DEFAULT_DIAMETER,
    CanonicalFrame,
    FieldOfView,
    canonical_frame,
)
from reg4pru_monai.fundus.angle import checked_angle, diameter_for
from reg4pru_monai.fundus.detection import named_fov
from reg4pru_monai.fundus.frame import resize
from reg4pru_monai.fundus.io import DEFAULT_MAX_PIXELS, read_image, read_mask
from reg4pru_monai.fundus.rim import mirror_rim

Data = Mapping[Any, Any]

logger = logging.getLogger(__name__)

NORMALIZATIONS = ("local", "global", "imagenet")
_SHRINK = 4  # the blurred fields are smooth: they are computed at a quarter of the resolution
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class ReadFundusd(MapTransform):
    """Paths to arrays: images (3, H, W) float32 in [0, 1], the label (1, H, W) float32 in {0, 1}.

    Raises FundusReadError, and ValueError where image and label differ in size.
    """

    def __init__(
        self,
        keys: KeysCollection = ("image",),
        label_key: str | None = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.label_key = label_key
        self.max_pixels = max_pixels

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """Replace the paths by what they hold; the paths stay in the metadata."""
        out = dict(data)
        for key in self.key_iterator(out):
            pixels = read_image(out[key], max_pixels=self.max_pixels)
            planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
            out[key] = _tensor(planes if planes.dtype == np.float32 else planes / np.float32(255), data[key])
        if self.label_key is not None:
            mask = read_mask(out[self.label_key], max_pixels=self.max_pixels)
            out[self.label_key] = _tensor(mask[None].astype(np.float32), data[self.label_key])
            self._check_sizes(out, data)
        return out

    def _check_sizes(self, out: Data, data: Data) -> None:
        label_size = tuple(out[self.label_key].shape[1:])
        for key in self.key_iterator(dict(out)):
            size = tuple(out[key].shape[1:])
            if size != label_size:
                raise ValueError(
                    f"{data[key]} is {size[0]} x {size[1]} but its mask {data[self.label_key]} is "
                    f"{label_size[0]} x {label_size[1]} (rows x columns); pair each image with its own mask"
                )


class CanonicalFundusd(InvertibleTransform):
    """Crop to the field of view and resize it to the canonical diameter; adds the field of view as a mask.

    image (3, H, W) in [0, 1] -> (3, h, w). fov: new, (1, h, w) {0, 1}. label (1, H, W) {0, 1} -> (1, h, w) in [0, 1],
    the part of each pixel that the mask covers: a threshold here would cost what docs/decisions/0001 says.
    The image's meta gets "fov", plain numbers for FieldOfView.from_dict. The inverse brings any of them, or a
    prediction (a MetaTensor) through `Invertd(orig_keys="image", nearest_interp=False)`, back to (C, H, W), 0 outside
    the field of view; label and fov as {0, 1}.

    diameter: px. by_angle: it is that of a field of view of 45 degrees, and photographs whose angle of view is known
    get theirs in proportion; the angle stands in the data, in degrees, as a number or text. Raises ValueError where it
    is none.
    """

    def __init__(
        self,
        image_key: str = "image",
        label_key: str | None = "label",
        fov_key: str = "fov",
        diameter: float = DEFAULT_DIAMETER,
        by_angle: bool = False,
        angle_key: str = "angle",
    ) -> None:
        self.image_key, self.label_key, self.fov_key, self.angle_key = image_key, label_key, fov_key, angle_key
        self.diameter, self.by_angle = diameter, by_angle

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """Crop and resize all keys alike, by the field of view found in the image."""
        out = dict(data)
        image = out[self.image_key]
        pixels = np.asarray(image, np.float32)
        name = image.meta.get("filename_or_obj", "image") if isinstance(image, MetaTensor) else "image"
        fov = named_fov(pixels.transpose(1, 2, 0), name)
        if fov.doubtful:
            found = "no field of view found" if fov.full_frame else f"field of view of confidence {fov.confidence:.2f}"
            logger.warning("%s: %s; check the result", name, found)
        frame = canonical_frame(fov, self._diameter(out))
        out[self.image_key] = self._track(frame.forward_image(pixels), image, fov, binary=False)
        out[self.image_key].meta["fov"] = fov.to_dict()
        out[self.fov_key] = self._track(frame.forward_mask(fov.mask[None]), image, fov, binary=True)
        if self.label_key is not None and self.label_key in out:
            label = out[self.label_key]
            out[self.label_key] = self._track(frame.forward_coverage(np.asarray(label) > 0), label, fov, binary=True)
        return out

    def _diameter(self, data: Data) -> float:
        return diameter_for(checked_angle(data.get(self.angle_key)), self.diameter) if self.by_angle else self.diameter

    def _track(self, array: np.ndarray, source: Any, fov: FieldOfView, binary: bool) -> MetaTensor:
        """The new tensor with the source's metadata and the numbers that the inverse needs."""
        tensor = MetaTensor(torch.from_numpy(array.astype(np.float32)))
        if isinstance(source, MetaTensor):
            tensor.copy_meta_from(source)
        info = {"fov": fov.to_dict(), "size": array.shape[-2:], "binary": binary}
        self.push_transform(tensor, orig_size=fov.shape, extra_info=info)
        return tensor

    def inverse(self, data: Data) -> dict[Hashable, Any]:
        """Bring whichever of the keys are there back to the original frame."""
        out = dict(data)
        for key in (self.image_key, self.label_key, self.fov_key):
            if key is not None and isinstance(out.get(key), MetaTensor) and out[key].applied_operations:
                out[key] = self._inverted(out[key])
        return out

    def _inverted(self, tensor: MetaTensor) -> MetaTensor:
        info = self.pop_transform(tensor)["extra_info"]
        fov = FieldOfView.from_dict(info["fov"])
        array = CanonicalFrame(fov.shape, fov.surroundings, tuple(info["size"])).inverse(
            tensor.detach().cpu().float().numpy()
        )
        if info["binary"]:
            array = (array >= 0.5).astype(np.float32)
        result = MetaTensor(torch.from_numpy(array * fov.mask).to(tensor.device))
        return result.copy_meta_from(tensor)


class NormalizeFundusd(Transform):
    """Make the image's colours comparable: 0 outside the field of view, and no statistics over what lies there.

    local: (x - m) / sqrt((s² + mean s²) / 2), where m and s are the mean and deviation of x under a Gaussian of `sigma`
    pixels that sees the field of view only, per channel, clipped to ±5. global: (x - mean) / deviation of the channel.
    imagenet: the fixed means and deviations that pretrained backbones expect.
    rim: width of the dark rim as a share of the diameter. It is filled from its inside, and the retina continued a bit
    (see mirror_rim); both count in the statistics. 0 changes nothing. Needs CanonicalFundusd first.
    """

    def __init__(
        self,
        image_key: str = "image",
        fov_key: str = "fov",
        method: str = "local",
        sigma: float = DEFAULT_DIAMETER / 30,
        rim: float = 0.0,
    ) -> None:
        if method not in NORMALIZATIONS:
            raise ValueError(f"normalization must be one of {', '.join(NORMALIZATIONS)}, got {method!r}")
        self.image_key, self.fov_key = image_key, fov_key
        if not 0 <= rim < 0.1:
            raise ValueError(f"rim must be a share of the diameter in [0, 0.1), got {rim}")
        self.method, self.sigma, self.rim = method, sigma, rim

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """Normalise the image. Raises ValueError where a rim is to be mirrored and no field of view is known."""
        out = dict(data)
        image = out[self.image_key]
        pixels = np.asarray(image, np.float32)
        inside = np.asarray(out[self.fov_key])[0] > 0
        if self.rim:
            pixels, inside = self._mirrored(pixels, inside, image)
        if self.method == "local":
            normal = local_normalization(pixels, inside, self.sigma)
        elif self.method == "global":
            normal = global_normalization(pixels, inside)
        else:
            mean, deviation = (np.array(values, np.float32)[:, None, None] for values in _IMAGENET)
            normal = (pixels - mean) / deviation
        tensor = MetaTensor(torch.from_numpy(normal * inside))
        out[self.image_key] = tensor.copy_meta_from(image) if isinstance(image, MetaTensor) else tensor
        return out

    def _mirrored(self, pixels: np.ndarray, inside: np.ndarray, image: Any) -> tuple[np.ndarray, np.ndarray]:
        numbers = image.meta.get("fov") if isinstance(image, MetaTensor) else None
        if numbers is None:
            raise ValueError(
                "the rim cannot be mirrored: no field of view in the image's meta; use CanonicalFundusd first"
            )
        fov = FieldOfView.from_dict(numbers)
        if not fov.has_rim:
            return pixels, inside
        return mirror_rim(pixels, CanonicalFrame(fov.shape, fov.surroundings, inside.shape), fov, self.rim)


def global_normalization(image: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """(x - mean) / deviation over the field of view, per channel, clipped to ±5: (C, H, W) float32."""
    values = image[:, inside]
    if not values.size:
        return np.zeros_like(image)
    mean, deviation = values.mean(axis=1), values.std(axis=1)
    return np.clip((image - mean[:, None, None]) / (deviation[:, None, None] + 1e-4), -5, 5)


def local_normalization(image: np.ndarray, inside: np.ndarray, sigma: float) -> np.ndarray:
    """(x - m) / sqrt((s² + mean s²) / 2), clipped to ±5; see NormalizeFundusd.

    image: (C, H, W) float32. inside: (H, W) bool. sigma: px. Returns (C, H, W) float32.
    """
    small = tuple(-(-side // _SHRINK) for side in inside.shape)
    weight = resize(inside, small)
    total = _blur(weight, sigma) + 1e-6

    def field(values: np.ndarray) -> np.ndarray:
        return _blur(resize(values * inside, small), sigma) / total

    out = np.empty_like(image, np.float32)
    for channel, values in enumerate(image):
        mean = field(values)
        variance = np.maximum(field(values**2) - mean**2, 0)
        typical = float((variance * weight).sum() / max(weight.sum(), 1e-6))
        spread = np.sqrt((variance + typical) / 2 + 1e-6)
        out[channel] = (values - resize(mean, inside.shape)) / resize(spread, inside.shape)
    return np.clip(out, -5, 5)


def _blur(field: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(field, sigma / _SHRINK, mode="constant", truncate=3)


def preprocessing(
    diameter: float = DEFAULT_DIAMETER,
    with_label: bool = True,
    normalization: str = "local",
    max_pixels: int = DEFAULT_MAX_PIXELS,
    soft_label: bool = False,
    rim: float = 0.0,
    by_angle: bool = False,
) -> Compose:
    """Files to network input, the one definition for training, evaluation and inference.

    {"image": path, "label": path} -> {"image": (3, h, w), "label": (1, h, w), "fov": (1, h, w)}, float32. A megapixel
    takes 20 MB that way, which counts where a data set is cached.

    diameter: of the field of view, px. soft_label: leave the label as coverage in [0, 1] instead of {0, 1}.
    rim: see NormalizeFundusd. by_angle: see CanonicalFundusd.
    """
    label_key = "label" if with_label else None
    steps: list[Any] = [
        ReadFundusd(keys=("image",), label_key=label_key, max_pixels=max_pixels),
        CanonicalFundusd(label_key=label_key, diameter=diameter, by_angle=by_angle),
        NormalizeFundusd(method=normalization, sigma=diameter / 30, rim=rim),
    ]
    if with_label and not soft_label:
        steps.append(AsDiscreted("label", threshold=0.5))
    return Compose(steps)


def _tensor(array: np.ndarray, path: Any) -> MetaTensor:
    meta = {"filename_or_obj": str(path), "spatial_shape": np.asarray(array.shape[1:])}
    return MetaTensor(torch.from_numpy(array), meta=meta)
