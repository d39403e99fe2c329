"""The network and its decoders: what the contract over policies in test_policies.py does not cover."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from networks import SMALL, Recorder, disc, small_network
from reg4pru_monai.benchmark_variants import check_dtype
from reg4pru_monai.blocks import grid_positions
from reg4pru_monai.decoder import ChannelNorm, EomtDecoder, SkipDecoder
from reg4pru_monai.encoder import Encoder
from reg4pru_monai.policies import Decision, Policy, Stage, build_policy
from reg4pru_monai.presets import PRESETS, query_blocks, stage_plan
from reg4pru_monai.segmenter import build_segmenter, resize_positions
from reg4pru_monai.tokens import Route, Tokens


def image_of(height: int = 24, width: int = 40, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


# --- geometry ---


@torch.no_grad()
def test_tokens_outside_the_field_of_view_are_never_computed() -> None:
    network = small_network("dense").eval()
    record = Recorder(network)
    fov = disc((24, 40), (12, 20), 6)
    patches = int(F.max_pool2d(fov.float(), 4).sum())
    _, trace = network.forward_with_trace(image_of(batch=1), fov)
    assert trace.lengths == (patches + 5,) * 6 + (patches + 6,) * 2
    assert [x.shape[1] for x in record.inputs] == list(trace.lengths)
    assert all(weight is None for weight in record.weights)  # the fused kernel takes no mask


@torch.no_grad()
@pytest.mark.parametrize("decoder", ["eomt", "skip"])
def test_one_pixel_of_field_of_view_computes_its_patch(decoder: str) -> None:
    fov = torch.zeros(1, 1, 24, 40)
    fov[..., 23, 39] = 1
    _, trace = small_network("dense", decoder).eval().forward_with_trace(image_of(batch=1), fov)
    assert trace.lengths[0] == 5 + 1


@torch.no_grad()
def test_pixels_outside_reach_no_token_inside() -> None:
    network, image = small_network("reg4pru").eval(), image_of(batch=1)
    fov = torch.zeros(1, 1, 24, 40)
    fov[..., :12, :20] = 1
    changed = torch.where(fov > 0, image, image + 5)
    one, other = Recorder(network), Recorder(network)
    network(image, fov)
    network(changed, fov)
    assert torch.equal(one.outputs[7], one.outputs[15])
    assert len(other.outputs) == 16


@torch.no_grad()
def test_query_joins_before_its_blocks_and_is_never_rotated() -> None:
    network = small_network("dense", "eomt").eval()
    record = Recorder(network)
    network(image_of())
    assert [x.shape[1] for x in record.inputs] == [65] * 6 + [66] * 2
    assert torch.equal(record.inputs[6][:, :1], network.decoder.query.expand(2, -1, -1))
    assert torch.equal(record.inputs[6][:, 1:], record.outputs[5])


@torch.no_grad()
def test_deep_supervision_is_a_prediction_before_every_query_block() -> None:
    network, image = small_network("dense", "eomt").eval(), image_of()
    record = Recorder(network)
    logits, trace = network.forward_with_trace(image)
    assert len(trace.auxiliary) == query_blocks(8) == 2
    grids = [record.inputs[6], record.inputs[7], record.outputs[7]]
    for predicted, x in zip((*trace.auxiliary, logits), grids, strict=True):
        x = network.norm(x)
        wanted = network.decoder(image, x[:, :1], x[:, 6:].mT.unflatten(2, (6, 10)))
        assert torch.allclose(predicted, wanted, atol=1e-6)


@torch.no_grad()
def test_skip_decoder_has_no_query_and_no_deep_supervision() -> None:
    _, trace = small_network("dense", "skip").eval().forward_with_trace(image_of())
    assert trace.lengths == (65,) * 8
    assert trace.auxiliary == ()


@torch.no_grad()
def test_reactivation_block_is_a_choice() -> None:
    lengths = {}
    for block in (6, 7, 8):
        network = small_network("dynamicvit", "skip", reactivate=block).eval()
        lengths[block] = network.forward_with_trace(image_of())[1].lengths
    pruned = lengths[8][-1]
    assert pruned < 65
    assert lengths[6][5:] == (pruned, 65, 65)
    assert lengths[7][5:] == (pruned, pruned, 65)
    assert lengths[8][5:] == (pruned, pruned, pruned)


def test_absolute_positions_are_bicubic_on_other_grids() -> None:
    table = torch.arange(9.0).view(1, 9, 1).repeat(1, 1, 2)
    assert resize_positions(table, (3, 3)) is table
    resized = resize_positions(table, (6, 3))
    assert resized.shape == (1, 18, 2)
    assert torch.allclose(resized.view(6, 3, 2)[:, 1, 0].diff(), resized.view(6, 3, 2)[:, 0, 1].diff(), atol=1e-5)
    assert (resized.view(6, 3, 2)[:, 1, 0].diff() > 0).all()
    constant = resize_positions(torch.full((1, 16, 3), 2.5), (5, 7))
    assert torch.allclose(constant, torch.full((1, 35, 3), 2.5), atol=1e-5)


@torch.no_grad()
def test_network_with_absolute_positions_takes_any_size() -> None:
    preset = replace(SMALL, position_grid=5, qkv_bias=True, coordinate_scale=None)
    network = small_network("dynamicvit", "eomt", preset).eval()
    assert not network.encoder.rotary
    assert network.pos_embed is not None
    assert network(image_of(22, 37)).shape == (2, 1, 22, 37)
    own = network(image_of(20, 20))
    network.pos_embed.copy_(network.pos_embed.flip(1))
    assert not torch.allclose(network(image_of(20, 20)), own)


@torch.no_grad()
def test_coordinate_scale_makes_positions_independent_of_the_image_size() -> None:
    """Without it (DINOv3) the same neighbours are closer in a larger image."""
    for scale, same in ((8.0, True), (None, False)):
        encoder = small_network("dense", preset=replace(SMALL, coordinate_scale=scale)).encoder
        tables = []
        for side in (4, 8):
            middle = torch.tensor([[[side / 2 + 0.5, side / 2 - 0.5]]])
            tables.append(encoder._rope(middle, 0, (side, side)))
        assert torch.allclose(tables[0], tables[1]) is same


@torch.no_grad()
def test_tokens_know_where_they_are() -> None:
    """The same patches elsewhere give other features: the kept tokens' positions are their own."""
    network = small_network("dense").eval()
    record, image = Recorder(network), image_of(batch=1)
    network(image, torch.ones(1, 1, 24, 40))
    network(image.flip(-1).unflatten(-1, (10, 4)).flip(-1).flatten(-2), torch.ones(1, 1, 24, 40))  # columns mirrored
    first, mirrored = record.outputs[0][:, 5:].view(6, 10, 32), record.outputs[8][:, 5:].view(6, 10, 32)
    assert not torch.allclose(first, mirrored.flip(1), atol=1e-4)
    assert torch.allclose(record.inputs[0][:, 5:].view(6, 10, 32), record.inputs[8][:, 5:].view(6, 10, 32).flip(1))


