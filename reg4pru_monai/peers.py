"""Well-known networks to compare speed with, in 2-D: 3 channels in, 1 out, random weights.

A builder takes the side of the square image in pixels and raises whatever its library raises where that does not fit.
"""

from collections.abc import Callable, Sequence

from torch import nn


def basic_unet(size: int) -> nn.Module:
    """MONAI's BasicUNet as it comes: 5 levels of 32 to 256 channels."""
    from monai.networks.nets import BasicUNet

    return BasicUNet(spatial_dims=2, in_channels=3, out_channels=1)


def dyn_unet(size: int) -> nn.Module:
    """MONAI's DynUNet (nnU-Net) with 6 levels of 32 to 512 channels."""
    from monai.networks.nets import DynUNet

    levels = 6
    strides = [1] + [2] * (levels - 1)
    return DynUNet(2, 3, 1, kernel_size=[3] * levels, strides=strides, upsample_kernel_size=strides[1:])


def swin_unetr(size: int) -> nn.Module:
    """MONAI's SwinUNETR as it comes: feature size 24, windows of 7. Sides must be multiples of 32."""
    from monai.networks.nets import SwinUNETR

    return SwinUNETR(in_channels=3, out_channels=1, spatial_dims=2)


def unetr(size: int) -> nn.Module:
    """MONAI's UNETR as it comes: a ViT-B with patches of 16 and a convolutional decoder."""
    from monai.networks.nets import UNETR

    return UNETR(in_channels=3, out_channels=1, img_size=(size, size), spatial_dims=2)


def timm_vit_small(size: int) -> nn.Module:
    """timm's ViT-S with patches of 16: an encoder alone, without a decoder, for orientation."""
    from timm import create_model

    return create_model("vit_small_patch16_224", pretrained=False, img_size=size, num_classes=0)


PEERS: dict[str, Callable[[int], nn.Module]] = {
    "BasicUNet": basic_unet,
    "DynUNet": dyn_unet,
    "SwinUNETR": swin_unetr,
    "UNETR": unetr,
    "timm_vit_small": timm_vit_small,
}


def chosen_peers(names: Sequence[str]) -> tuple[str, ...]:
    """The peers that ``all``, ``none`` or a list of names stands for. Raises ValueError for an unknown name."""
    if list(names) in (["all"], ["none"]):
        return tuple(PEERS) if names[0] == "all" else ()
    if unknown := [name for name in names if name not in PEERS]:
        raise ValueError(f"peers must be all, none or some of {', '.join(PEERS)}, got {unknown[0]!r}")
    return tuple(dict.fromkeys(names))


def why_not(error: Exception) -> str:
    """Why a peer was left out, in one line, with the remedy where a package is missing."""
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    return f"{text}; pip install einops timm" if isinstance(error, ImportError) else text
