import doctest
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.inferers import SlidingWindowInferer

from networks import small_network
from reg4pru_monai import windows
from reg4pru_monai.accounting import peak_memory
from reg4pru_monai.windows import BACKGROUND_LOGIT, FundusWindowInferer, window_positions


class Recorder:
    """A network that returns the first channel and remembers its calls."""

    def __init__(self) -> None:
        self.images: list[torch.Tensor] = []
        self.fovs: list[torch.Tensor] = []

    def __call__(self, image: torch.Tensor, fov: torch.Tensor | None = None) -> torch.Tensor:
        self.images.append(image)
        if fov is not None:
            self.fovs.append(fov)
        return image[:, :1]

    @property
    def windows(self) -> int:
        return sum(len(batch) for batch in self.images)


def _ramp(batch: int, height: int, width: int) -> torch.Tensor:
    """Images whose first channel is a known function of the place, different in each image."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    plane = torch.sin(rows / 7.0) + torch.cos(columns / 5.0)
    return torch.stack([torch.stack([plane * (b + 1), rows / height, columns / width]) for b in range(batch)])


def _disc(height: int, width: int, radius: float) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return ((rows - height / 2) ** 2 + (columns - width / 2) ** 2 < radius**2)[None, None]


# --- geometry ---------------------------------------------------------------------------------------------------------


def test_positions_by_hand() -> None:
    assert doctest.testmod(windows) == (0, 2)
    assert window_positions((4, 10), (4, 4), 0.25) == [(0, 0), (0, 3), (0, 6)]
    assert window_positions((5, 4), (4, 4), 0.25) == [(0, 0), (1, 0)]
    assert window_positions((8, 8), (4, 4), 0) == [(0, 0), (0, 4), (4, 0), (4, 4)]
    assert window_positions((7, 5), (7, 5), 0.5) == [(0, 0)]


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_positions_cover_every_pixel_and_stay_inside(data: st.DataObject) -> None:
    size = data.draw(st.tuples(st.integers(1, 60), st.integers(1, 60)))
    window = data.draw(st.tuples(st.integers(1, size[0]), st.integers(1, size[1])))
    overlap = data.draw(st.floats(0, 0.95))
    covered = torch.zeros(size, dtype=torch.int64)
    positions = window_positions(size, window, overlap)
    for row, column in positions:
        assert 0 <= row <= size[0] - window[0]
        assert 0 <= column <= size[1] - window[1]
        covered[row : row + window[0], column : column + window[1]] += 1
    assert covered.min() >= 1
    assert len(set(positions)) == len(positions)


def test_overlap_changes_the_positions() -> None:
    counts = [len(window_positions((256, 256), (64, 64), overlap)) for overlap in (0, 0.25, 0.5, 0.75)]
    assert counts == [16, 25, 49, 169]
    with_overlap = [FundusWindowInferer(64, overlap=o) for o in (0.0, 0.5)]
    calls = []
    for inferer in with_overlap:
        network = Recorder()
        inferer(_ramp(1, 256, 256), network)
        calls.append(network.windows)
    assert calls == [16, 49]


@pytest.mark.parametrize("overlap", [1, 1.5, -0.1])
def test_overlap_errors(overlap: float) -> None:
    with pytest.raises(ValueError, match=r"overlap must be in \[0, 1\), got"):
        window_positions((8, 8), (4, 4), overlap)
    with pytest.raises(ValueError, match=r"overlap must be in \[0, 1\), got"):
        FundusWindowInferer(4, overlap=overlap)
    with pytest.raises(ValueError, match=r"overlap must be in \[0, 1\), got"):
        FundusWindowInferer(None, overlap=overlap)


def test_geometry_errors() -> None:
    for window in (0, (4, -1), (1, 2, 3)):
        with pytest.raises(ValueError, match="window_size must be one or two positive"):
            FundusWindowInferer(window)
    with pytest.raises(ValueError, match="does not fit in an image"):
        window_positions((3, 8), (4, 4), 0.5)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        FundusWindowInferer(4, batch_size=0)
    with pytest.raises(ValueError, match="blend must be one of"):
        FundusWindowInferer(4, blend="hann")


# --- stitching --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blend", ["gaussian", "constant"])
@pytest.mark.parametrize(
    ("size", "window", "overlap"),
    [((96, 96), 32, 0.25), ((70, 101), (32, 48), 0.5), ((20, 50), 32, 0.25), ((20, 25), 32, 0), ((33, 47), None, 0.25)],
)
def test_a_pixelwise_network_is_stitched_exactly(
    blend: str, size: tuple[int, int], window: int | tuple[int, int] | None, overlap: float
) -> None:
    image, network = _ramp(2, *size), Recorder()
    result = FundusWindowInferer(window, overlap, batch_size=3, blend=blend)(image, network)
    assert result.shape == (2, 1, *size)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, image[:, :1], atol=1e-5, rtol=0)
    assert max(len(batch) for batch in network.images) <= 3


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_every_field_of_view_pixel_is_computed(data: st.DataObject) -> None:
    size = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    window = data.draw(st.tuples(st.integers(1, 24), st.integers(1, 24)))
    overlap, batch = data.draw(st.floats(0, 0.8)), data.draw(st.integers(1, 3))
    share, seed = data.draw(st.floats(0, 1)), data.draw(st.integers(0, 1000))
    fov = torch.rand((batch, 1, *size), generator=torch.Generator().manual_seed(seed)) < share
    image = _ramp(batch, *size)
    result = FundusWindowInferer(window, overlap, batch_size=5)(image, Recorder(), fov=fov)
    expected = torch.where(fov, image[:, :1], BACKGROUND_LOGIT)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


GEOMETRIES = [  # size, overlap, batch: square, not square, smaller than the window in one direction and in both
    ((90, 70), 0.3, 4),
    ((64, 100), 0.25, 1),
    ((40, 81), 0.5, 3),
    ((100, 20), 0.5, 8),
    ((30, 25), 0.0, 2),
    ((96, 96), 0.0, 5),
    ((77, 131), 0.75, 7),
]


@pytest.mark.parametrize("blend", ["gaussian", "constant"])
@pytest.mark.parametrize(("size", "overlap", "batch"), GEOMETRIES)
@pytest.mark.parametrize("with_fov", [True, False])
def test_equals_the_sliding_window_of_monai(
    blend: str, size: tuple[int, int], overlap: float, batch: int, with_fov: bool
) -> None:
    torch.manual_seed(0)
    convolution = torch.nn.Conv2d(3, 1, 7, padding=3)
    image = torch.randn(2, 3, *size)
    reference = SlidingWindowInferer((48, 32), sw_batch_size=batch, overlap=overlap, mode=blend)
    ours = FundusWindowInferer((48, 32), overlap=overlap, batch_size=batch, blend=blend)
    fov = torch.ones(2, 1, *size) if with_fov else None
    with torch.no_grad():
        expected = reference(image, convolution)
        result = ours(image, lambda x, *_: convolution(x), fov=fov)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("blend", ["gaussian", "constant"])
@pytest.mark.parametrize(("size", "overlap", "batch"), GEOMETRIES)
def test_equals_monai_inside_the_field_of_view(blend: str, size: tuple[int, int], overlap: float, batch: int) -> None:
    torch.manual_seed(0)
    convolution = torch.nn.Conv2d(4, 1, 7, padding=3)
    fov = torch.cat([_disc(*size, max(size) / 3), _disc(*size, min(size) / 4)])

    def network(x: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        return convolution(torch.cat([x, inside], dim=1))

    _assert_equals_monai(network, torch.randn(2, 3, *size), fov, (48, 32), overlap, batch, blend)


@pytest.mark.parametrize("decoder", ["skip", "eomt"])
@pytest.mark.parametrize("policy", ["dense", "reg4pru"])
def test_the_segmenter_equals_itself_through_monai(policy: str, decoder: str) -> None:
    network = small_network(policy, decoder).eval()
    torch.manual_seed(1)
    fov = torch.cat([_disc(88, 120, 50), _disc(88, 120, 20)])
    _assert_equals_monai(network, torch.randn(2, 3, 88, 120) * fov, fov, (48, 48), 0.25, 5, "gaussian")


def _assert_equals_monai(
    network: Callable[..., torch.Tensor],
    image: torch.Tensor,
    fov: torch.Tensor,
    window: tuple[int, int],
    overlap: float,
    batch: int,
    blend: str,
) -> None:
    """MONAI's inferer gets the field of view as a fourth channel, so that it cuts it into the same windows."""

    def four_channels(x: torch.Tensor) -> torch.Tensor:
        return network(x[:, :3], x[:, 3:] > 0)

    reference = SlidingWindowInferer(window, sw_batch_size=batch, overlap=overlap, mode=blend)
    with torch.inference_mode():
        expected = reference(torch.cat([image, fov], dim=1), four_channels)
        result = FundusWindowInferer(window, overlap, batch, blend)(image, network, fov=fov)
    expected = torch.where(fov, expected, BACKGROUND_LOGIT)
    assert fov.any()
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


