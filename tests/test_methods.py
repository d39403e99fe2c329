"""Golden values of gumbel, cropr and random; sampled keep rates; schedules; masked attention; compiled training."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from networks import Recorder, disc, small_network
from reg4pru_monai.losses import TrainingStep
from reg4pru_monai.policies import Stage, StageTrace, Step, Trace, Window, build_policy
from reg4pru_monai.policies.base import active_rates, active_targets
from reg4pru_monai.policies.cropr import Cropr, patch_labels
from reg4pru_monai.presets import reactivation, stage_plan
from reg4pru_monai.segmenter import build_segmenter
from reg4pru_monai.tokens import Route, Tokens, keep_count

SIZE = (24, 40)  # 6 x 10 patches of 4
STAGES = (Stage(1, 0.7), Stage(3, 0.5))


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def tokens(batch: int = 2, count: int = 40, dim: int = 16) -> Tokens:
    torch.manual_seed(3)
    pos = torch.stack((torch.arange(count) // 8, torch.arange(count) % 8), dim=-1).unsqueeze(0) + 0.5
    return Tokens(torch.randn(batch, count, dim, requires_grad=True), pos, None)


def trace_of(records: list[StageTrace], grid: tuple[int, int], patch: int = 1) -> Trace:
    return Trace(grid, patch, (), tuple(records), ())


# --- gumbel ---


def test_gumbel_gates_its_own_block_and_removes_tokens_after_it(image: Tensor) -> None:
    network = small_network("gumbel", keep_logit=0.0, ramp=0.0).train()
    record = Recorder(network)
    _, trace = network.forward_with_trace(image)
    first, second = keep_count(60, 0.7, 5), keep_count(keep_count(60, 0.7, 5), 0.7, 5)
    assert trace.lengths[:6] == (65, 65, first + 5, first + 5, second + 5, second + 5)
    assert [weight is not None for weight in record.weights] == [False, True, False, True, False, True, False, False]
    gate = record.weights[1]
    assert gate is not None
    assert torch.equal(gate[:, 5:], trace.stages[0].keep)
    # The survivors are those of the highest noisy scores.
    score, pool = trace.stages[0].score, trace.stages[1].pool.index
    assert torch.equal(score.topk(first, dim=1).indices.sort(1).values, pool)


def test_gumbel_budget_by_hand() -> None:
    """Rates of their own, 0.7 and 0.5, not cumulative; the second stage is about the tokens that are left."""
    policy = build_policy("gumbel", 16, STAGES, budget_weight=4.0)
    keeps = [torch.tensor([[1.0, 1, 1, 0]]), torch.tensor([[1.0, 0, 0]])]
    pools = [Route(torch.arange(4).unsqueeze(0), None), Route(torch.tensor([[0, 1, 3]]), None)]
    records = [StageTrace(s, p, k, k) for s, p, k in zip(STAGES, pools, keeps, strict=True)]
    loss = policy.loss(trace_of(records, (1, 4)), torch.zeros(1), progress=1.0)
    assert float(loss["budget"]) == pytest.approx(4 * (0.05**2 + (1 / 3 - 0.5) ** 2) / 2)


def test_gumbel_and_dynamicvit_are_one_at_inference(image: Tensor) -> None:
    one, other = (small_network(name).eval() for name in ("gumbel", "dynamicvit"))
    with torch.no_grad():
        assert torch.equal(one(image), other(image))


# --- cropr ---


def test_patch_labels_by_hand() -> None:
    label = torch.zeros(1, 1, 5, 5)
    label[0, 0, 0, 1] = 1  # one vessel pixel in the first patch
    label[0, 0, 2:4, 0:2] = -1  # nothing of this patch is labelled
    label[0, 0, 2, 2] = -1  # a part of this one is not
    label[0, 0, 4, 4] = 0.6  # coverage counts from one half on; the patch reaches over the edge
    label[0, 0, 4, 0] = 0.4
    assert patch_labels(label, 2).view(3, 3).tolist() == [[1, 0, 0], [-1, 0, 0], [0, 0, 1]]


def test_cropr_loss_by_hand() -> None:
    """One vessel and two background patches count, one is ignored: the vessel weighs 2 / 1."""
    policy = build_policy("cropr", 16, STAGES[:1], scorer_weight=4.0)
    score = torch.tensor([[0.5, -1.0, 2.0, 3.0]])
    pool = Route(torch.tensor([[3, 0, 1, 2]]), None)
    label = torch.tensor([[0.0, 0.0, -1.0, 1.0]]).view(1, 1, 1, 4)
    record = StageTrace(STAGES[0], pool, score, score)
    softplus = [math.log1p(math.exp(x)) for x in (-0.5, -1.0, 2.0)]
    expected = 4 * (2 * softplus[0] + softplus[1] + softplus[2]) / 3
    found = policy.loss(trace_of([record], (1, 4)), label, progress=1.0)["scorer"]
    assert float(found) == pytest.approx(expected, rel=1e-6)
    padded = record._replace(pool=pool._replace(valid=torch.tensor([[True, True, False, True]])))
    found = policy.loss(trace_of([padded], (1, 4)), label, progress=1.0)["scorer"]
    assert float(found) == pytest.approx(4 * (softplus[0] + softplus[1]) / 2, rel=1e-6)


def test_cropr_weights_rare_vessels_by_at_most_fifty() -> None:
    policy = build_policy("cropr", 16, STAGES[:1], scorer_weight=1.0)
    score, label = torch.zeros(1, 100), torch.zeros(1, 1, 1, 100)
    label[..., 0] = 1
    record = StageTrace(STAGES[0], Route(torch.arange(100).unsqueeze(0), None), score, score)
    found = policy.loss(trace_of([record], (1, 100)), label, progress=1.0)["scorer"]
    assert float(found) == pytest.approx((50 + 99) * math.log(2) / 100, rel=1e-6)


def test_cropr_scorer_is_a_linear_probe_that_leaves_the_network_alone() -> None:
    policy = build_policy("cropr", 16, STAGES).train()
    assert isinstance(policy, Cropr)
    assert sum(p.numel() for p in policy.scorers[0].parameters()) == 17
    given = tokens()
    decision = policy.decide(0, given, 5)
    wanted = given.x @ policy.scorers[0].weight[0] + policy.scorers[0].bias
    assert torch.allclose(decision.score, wanted, atol=1e-6)
    gradients = torch.autograd.grad(decision.score.sum(), [given.x, policy.scorers[0].weight], allow_unused=True)
    assert gradients[0] is None
    assert gradients[1] is not None


@pytest.mark.parametrize("name", ["cropr", "random"])
def test_tokens_leave_before_the_stages_own_block_in_training(name: str, image: Tensor) -> None:
    network = small_network(name, ramp=0.0).train()
    _, trace = network.forward_with_trace(image)
    assert trace.lengths[0] == 65
    assert trace.lengths[1] == keep_count(60, 0.7, 5) + 5


# --- random ---


def test_random_is_uniform_over_positions_at_inference() -> None:
    policy = build_policy("random", 16, STAGES).eval()
    side = 64
    pos = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1).view(1, -1, 2) + 0.5
    kept = policy.decide(0, Tokens(torch.zeros(1, side**2, 16), pos, None), 5).keep.view(side, side)
    share = keep_count(side**2, 0.7, 5) / side**2
    assert float(kept.mean()) == pytest.approx(share)
    # In every row, column and 8 x 8 block about as many; neighbours are independent.
    for part in (kept.mean(0), kept.mean(1), F.avg_pool2d(kept[None, None], 8).flatten()):
        assert float(part.std()) < 1.5 * math.sqrt(share * (1 - share) / (side**2 / part.numel()))
    for shifted in (kept.roll(1, 0), kept.roll(1, 1)):
        assert float((kept * shifted).mean()) == pytest.approx(share**2, abs=0.02)


def test_random_sets_differ_between_stages_and_seeds_and_repeat() -> None:
    given = tokens()
    sets = {
        (seed, stage): build_policy("random", 16, STAGES, seed=seed).eval().decide(stage, given, 5).score
        for seed, stage in itertools.product((0, 1), (0, 1))
    }
    for a, b in itertools.combinations(sets.values(), 2):
        assert not torch.equal(a.argsort(1), b.argsort(1))
    again = build_policy("random", 16, STAGES, seed=0).eval().decide(0, given, 5).score
    assert torch.equal(again, sets[0, 0])


def test_random_draws_anew_in_training() -> None:
    policy, given = build_policy("random", 16, STAGES, ramp=0.0).train(), tokens()
    first, second = policy.decide(0, given, 5).keep, policy.decide(0, given, 5).keep
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    assert first.sum(1).tolist() == [keep_count(40, 0.7, 5)] * 2


def test_random_takes_the_place_of_any_policy(image: Tensor) -> None:
    network = small_network("reg4pru").eval()
    other = network.with_policy(build_policy("random", 32, network.encoder.policy.stages))
    with torch.no_grad():
        logits, trace = other.eval().forward_with_trace(image)
        own, own_trace = network.forward_with_trace(image)
    assert trace.lengths == own_trace.lengths
    assert not torch.equal(logits, own)


# --- schedules and reactivation ---


def test_named_schedules() -> None:
    assert stage_plan(12, 0.4, "jump1") == (Stage(2, 0.4),)
    assert stage_plan(12, 0.7, "step3") == stage_plan(12, 0.7) == (Stage(2, 0.7), Stage(5, 0.7), Stage(8, 0.7))
    assert [stage.block for stage in stage_plan(12, 0.914, "per_block", 11)] == list(range(1, 11))
    with pytest.raises(
        ValueError, match="stages must be one of jump1, step3, per_block or a list of blocks, got 'all'"
    ):
        stage_plan(12, 0.7, "all")


def test_per_block_removes_a_constant_count() -> None:
    """352 of 4096 tokens at each of ten blocks: 4096 x 88 / 1024, up to the rounding of the sequence length."""
    keep = 1 - 88 / 1024
    stages = stage_plan(12, keep, "per_block", 11)
    assert active_targets(stages, 1.0, 0.0) == pytest.approx([1 - (s + 1) * 88 / 1024 for s in range(10)])
    pool, removed = 4096, []
    for rate in active_rates(stages, 1.0, 0.0):
        left = keep_count(pool, rate, 5)
        removed.append(pool - left)
        pool = left
    assert removed == pytest.approx([352] * 10, abs=8)
    assert sum(removed) == pytest.approx(3520, abs=4)


def test_per_block_keeps_its_meaning_under_another_keep_rate(image: Tensor) -> None:
    network = small_network("cropr", stages="per_block", keep_rate=0.9).eval()
    assert [stage.block for stage in network.encoder.policy.stages] == [1, 2, 3, 4, 5, 6]
    larger = F.interpolate(
        image, scale_factor=4.0
    )  # 960 tokens: with few, the rounding to 8 hides what one stage removes
    _, trace = network.with_keep_rate(0.95).forward_with_trace(larger)
    assert trace.lengths[6] - 6 == pytest.approx(960 * (1 - 6 * 0.05), abs=8)
    with pytest.raises(ValueError, match=r"keep_rate 0.8 of all tokens at each of 6 stages leaves none at block 5"):
        network.with_keep_rate(0.8)


def test_reactivation_points(image: Tensor) -> None:
    assert [reactivation(12, name) for name in ("q_start", "penultimate", "mask_pred", None, 7)] == [9, 11, 12, 11, 7]
    with pytest.raises(ValueError, match="reactivate must be one of q_start, penultimate, mask_pred or a block, got"):
        reactivation(12, "last")
    for name, block in (("q_start", 6), ("penultimate", 7), ("mask_pred", 8)):
        network = small_network("dynamicvit", reactivate=name).eval()
        _, trace = network.forward_with_trace(image)
        assert [length == 66 for length in trace.lengths[6:]] == [i >= block for i in (6, 7)]


def test_lengths_of_jump1_and_mask_pred_at_1024() -> None:
    with torch.device("meta"):
        network = build_segmenter("small", "cropr", "eomt", 0.7, stages="jump1", reactivate="mask_pred").eval()
        _, trace = network.forward_with_trace(torch.empty(1, 3, 1024, 1024))
    assert trace.lengths == (4101, 4101, *[2872] * 7, *[2873] * 3)


def test_ramped_counts_take_few_values() -> None:
    policy = build_policy("cropr", 16, STAGES, ramp=0.5).train()
    counts = [keep_count(4096, policy.rate(0, Step(progress)), 5) for progress in torch.linspace(0, 1, 101).tolist()]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 4096
    assert counts[-1] == 2867
    assert len(set(counts)) == 5
    assert policy.eval().rate(0, Step(0.0)) == 0.7


# --- a keep rate drawn for every step ---


@pytest.mark.parametrize("name", ["dynamicvit", "gumbel", "cropr", "random", "reg4pru", "cropr+reg4pru"])
def test_sampled_keep_rate_is_what_the_step_keeps(name: str, image: Tensor) -> None:
    network = small_network(name, keep_range=[0.3, 1.0], ramp=0.0).train()
    torch.manual_seed(0)
    draws = [network.draw().keep for _ in range(500)]
    assert all(keep is not None and 0.3 <= keep <= 1.0 for keep in draws)
    assert sum(draws) / 500 == pytest.approx(0.65, abs=0.03)  # type: ignore[arg-type]
    for keep in (0.3, 0.6, 1.0):
        _, trace = network.forward_with_trace(image, step=Step(keep=keep))
        assert [record.stage.keep for record in trace.stages] == [keep] * 3
        expected = [60, 60, 60]
        for number in range(3):
            expected[number] = keep_count(expected[number - 1] if number else 60, keep, 6 if number == 2 else 5)
        kept = [int((record.keep > 0.5).sum(1)[0]) for record in trace.stages]
        if name == "gumbel":  # its gate is free; what goes on is counted
            kept = [record.pool.index.shape[1] for record in trace.stages[1:]]
            expected = expected[:2]
        assert kept == expected
    assert network.eval().draw().keep is None


def test_sampled_soft_decision_has_its_gradient_at_the_threshold() -> None:
    """A token far above the threshold learns little, one near it much, whatever the scores' own level."""
    policy = build_policy("dynamicvit", 16, STAGES, keep_range=[0.3, 0.9], ramp=0.0, keep_logit=8.0).train()
    given = tokens(1, 200)
    decision = policy.decide(0, given, 5, Step(keep=0.5))
    assert int(decision.keep.sum()) == keep_count(200, 0.5, 5)
    (gradient,) = torch.autograd.grad(decision.keep.sum(), decision.score)
    lowest = decision.score[decision.keep > 0.5].min()
    assert gradient[decision.score == lowest].item() == pytest.approx(0.25, abs=1e-3)
    assert (gradient > 0).all()