def test_the_prefix_is_not_rotated() -> None:
    encoder = small_network("dense").encoder
    table = encoder._rope(grid_positions(6, 10, torch.device("cpu")), 5, (6, 10))
    assert table.shape == (2, 1, 65, 8)
    assert not table[0, :, :5].any()
    assert (table[1, :, :5] == 1).all()
    assert (table[1, :, 5:] != 1).any()


class RemovesAfterItsBlock(Policy):
    """A soft weight on the stage's own block only; the first half of the tokens goes on after it."""

    def decide(self, stage: int, tokens: Tokens, others: int, progress: float = 1.0) -> Decision:
        batch, count, _ = tokens.x.shape
        weight = torch.rand(batch, count)
        half = Route(torch.arange(count // 2).expand(batch, -1), None)
        return Decision(weight, None, half, weight, weight)


@torch.no_grad()
def test_a_policy_may_remove_tokens_after_the_stages_own_block() -> None:
    network = small_network("dense").with_policy(RemovesAfterItsBlock([Stage(2, 0.5), Stage(4, 0.5)])).eval()
    record = Recorder(network)
    _, trace = network.forward_with_trace(image_of())
    assert trace.lengths == (65, 65, 65, 35, 35, 20, 21, 66)
    assert [weight is not None for weight in record.weights] == [i in (2, 4) for i in range(8)]
    assert torch.equal(record.inputs[3][:, 5:], record.outputs[2][:, 5:35])
    assert torch.equal(record.inputs[7][:, 21 + 15 :], record.outputs[2][:, 35:])


def test_half_precision_stream_stays_single_under_autocast() -> None:
    network = small_network("dynamicvit", "skip").eval()
    record = Recorder(network)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.float16):
        _, trace = network.forward_with_trace(image_of(), torch.ones(2, 1, 24, 40))
    assert {x.dtype for x in record.outputs} == {torch.float32}
    assert trace.stages[0].score.dtype == torch.float32


# --- decoders ---


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("decoder", ["eomt", "skip"])
def test_half_precision_gives_what_single_gives(dtype: torch.dtype, decoder: str) -> None:
    try:
        check_dtype(torch.device("cpu"), str(dtype).removeprefix("torch."))
    except ValueError as error:
        pytest.skip(str(error))
    network = small_network("reg4pru", decoder, keep_rate=0.5).eval()
    image, fov = torch.randn(2, 3, 64, 64), disc((64, 64), (32, 32), 30).expand(2, -1, -1, -1)
    with torch.no_grad():
        for each in (network.dense(), network):
            expected = each(image, fov)[fov]
            with torch.autocast("cpu", dtype):
                found = each(image, fov)[fov].float()
            assert torch.isfinite(found).all()
            # Pruned, rounding may keep another token of nearly the same score, so the bulk of the pixels counts.
            error = (found - expected).abs() / expected.std()
            assert error.median() < 12 * torch.finfo(dtype).eps
            assert torch.corrcoef(torch.stack((found, expected)))[0, 1] > 0.99


def test_eomt_mask_is_the_product_of_query_and_upscaled_tokens() -> None:
    torch.manual_seed(0)
    decoder = EomtDecoder(8, patch=4, query_blocks=1, stride=2).eval()
    query, grid = torch.randn(2, 1, 8), torch.randn(2, 8, 3, 5)
    upscaled, embedding = decoder.upscale(grid), decoder.mask_mlp(query)
    assert upscaled.shape == (2, 8, 6, 10)
    wanted = (upscaled * embedding[:, 0, :, None, None]).sum(1, keepdim=True)
    assert torch.allclose(decoder(torch.zeros(2, 3, 6, 10), query, grid), wanted, atol=1e-5)
    assert decoder(torch.zeros(2, 3, 12, 20), query, grid).shape == (2, 1, 12, 20)


@pytest.mark.parametrize(("patch", "stride", "steps"), [(16, 4, 2), (14, 4, 2), (8, 2, 2), (8, 4, 1)])
def test_eomt_upscales_to_its_stride(patch: int, stride: int, steps: int) -> None:
    assert len(EomtDecoder(8, patch, 1, stride).upscale) == steps


def test_eomt_stride_too_large() -> None:
    with pytest.raises(ValueError, match="decoder stride must be at most half the patch size 4, got 4"):
        EomtDecoder(8, 4, 1, 4)


def test_channel_norm_normalises_over_channels() -> None:
    x = torch.randn(2, 6, 3, 4)
    y = ChannelNorm(6)(x)
    assert torch.allclose(y.mean(1), torch.zeros(2, 3, 4), atol=1e-6)
    assert torch.allclose(y, F.layer_norm(x.movedim(1, -1), (6,)).movedim(-1, 1), atol=1e-6)


@torch.no_grad()
def test_skip_decoder_sees_single_pixels() -> None:
    torch.manual_seed(0)
    decoder = SkipDecoder(8, width=4).eval()
    image, grid = torch.zeros(1, 3, 16, 16), torch.zeros(1, 8, 2, 2)
    image[..., 8, 8] = 3
    difference = (decoder(image, grid[:, :0, 0], grid) - decoder(torch.zeros_like(image), grid[:, :0, 0], grid)).abs()
    assert difference.shape == (1, 1, 16, 16)
    assert difference[0, 0, 8, 8] > 0


# --- building ---


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("decoder", ["eomt", "skip"])
def test_every_preset_builds_and_runs(preset: str, decoder: str) -> None:
    with torch.device("meta"):
        network = build_segmenter(preset, decoder=decoder).eval()
        assert network(torch.empty(1, 3, 100, 132)).shape == (1, 1, 100, 132)


def test_vit_s_with_eomt_has_the_published_number_of_parameters() -> None:
    """METHOD: 23.78 M with three selectors, 1155 of them in a class head that is never used and not built here."""
    with torch.device("meta"):
        network = build_segmenter("small", "reg4pru", "eomt")
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(23.78, abs=0.02)


def test_stages_scale_with_the_depth() -> None:
    assert [stage.block for stage in stage_plan(12)] == [2, 5, 8]
    assert [stage.block for stage in stage_plan(8)] == [1, 3, 5]
    assert [stage.block for stage in stage_plan(24)] == [4, 10, 16]
    assert [stage.keep for stage in stage_plan(12, [0.9, 0.8, 0.7])] == [0.9, 0.8, 0.7]
    assert (query_blocks(12), query_blocks(8), query_blocks(2)) == (3, 2, 1)


def test_options_reach_their_place() -> None:
    network = build_segmenter(
        "tiny", "reg4pru", "skip", [0.6, 0.5], [2, 4], reactivate=6, policy_options={"route_keep": 0.3, "ramp": 0.4}
    )
    assert network.encoder.policy.stages == (Stage(2, 0.6), Stage(4, 0.5))
    assert network.encoder.reactivate == 6
    assert network.encoder.policy.route_keep == 0.3
    assert network.encoder.policy.base.ramp == 0.4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"preset": "huge"},
            "preset must be one of tiny, tiny_4, tiny_12, tiny_stem, tiny_early, small, base.* got 'huge'",
        ),
        ({"policy": "tome"}, "policy must be one of .* got 'tome'"),
        ({"decoder": "unet"}, "decoder must be one of eomt, skip, got 'unet'"),
        ({"keep_rate": 0.0}, r"keep_rate must be in \(0, 1\], got 0.0"),
        ({"keep_rate": 1.5}, r"keep_rate must be in \(0, 1\], got 1.5"),
        ({"keep_rate": [0.7, 0.7]}, "keep_rate must be one number or one for each of 3 stages"),
        ({"keep_rate": [0.7], "stages": [1, 2]}, "keep_rate must be one number or one for each of 2 stages"),
        (
            {"stages": [7]},
            "pruning stages must lie before the reactivation block.* got stages at .7., reactivation at 7",
        ),
        ({"reactivate": 9}, "within 1..depth.* reactivation at 9, depth 8"),
        ({"reactivate": 0}, "within 1..depth.* reactivation at 0, depth 8"),
    ],
)
def test_numbers_that_do_not_fit(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_segmenter(**arguments)


def test_encoder_checks_its_stages() -> None:
    with pytest.raises(ValueError, match="pruning stages must lie before"):
        Encoder([], build_policy("dynamicvit", 8, [Stage(-1, 0.5)]), 0)