def test_windows_outside_the_field_of_view_are_not_computed() -> None:
    image, counts = _ramp(1, 128, 160), []
    for radius in (500, 60, 30, 10):
        network, fov = Recorder(), _disc(128, 160, radius)
        result = FundusWindowInferer(32, overlap=0.25)(image, network, fov=fov)
        torch.testing.assert_close(result, torch.where(fov, image[:, :1], BACKGROUND_LOGIT), atol=1e-5, rtol=0)
        counts.append(network.windows)
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] < counts[0] / 3
    assert counts[0] == len(window_positions((128, 160), (32, 32), 0.25))


def test_an_empty_field_of_view_never_calls_the_network() -> None:
    def network(*_: torch.Tensor) -> torch.Tensor:
        raise AssertionError("called")

    result = FundusWindowInferer(32)(_ramp(2, 50, 60), network, fov=torch.zeros(2, 1, 50, 60))
    assert (result == BACKGROUND_LOGIT).all()
    assert torch.sigmoid(result).max() < 1e-12


def test_the_network_gets_the_field_of_view_of_its_window() -> None:
    image, fov = _ramp(2, 64, 80), torch.cat([_disc(64, 80, 30), _disc(64, 80, 12)])
    image[:, 1] = fov[:, 0].float()
    network = Recorder()
    FundusWindowInferer(32, overlap=0.5, batch_size=4)(image, network, fov=fov.float())
    for window, inside in zip(network.images, network.fovs, strict=True):
        assert inside.dtype == torch.bool
        assert torch.equal(window[:, 1:2], inside.float())