def test_one_checkpoint_runs_at_every_budget(image: Tensor) -> None:
    """After a few steps with drawn keep rates, the same weights run at 1, 0.7, 0.5 and 0.3."""
    network = small_network("reg4pru", keep_range=[0.3, 1.0])
    label = (torch.rand(2, 1, *SIZE) < 0.2).float()
    optimizer, step = torch.optim.SGD(network.parameters(), 1e-3), TrainingStep(network.train())
    for progress in (0.1, 0.5, 0.9):
        optimizer.zero_grad()
        torch.stack(list(step(image, label, torch.ones_like(label), progress).values())).sum().backward()
        optimizer.step()
    network.eval()
    lengths = []
    with torch.no_grad():
        for keep in (1.0, 0.7, 0.5, 0.3):
            logits, trace = network.with_keep_rate(keep).forward_with_trace(image)
            assert logits.isfinite().all()
            lengths.append(trace.lengths[5] - 5)
        assert torch.allclose(network.with_keep_rate(1.0)(image), network.dense()(image), atol=1e-5)
    expected = []
    for keep in (1.0, 0.7, 0.5, 0.3):
        pool = 60
        for others in (5, 5, 6):
            pool = keep_count(pool, keep, others)
        expected.append(pool)
    assert lengths == expected


@pytest.mark.parametrize("bad", [[0.0, 0.5], [0.8, 0.5], [0.5], [0.5, 1.2]])
def test_keep_range_that_makes_no_sense(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="keep_range must be two keep rates in"):
        build_policy("dynamicvit", 16, STAGES, keep_range=bad)


