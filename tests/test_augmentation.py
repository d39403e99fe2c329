"""Augmentation: labels move with the image, and what other cameras do is within its bounds."""

import numpy as np
import pytest
import torch

from reg4pru_monai.augmentation import (
    AUGMENTATIONS,
    RandChannelMixd,
    RandDefocusd,
    RandJpegd,
    RandSensorNoised,
    augmentation,
)


def pattern(rows: int, columns: int) -> dict[str, torch.Tensor]:
    """An image whose bright stripes are the label, on a round field of view. No colour changes can hide them."""
    r, c = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    label = (((r // 8) % 2 == 0) & ((c // 16) % 2 == 0)).float()[None]
    fov = (((r - rows / 2) ** 2 + (c - columns / 2) ** 2) < (min(rows, columns) / 2) ** 2).float()[None]
    return {"image": (label * 40 - 20).repeat(3, 1, 1) * fov, "label": label * fov, "fov": fov}


@pytest.mark.parametrize("size", [(96, 128), (24, 30)])  # larger and smaller than the crop
@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_image_label_and_field_of_view_move_alike(kind: str, size: tuple[int, int]) -> None:
    steps, agreement, inside = augmentation(48, kind), [], 0.0
    steps.set_random_state(0)
    for _ in range(12):
        (item,) = steps(pattern(*size))
        assert {key: tuple(value.shape) for key, value in item.items()} == {
            **{"image": (3, 48, 48), "label": (1, 48, 48), "fov": (1, 48, 48)}
        }
        label, fov = (item[key].as_tensor() for key in ("label", "fov"))
        assert set(label.unique().tolist()) <= {0.0, 1.0}
        assert set(fov.unique().tolist()) <= {0.0, 1.0}
        assert not (label * (1 - fov)).any()
        within = fov[0] > 0
        bright = item["image"].as_tensor().mean(0) > 0
        agreement.append((bright == (label[0] > 0))[within].float().mean().item())
        inside += within.float().mean().item() / 12
    assert np.mean(agreement) > (0.9 if kind == "plain" else 0.85)  # the edges of stripes are interpolated
    assert inside > (0.5 if size[0] > 48 else 0.1)


def test_augmentation_refuses_a_crop_of_nothing() -> None:
    with pytest.raises(ValueError, match="crop_size must be a positive number of pixels, got 0"):
        augmentation(0)


def test_augmentation_names_the_kinds() -> None:
    with pytest.raises(ValueError, match="augmentation must be one of plain, cameras, strangers, got 'strong'"):
        augmentation(48, "strong")


def test_soft_labels_stay_between_0_and_1_and_are_interpolated() -> None:
    steps = augmentation(48, soft_label=True)
    steps.set_random_state(1)
    labels = torch.stack([steps(pattern(96, 128))[0]["label"].as_tensor() for _ in range(4)])
    assert labels.min() >= 0
    assert labels.max() <= 1
    assert ((labels > 0.05) & (labels < 0.95)).float().mean() > 0.01


def test_mixed_channels_are_convex_means() -> None:
    mix = RandChannelMixd(prob=1.0).set_random_state(0)
    image = torch.tensor([0.0, 1.0, 5.0])[:, None, None].expand(3, 4, 4)
    spreads = []
    for _ in range(50):
        values = mix({"image": image})["image"][:, 0, 0]
        assert (values.diff() > 0).all()  # drawn together, never crossed
        assert values.min() >= 0
        assert values.max() <= 5
        spreads.append(float(values[2] - values[0]))
    assert min(spreads) < 0.5  # nearly without colour
    assert max(spreads) > 4.5  # nearly as it was


def test_jpeg_changes_little_of_what_is_smooth_and_more_of_noise() -> None:
    jpeg = RandJpegd(prob=1.0).set_random_state(0)
    smooth = torch.linspace(-3, 3, 64).expand(3, 64, 64)
    noise = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0))
    errors = [(jpeg({"image": image})["image"] - image).abs().mean().item() for image in (smooth, noise)]
    assert errors[0] < 0.15
    assert errors[1] > 2 * errors[0]


def test_sensor_noise_differs_by_channel_and_is_as_coarse_as_enlarged_pixels() -> None:
    noisy = RandSensorNoised(prob=1.0).set_random_state(0)
    deviations, neighbours = [], []
    for _ in range(50):
        noise = noisy({"image": torch.zeros(3, 90, 60)})["image"].as_tensor()
        assert noise.dtype == torch.float32
        assert noise.mean().abs() < 0.1
        deviations.append(noise.std(dim=(1, 2)))
        neighbours.append(float((noise[..., 1:] * noise[..., :-1]).mean() / noise.square().mean()))
    every = torch.stack(deviations)
    assert every.max() < 0.85
    assert every.max() > 0.4
    assert every.min() < 0.05
    assert ((every.amax(1) / every.amin(1)).median()) > 1.2
    assert min(neighbours) < 0.2  # white
    assert max(neighbours) > 0.7  # enlarged


def test_out_of_focus_edges_are_gone_and_the_deviation_is_not() -> None:
    defocus = RandDefocusd(prob=1.0).set_random_state(0)
    image = (
        torch.randn(3, 96, 96, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1.0, 2.0, 4.0])[:, None, None]
    )
    image[:, :, 48:] += 3
    steps = []
    for _ in range(20):
        changed = defocus({"image": image})["image"].as_tensor()
        torch.testing.assert_close(changed.std(dim=(1, 2)), image.std(dim=(1, 2)), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(changed.mean(dim=(1, 2)), image.mean(dim=(1, 2)), rtol=0.02, atol=0.02)
        steps.append(float((changed[0, :, 1:] - changed[0, :, :-1]).square().mean()))
    assert max(steps) < 1  # of 2 in white noise
    assert max(steps) > 5 * min(steps)


def test_what_has_no_chance_changes_nothing() -> None:
    image = torch.randn(3, 16, 16)
    for transform in (RandChannelMixd(prob=0.0), RandJpegd(prob=0.0), RandSensorNoised(prob=0.0)):
        assert torch.equal(transform({"image": image})["image"], image)