@pytest.mark.parametrize("batch", [1, 3, 8, 100])
def test_windows_of_all_images_share_the_forwards(batch: int) -> None:
    image, fov = _ramp(3, 100, 120), torch.cat([_disc(100, 120, r) for r in (60, 25, 0)])
    one_by_one, network = Recorder(), Recorder()
    inferer = FundusWindowInferer(32, batch_size=batch)
    for i in range(3):
        inferer(image[i : i + 1], one_by_one, fov=fov[i : i + 1])
    inferer(image, network, fov=fov)
    assert network.windows == one_by_one.windows
    assert len(network.images) == math.ceil(network.windows / batch)
    assert [len(x) for x in network.images[:-1]] == [batch] * (len(network.images) - 1)


def test_the_default_batch_on_a_cpu_is_two() -> None:
    network = Recorder()
    FundusWindowInferer(32, overlap=0)(_ramp(1, 96, 96), network)
    assert [len(batch) for batch in network.images] == [2, 2, 2, 2, 1]


def test_windows_are_in_the_layout_of_fast_convolutions() -> None:
    network = Recorder()
    FundusWindowInferer(32)(_ramp(2, 70, 90), network, fov=torch.ones(2, 1, 70, 90))
    assert all(batch.is_contiguous(memory_format=torch.channels_last) for batch in network.images)