# --- the window over other policies ---


@pytest.mark.parametrize("base", ["gumbel", "cropr", "random"])
def test_a_window_crosses_stages_that_remove_tokens(base: str, image: Tensor) -> None:
    network = small_network(f"{base}+reg4pru", ramp=0.0).train()
    record = Recorder(network)
    _, trace = network.forward_with_trace(image, step=Step(window=Window(2, 5, 0.5)))
    late = base == "gumbel"
    first = keep_count(60, 0.7, 5)
    second = keep_count(first, 0.7, 5)
    inside_first, inside_second = keep_count(first, 0.5, 5) + 5, keep_count(second, 0.5, 5) + 5
    middle = inside_first if late else inside_second
    assert trace.lengths[2:5] == (inside_first, middle, inside_second)
    assert trace.lengths[5] == (second if late else keep_count(second, 0.7, 6)) + 5
    # A stage inside the window is about all tokens that are left, stale ones included.
    assert trace.stages[1].pool.index.shape[1] == first
    survivors = trace.stages[1].pool.index.unsqueeze(-1).expand(-1, -1, 32)
    entered = record.outputs[1][:, 5:]
    assert entered.shape[1] == (60 if late else first)
    assert survivors.shape[1] == first


def test_window_distribution_is_an_argument() -> None:
    policy = build_policy("dense+reg4pru", 16, (), route_keep=0.8, route_opens=[3, 4], route_closes=6).train()
    torch.manual_seed(0)
    seen = {policy.draw(1.0, 12).window for _ in range(300)}
    assert seen == {Window(a + 1, b + 1, 0.8) for a in (3, 4) for b in range(a + 1, 7)}
    for options, message in (
        ({"route_opens": [4]}, "route_opens must be two blocks"),
        ({"route_opens": [5, 4]}, "route_opens must be two blocks"),
        ({"route_opens": [3, 6], "route_closes": 6}, "route_closes must lie behind the last block of route_opens"),
    ):
        with pytest.raises(ValueError, match=message):
            build_policy("reg4pru", 16, (), **options)
    with pytest.raises(ValueError, match="policy must be one of"):
        build_policy("reg4pru+reg4pru", 16, ())


# --- masked attention of the query ---


def test_masked_attention_anneals_block_by_block(image: Tensor) -> None:
    network = small_network("dense", "eomt")
    decoder = network.decoder
    decoder.masked = 0.5
    logits, grid = torch.randn(200, 1, *SIZE), (6, 10)
    decoder.train()
    found = F.interpolate(logits, size=grid, mode="bilinear", align_corners=False).flatten(2) > 0
    assert torch.equal(decoder.visible(logits, grid, 0, 0.0), found)
    assert bool(decoder.visible(logits, grid, 0, 0.25).all())  # of two query blocks, the first is open at half the way
    assert torch.equal(decoder.visible(logits, grid, 1, 0.25), found)
    assert bool(decoder.visible(logits, grid, 1, 0.5).all())
    half = decoder.visible(logits, grid, 0, 0.125).all(-1).float().mean()
    assert float(half) == pytest.approx(1 - 0.5**0.9, abs=0.1)
    assert decoder.eval().visible(logits, grid, 0, 0.0) is None


def test_masked_query_sees_only_what_it_predicted(image: Tensor) -> None:
    """Tokens that the mask hides change nothing for the query, and the mask follows the tokens through the window."""
    torch.manual_seed(0)
    network = small_network("dense", "eomt").train()
    network.decoder.masked = 1.0
    seen = []
    for block in network.encoder.blocks[6:]:
        block.register_forward_pre_hook(lambda module, given: seen.append(given[3]))
    _, trace = network.forward_with_trace(image, step=Step(progress=0.0, window=Window(5, 7, 0.5)))
    routed, full = seen
    assert routed.shape == (2, 1, trace.lengths[6])
    assert full.shape == (2, 1, 66)
    assert routed[:, :, :6].all()
    expected = F.interpolate(trace.auxiliary[1], size=(6, 10), mode="bilinear", align_corners=False).flatten(2) > 0
    assert torch.equal(full[:, :, 6:], expected)