def test_windows_of_similar_content_share_a_batch() -> None:
    network = Recorder()
    fov = torch.cat([_disc(128, 128, 20), _disc(128, 128, 62)])
    FundusWindowInferer(32, overlap=0.25, batch_size=4)(_ramp(2, 128, 128), network, fov=fov)
    counts = torch.cat([inside.sum((1, 2, 3)) for inside in network.fovs])
    assert (counts.diff() <= 0).all()
    assert counts.min() > 0


def test_padding_is_outside_the_field_of_view() -> None:
    network = Recorder()
    FundusWindowInferer((32, 40))(_ramp(1, 20, 25), network, fov=torch.ones(1, 1, 20, 25))
    assert network.fovs[0].shape == (1, 1, 32, 40)
    assert network.fovs[0].sum() == 20 * 25
    assert network.images[0].shape == (1, 3, 32, 40)


def test_no_window_size_means_one_forward_of_the_whole_image() -> None:
    network = Recorder()
    result = FundusWindowInferer(None)(_ramp(1, 37, 53), network, fov=_disc(37, 53, 15))
    assert [tuple(batch.shape) for batch in network.images] == [(1, 3, 37, 53)]
    assert result.shape == (1, 1, 37, 53)


def test_images_of_a_batch_do_not_influence_each_other() -> None:
    image, fov = _ramp(3, 70, 90), torch.cat([_disc(70, 90, r) for r in (40, 0, 15)])
    inferer = FundusWindowInferer(32, batch_size=4)
    together = inferer(image, Recorder(), fov=fov)
    alone = torch.cat([inferer(image[i : i + 1], Recorder(), fov=fov[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


def test_results_share_nothing_with_later_ones() -> None:
    inferer, image = FundusWindowInferer(32), _ramp(2, 70, 90)
    first = inferer(image[:1], Recorder())
    kept = first.clone()
    second = inferer(image[1:], Recorder())
    assert torch.equal(first, kept)
    first.fill_(torch.nan)
    assert torch.equal(inferer(image[1:], Recorder()), second)
    torch.testing.assert_close(second, image[1:, :1], atol=1e-5, rtol=0)


def test_one_inferer_serves_several_threads() -> None:
    inferer, images = FundusWindowInferer(32), _ramp(8, 70, 90)
    fovs = torch.cat([_disc(70, 90, 10 + 5 * i) for i in range(8)])
    expected = [inferer(images[i : i + 1], Recorder(), fov=fovs[i : i + 1]) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            windows._normaliser.cache_clear()
            found = pool.map(lambda i: inferer(images[i : i + 1], Recorder(), fov=fovs[i : i + 1]), range(8))
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_gradients_pass_also_after_inference_mode() -> None:
    image, factor = _ramp(1, 50, 70), torch.nn.Parameter(torch.tensor(2.0))
    inferer = FundusWindowInferer(32)
    windows._normaliser.cache_clear()
    windows._importance.cache_clear()
    with torch.inference_mode():
        inferer(image, Recorder())
    inferer(image, lambda x: x[:, :1] * factor).sum().backward()
    torch.testing.assert_close(factor.grad, image[:, 0].sum(), rtol=1e-4, atol=1e-2)


def test_memory_does_not_grow_with_the_number_of_windows() -> None:
    image, fov = _ramp(1, 256, 256), torch.ones(1, 1, 256, 256)
    peaks = []
    for overlap in (0.25, 0.75):
        inferer = FundusWindowInferer(64, overlap)
        inferer(image, Recorder(), fov=fov)  # the weights of this size are kept from here on
        peaks.append(peak_memory(lambda f=inferer: f(image, lambda x, _: x[:, :1], fov=fov), torch.device("cpu")))
    assert peaks[1] == pytest.approx(peaks[0], rel=0.05)
    assert peaks[1] * 2**20 < 4 * image.nbytes


def test_half_precision_logits_are_blended_in_single() -> None:
    image = _ramp(1, 64, 64)
    result = FundusWindowInferer(32)(image, lambda x: x[:, :1].to(torch.bfloat16))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, image[:, :1], atol=2e-2, rtol=0)


def test_metadata_and_arguments_pass_through() -> None:
    image = MetaTensor(_ramp(1, 40, 40), meta={"filename_or_obj": "eye.png"})

    def network(x: torch.Tensor, scale: float, *, offset: float) -> torch.Tensor:
        assert not isinstance(x, MetaTensor)
        return x[:, :1] * scale + offset

    result = FundusWindowInferer(32, device="cpu")(image, network, 2.0, offset=1.0)
    assert isinstance(result, MetaTensor)
    assert result.meta["filename_or_obj"] == "eye.png"
    torch.testing.assert_close(result.as_tensor(), image.as_tensor()[:, :1] * 2 + 1, atol=1e-5, rtol=0)


def test_input_errors() -> None:
    inferer, image = FundusWindowInferer(16), torch.zeros(1, 3, 32, 32)
    with pytest.raises(ValueError, match=r"inputs must be \(B, C, H, W\), got shape \(3, 32, 32\)"):
        inferer(image[0], Recorder())
    with pytest.raises(ValueError, match=r"fov must be \(B, 1, H, W\) = \(1, 1, 32, 32\)"):
        inferer(image, Recorder(), fov=torch.ones(1, 32, 32))
    with pytest.raises(ValueError, match=r"must return logits of shape \(4, 1, 16, 16\), got \(4, 3, 16, 16\)"):
        FundusWindowInferer(16, overlap=0, batch_size=4)(image, lambda x: x)


def test_as_the_inferer_of_an_evaluator() -> None:
    class Network(torch.nn.Module):
        def forward(self, image: torch.Tensor, fov: torch.Tensor) -> torch.Tensor:
            return image[:, :1] * fov

    def prepare(batch: dict[str, torch.Tensor], device: torch.device, non_blocking: bool, **_: object) -> tuple:
        return batch["image"].to(device), None, (), {"fov": batch["fov"].to(device)}

    image, fov = _ramp(1, 70, 90)[0], _disc(70, 90, 30)[0]
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset([{"image": MetaTensor(image), "fov": fov}]), batch_size=1, num_workers=0),
        network=Network(),
        prepare_batch=prepare,
        inferer=FundusWindowInferer(32),
        decollate=False,
    )
    evaluator.run()
    expected = torch.where(fov, image[:1], BACKGROUND_LOGIT)
    torch.testing.assert_close(evaluator.state.output["pred"][0].as_tensor(), expected, atol=1e-5, rtol=0)


# --- flips


@pytest.mark.parametrize("window", [24, None])
@pytest.mark.parametrize("with_fov", [True, False])
def test_flips_average_probabilities_and_are_symmetric(window: int | None, with_fov: bool) -> None:
    """The mean over flips is that of whole images flipped, and commutes with flipping."""
    image, fov = _ramp(2, 48, 48), _disc(48, 48, 20.0).expand(2, -1, -1, -1) if with_fov else None
    network = torch.nn.Conv2d(3, 1, 3, padding=1)  # sees left from right
    plain, flipping = (FundusWindowInferer(window, overlap=0.5, flips=flips) for flips in (False, True))

    def call(*parts: torch.Tensor) -> torch.Tensor:
        return 3 * network(parts[0])

    with torch.no_grad():
        found = flipping(image, call, fov=fov)
        turned = flipping(image.flip(-1), call, fov=None if fov is None else fov.flip(-1)).flip(-1)
        if window is None:
            flips = [plain(image.flip(axes), call).flip(axes).sigmoid() for axes in windows.FLIPS]
            inside = torch.ones_like(found, dtype=torch.bool) if fov is None else fov.bool()
            torch.testing.assert_close(found.sigmoid()[inside], torch.stack(flips).mean(0)[inside])
    torch.testing.assert_close(found, turned, atol=1e-4, rtol=1e-4)
    assert (found - plain(image, call, fov=fov)).abs().max() > 0.01


def test_flips_cost_four_forwards_and_keep_extreme_logits() -> None:
    for value in (-60.0, 0.3, 60.0):
        recorder = Recorder()
        image = torch.full((1, 3, 16, 16), value)
        found = FundusWindowInferer(8, overlap=0.0, batch_size=4, flips=True)(image, recorder)
        torch.testing.assert_close(found, image[:, :1])
        assert recorder.windows == 4 * 4