def test_masked_attention_needs_a_query() -> None:
    with pytest.raises(ValueError, match="masked_attention belongs to the decoder eomt; the decoder skip has no query"):
        build_segmenter("tiny", decoder="skip", masked_attention=0.5)
    with pytest.raises(ValueError, match=r"masked_attention must be a share of the training in \[0, 1\], got 2"):
        build_segmenter("tiny", decoder="eomt", masked_attention=2)


# --- compiled ---


@pytest.mark.parametrize("name", ["reg4pru", "gumbel+reg4pru", "cropr+reg4pru"])
def test_training_compiles_as_one_graph_once_the_step_is_drawn(name: str, image: Tensor) -> None:
    network = small_network(name, "skip").train()
    step = Step(0.5, Window(3, 5, 0.5))
    torch._dynamo.reset()
    compiled = torch.compile(network.forward_with_trace, fullgraph=True, backend="aot_eager")
    gradients = []
    for run in (network.forward_with_trace, compiled):
        network.zero_grad()
        torch.manual_seed(0)
        logits, trace = run(image, step=step)
        (logits.square().mean() + sum(record.keep.mean() for record in trace.stages)).backward()
        gradients.append(network.patch_embed.proj.weight.grad.clone())
    assert torch.allclose(gradients[0], gradients[1], atol=1e-6)


def test_a_ramped_budget_does_not_compile_at_every_step(image: Tensor) -> None:
    from torch._dynamo.testing import CompileCounter

    for name, most in (("dynamicvit", 2), ("cropr", 5)):
        network = small_network(name, "skip", ramp=1.0).train()
        torch._dynamo.reset()
        counter = CompileCounter()
        compiled = torch.compile(network.forward_with_trace, fullgraph=True, backend=counter)
        for progress in torch.linspace(0, 1, 21).tolist():
            compiled(image, step=Step(progress))
        assert counter.frame_count <= most, name


def test_compiled_blocks_serve_every_length(image: Tensor) -> None:
    """One compilation for each kind of weight: windows, stages and fields of view bring no further one."""
    fov = torch.cat((disc(SIZE, (12, 20), 11), disc(SIZE, (2, 33), 9)))
    plain, network = small_network("reg4pru", "skip").eval(), small_network("reg4pru", "skip").eval()
    torch._dynamo.reset()
    network.compile_blocks()
    with torch.no_grad():
        for inside in (None, fov, fov[:1]):
            given = image[: 1 if inside is not None and len(inside) == 1 else 2]
            assert torch.allclose(network(given, inside), plain(given, inside), atol=1e-5)
            assert torch.allclose(network.with_keep_rate(0.5)(given), plain.with_keep_rate(0.5)(given), atol=1e-5)


def test_the_route_of_a_field_of_view_stands_for_it(image: Tensor) -> None:
    """Given as a route, the field of view compiles and exports too."""
    fov = torch.cat((disc(SIZE, (12, 20), 11), disc(SIZE, (2, 33), 9)))
    network = small_network("reg4pru", "skip").eval()
    route = network.inside(fov)
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.equal(network(image, route), network(image, fov))
        assert torch.allclose(compiled(image, route), network(image, fov), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype, image: Tensor) -> None:
    """Half precision in training and at inference, with few tokens left: finite, and near full precision."""
    network = small_network("reg4pru", "eomt", keep_logit=0.0, keep_rate=0.3)
    label = torch.zeros(2, 1, *SIZE)
    network.train()
    with torch.autocast("cpu", dtype=dtype):
        loss = torch.stack(list(TrainingStep(network)(image, label, label + 1, progress=1.0).values())).sum()
    loss.backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in network.parameters())
    dense = network.eval().dense()
    with torch.no_grad():
        expected = dense(image)
        with torch.autocast("cpu", dtype=dtype):
            assert network(image).isfinite().all()
            found = dense(image).float()
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()
