"""One contract for every policy and decoder, then what is particular to each. A new policy edits nothing here."""

import copy
import io
import itertools
import pickle
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from networks import SMALL, Recorder, disc, small_network
from reg4pru_monai.losses import TrainingStep
from reg4pru_monai.policies import POLICIES, Policy, Stage, Step, Window, build_policy
from reg4pru_monai.policies.base import Trace, active_targets, kept, masked_mean
from reg4pru_monai.policies.dynamicvit import DynamicViT
from reg4pru_monai.policies.reg4pru import Reg4Pru
from reg4pru_monai.segmenter import Segmenter
from reg4pru_monai.tokens import Route, Tokens, keep_count

CASES = list(itertools.product(sorted(POLICIES), ("eomt", "skip")))
SIZE = (24, 40)  # 6 x 10 patches


@pytest.fixture(params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.fixture
def network(case: tuple[str, str]) -> Segmenter:
    """A small untrained network of the policy and decoder, in evaluation."""
    return small_network(*case).eval()


@pytest.fixture
def shallow(case: tuple[str, str]) -> Segmenter:
    """One of four blocks, where a compiler takes its time: two stages, reactivation and the query before the last."""
    return small_network(*case, preset=replace(SMALL, depth=4)).eval()


@pytest.fixture
def image() -> Tensor:
    return torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def fov() -> Tensor:
    """Three fields of view of different shape: a disc, a small one at the edge, everything."""
    whole = torch.ones(1, 1, *SIZE, dtype=torch.bool)
    return torch.cat((disc(SIZE, (12, 20), 11), disc(SIZE, (2, 33), 9), whole))


def training_loss(network: Segmenter, image: Tensor, fov: Tensor) -> Tensor:
    label = (torch.rand(image.shape[0], 1, *image.shape[-2:], generator=torch.Generator().manual_seed(2)) < 0.2).float()
    return torch.stack(list(TrainingStep(network)(image, label, fov, progress=0.5).values())).sum()


# --- the contract ---


@torch.no_grad()
def test_evaluation_is_deterministic_and_draws_nothing(network: Segmenter, image: Tensor, fov: Tensor) -> None:
    state = torch.get_rng_state()
    first = network(image, fov)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(network(image, fov), first)
    assert torch.equal(network.forward_with_trace(image, fov)[0], first)


@torch.no_grad()
def test_keeping_all_equals_dense(network: Segmenter, image: Tensor, fov: Tensor) -> None:
    for inside in (None, fov):
        everything = network.with_keep_rate(1.0)(image, inside)
        assert torch.allclose(everything, network.dense()(image, inside), atol=1e-5)


@torch.no_grad()
def test_batch_items_are_independent(network: Segmenter, image: Tensor, fov: Tensor) -> None:
    batch = network(image, fov)
    for b in range(len(image)):
        assert torch.allclose(network(image[b : b + 1], fov[b : b + 1]), batch[b : b + 1], atol=1e-5)


@torch.no_grad()
def test_a_full_field_of_view_equals_none(network: Segmenter, image: Tensor) -> None:
    assert torch.allclose(network(image, torch.ones(3, 1, *SIZE)), network(image), atol=1e-6)


@torch.no_grad()
def test_an_empty_field_of_view_does_no_harm(network: Segmenter, image: Tensor, fov: Tensor) -> None:
    empty = fov.clone()
    empty[1] = False
    batch = network(image, empty)
    assert batch.isfinite().all()
    assert torch.allclose(batch[[0, 2]], network(image, fov)[[0, 2]], atol=1e-5)


def test_every_parameter_gets_a_gradient(network: Segmenter, image: Tensor, fov: Tensor) -> None:
    training_loss(network.train(), image, fov).backward()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name


@torch.no_grad()
@pytest.mark.parametrize("size", [(4, 4), (33, 21), (64, 48)])
def test_any_size_works(network: Segmenter, size: tuple[int, int]) -> None:
    for training in (False, True):
        network.train(training)
        logits, trace = network.forward_with_trace(torch.randn(2, 3, *size), torch.ones(2, 1, *size))
        assert logits.shape == (2, 1, *size)
        assert logits.isfinite().all()
        assert trace.grid == (-(-size[0] // 4), -(-size[1] // 4))
        assert all(each.shape == logits.shape for each in trace.auxiliary)


@torch.no_grad()
def test_padding_to_whole_patches_is_what_forward_does(network: Segmenter) -> None:
    image = torch.randn(1, 3, 22, 37)
    padded = network(F.pad(image, (0, 3, 0, 2)))
    assert torch.allclose(network(image), padded[..., :22, :37], atol=1e-6)


@torch.no_grad()
def test_trace_has_the_same_structure_in_training_and_evaluation(
    network: Segmenter, image: Tensor, fov: Tensor
) -> None:
    _, tested = network.forward_with_trace(image, fov)
    _, trained = network.train().forward_with_trace(image, fov)
    assert len(tested.lengths) == len(trained.lengths) == len(network.encoder.blocks)
    assert len(tested.auxiliary) == len(trained.auxiliary)
    assert [s.stage for s in tested.stages] == [s.stage for s in trained.stages] == list(network.encoder.policy.stages)
    for record in (*tested.stages, *trained.stages):
        assert record.score.shape == record.keep.shape == record.pool.index.shape
    assert all(
        a <= b for a, b in zip(tested.lengths, network.dense().forward_with_trace(image, fov)[1].lengths, strict=True)
    )


@torch.no_grad()
def test_state_dict_round_trip(case: tuple[str, str], network: Segmenter, image: Tensor) -> None:
    other = small_network(*case).eval()
    for parameter in other.parameters():
        parameter.zero_()
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(image), network(image))


@torch.no_grad()
def test_variants_share_weights_and_leave_the_original_alone(network: Segmenter, image: Tensor) -> None:
    before, stages = network(image), network.encoder.policy.stages
    own = dict(network.named_parameters())
    for variant in (network.dense(), network.with_keep_rate(0.4), network.with_policy(build_policy("dense", 32, ()))):
        shared = dict(variant.named_parameters())
        assert all(own[name] is parameter for name, parameter in shared.items())
        assert set(own) - set(shared) <= {name for name in own if name.startswith("encoder.policy.")}
        assert variant.training == network.training
    assert set(dict(network.with_keep_rate(0.4).named_parameters())) == set(own)
    assert network.encoder.policy.stages == stages
    assert torch.equal(network(image), before)
    own["norm.bias"].add_(1.0)
    assert not torch.equal(network.dense()(image), before)


@torch.no_grad()
def test_deepcopy_and_pickle(network: Segmenter, image: Tensor) -> None:
    expected = network(image)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(other(image), expected)
        other.norm.bias.add_(1.0)
        assert torch.equal(network(image), expected)


@torch.no_grad()
def test_threads(network: Segmenter, image: Tensor, fov: Tensor) -> None:
    jobs = [(image[b : b + 1], fov[b : b + 1]) for b in range(3)] * 2
    expected = [network(*job) for job in jobs]

    def predict(job: tuple[Tensor, Tensor]) -> Tensor:
        with torch.no_grad():
            return network(*job)

    with ThreadPoolExecutor(3) as pool:
        for found, wanted in zip(pool.map(predict, jobs), expected, strict=True):
            assert torch.equal(found, wanted)


def test_activation_checkpointing_sees_the_same_draw(network: Segmenter, image: Tensor) -> None:
    network.train()
    gradients = []
    for checkpointed in (False, True):
        network.zero_grad()
        torch.manual_seed(3)
        logits = checkpoint(network, image, use_reentrant=False) if checkpointed else network(image)
        logits.square().mean().backward()
        gradients.append(network.patch_embed.proj.weight.grad.clone())
    assert torch.allclose(gradients[0], gradients[1], atol=1e-6)


@torch.no_grad()
def test_compiles_as_one_graph(shallow: Segmenter, image: Tensor) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(shallow, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(image), shallow(image), atol=1e-5)


@torch.no_grad()
def test_exports(case: tuple[str, str], shallow: Segmenter, image: Tensor) -> None:
    strict = case[1] == "eomt"  # once each: the strict form is slow
    torch._dynamo.reset()
    program = torch.export.export(shallow, (image,), strict=strict)
    assert torch.allclose(program.module()(image), shallow(image), atol=1e-5)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit:DeprecationWarning")
def test_traces(shallow: Segmenter, image: Tensor) -> None:
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(shallow, image), file)
    file.seek(0)
    assert torch.allclose(torch.jit.load(file)(image), shallow(image), atol=1e-5)


def test_unknown_policy() -> None:
    with pytest.raises(ValueError, match=r"policy must be one of dense, dynamicvit, .*reg4pru.* got 'dynamic'"):
        build_policy("dynamic", 32, ())


# --- routing and pruning by hand ---


@torch.no_grad()
def test_removed_tokens_return_with_the_features_they_had(image: Tensor) -> None:
    network = small_network("dynamicvit", "eomt", keep_rate=0.5).eval()
    record = Recorder(network)
    _, trace = network.forward_with_trace(image)
    returned = record.inputs[7][:, 6:]  # query, class token and 4 registers come first
    removed_in_all = 0
    for stage in trace.stages:
        left = record.outputs[stage.stage.block - 1][:, 5:]  # the pool as it arrived at the stage
        removed = stage.keep == 0
        back = returned.gather(1, stage.pool.index.unsqueeze(-1).expand(-1, -1, 32))
        assert torch.equal(back[removed], left[removed])
        removed_in_all += int(removed.sum())
    assert removed_in_all == 3 * (60 - (trace.lengths[6] - 6))
    last = trace.stages[-1]
    survivors = last.pool.index[last.keep > 0].view(3, -1)
    assert torch.equal(
        returned.gather(1, survivors.unsqueeze(-1).expand(-1, -1, 32)).sort(1).values,
        record.outputs[6][:, 6:].sort(1).values,
    )


@torch.no_grad()
def test_a_hard_stage_keeps_the_best_and_never_takes_one_back(image: Tensor, fov: Tensor) -> None:
    network = small_network("dynamicvit").eval()
    _, trace = network.forward_with_trace(image, fov)
    for stage, later in itertools.pairwise(trace.stages):
        for b in range(3):
            valid = (
                torch.ones(stage.keep.shape[1], dtype=torch.bool) if stage.pool.valid is None else stage.pool.valid[b]
            )
            chosen = stage.keep[b] > 0
            assert all(stage.score[b, chosen].min() >= score for score in stage.score[b, valid & ~chosen])
            later_valid = slice(None) if later.pool.valid is None else later.pool.valid[b]
            assert set(stage.pool.index[b, chosen].tolist()) == set(later.pool.index[b][later_valid].tolist())


@pytest.mark.parametrize("policy", ["dense+reg4pru", "dynamicvit+reg4pru", "reg4pru"])
@torch.no_grad()
def test_a_random_half_skips_the_window_untouched(policy: str, image: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    network = small_network(policy).train()
    monkeypatch.setattr(network, "draw", lambda: Step(window=Window(3, 6, 0.5)))
    record = Recorder(network)
    _, trace = network.forward_with_trace(image)
    active = keep_count(60, 0.5, 5)
    assert trace.lengths == (65, 65, 65, *[active + 5] * 3, 66, 66)  # a stage lies at block 5, inside the window
    before, after = record.outputs[2][:, 5:], record.inputs[6][:, 6:]
    same = (before == after).all(-1)
    assert same.sum(1).tolist() == [60 - active] * 3
    assert not torch.equal(same[0], same[1])


@torch.no_grad()
def test_a_window_over_two_unequal_fields_of_view(image: Tensor, fov: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    network = small_network("dense+reg4pru").train()
    monkeypatch.setattr(network, "draw", lambda: Step(window=Window(3, 6, 0.5)))
    record = Recorder(network)
    network(image, fov)
    patches = F.max_pool2d(fov.float(), 4).flatten(1).sum(1).int().tolist()
    weight = record.weights[3]
    assert weight is not None
    assert (weight[:, 5:].sum(1)).tolist() == [keep_count(n, 0.5, 5) for n in patches]


def test_window_distribution_is_the_published_one() -> None:
    policy = build_policy("reg4pru", 32, (), route_opens=[2, 6]).train()
    windows = [(opened, closed) for opened in range(2, 7) for closed in range(opened + 1, 11)]
    assert len(windows) == 30
    chance = {b: sum(1 / 5 / (10 - first) for first, last in windows if first < b <= last) for b in range(12)}
    published = {3: 0.20, 4: 0.375, 5: 0.52, 6: 0.635, 7: 0.71, 8: 0.53, 9: 0.35, 10: 0.18}
    assert chance == pytest.approx({b: published.get(b, 0.0) for b in range(12)}, abs=0.006)
    torch.manual_seed(0)
    draws = 6000
    found: Counter[int] = Counter()
    seen = set()
    for _ in range(draws):
        window = policy.draw(1.0, 12).window
        assert window is not None
        assert window.keep == 0.5
        seen.add((window.start - 1, window.end - 1))
        found.update(range(window.start, window.end))
    assert seen == set(windows)
    assert {b: found[b] / draws for b in range(12)} == pytest.approx(chance, abs=0.025)


@pytest.mark.parametrize(("depth", "stages"), [(8, (1, 3, 5)), (12, (2, 5, 8)), (8, (3, 5)), (12, (9,))])
def test_window_opens_where_the_first_stage_removes_tokens(depth: int, stages: tuple[int, ...]) -> None:
    """Every block that a pruned token can miss is missed in training too, the first one included."""
    policy = build_policy("reg4pru", 32, [Stage(block, 0.7) for block in stages]).train()
    torch.manual_seed(0)
    windows = {policy.draw(1.0, depth).window for _ in range(400)}
    starts = {window.start for window in windows if window}
    assert starts == set(range(stages[0], max(stages[0], depth // 2) + 1))
    assert {b for window in windows if window for b in range(window.start, window.end)} == set(
        range(stages[0], depth - 1)
    )


def test_window_stays_inside_shallow_networks() -> None:
    policy = build_policy("reg4pru", 32, ()).train()
    for depth in (4, 5, 6, 8):
        for _ in range(50):
            window = policy.draw(1.0, depth).window
            assert window is not None
            assert 2 <= window.start < window.end <= max(3, depth - 1)
    assert policy.draw(1.0, 2).window is None


def test_no_window_in_evaluation(image: Tensor) -> None:
    network = small_network("reg4pru").eval()
    assert network.encoder.policy.draw(1.0, 12).window is None
    plain = network.with_policy(network.encoder.policy.base)
    with torch.no_grad():
        assert torch.equal(network(image), plain(image))


def test_route_keep_reaches_the_window_by_either_name() -> None:
    for name in ("reg4pru", "dynamicvit+reg4pru"):
        policy = build_policy(name, 32, [Stage(1, 0.5)], route_keep=0.25, budget_weight=2.0)
        window = policy.draw(1.0, 12).window
        assert window is not None
        assert window.keep == 0.25
        assert isinstance(policy, Reg4Pru)
        assert policy.base.budget_weight == 2.0
    with pytest.raises(ValueError, match=r"route_keep must be in \(0, 1\], got 0"):
        build_policy("reg4pru", 32, (), route_keep=0.0)


def test_sequence_lengths_of_the_paper() -> None:
    """1024 x 1024, ViT-S, query from block 9, kept 2867, 2003, 1402; tokens leave before the stage's own block."""
    from reg4pru_monai.segmenter import build_segmenter

    with torch.device("meta"):
        network = build_segmenter("small", "reg4pru", "eomt").eval()
        _, trace = network.forward_with_trace(torch.empty(1, 3, 1024, 1024))
    assert trace.lengths == (4101, 4101, 2872, 2872, 2872, 2008, 2008, 2008, 1407, 1408, 1408, 4102)


# --- DynamicViT ---


def soft_policy(**options: float) -> DynamicViT:
    torch.manual_seed(0)
    return DynamicViT(16, (Stage(1, 0.7), Stage(3, 0.5)), keep_logit=0.0, **options).train()


def tokens(batch: int = 2, count: int = 30, dim: int = 16) -> Tokens:
    return Tokens(torch.randn(batch, count, dim, requires_grad=True), torch.zeros(1, count, 2), None)


def test_straight_through_is_hard_forward_and_soft_backward() -> None:
    policy, given = soft_policy(), tokens()
    torch.manual_seed(5)
    decision = policy.decide(0, given, 5)
    torch.manual_seed(5)
    logits, uniform = policy.selectors[0](given.x), torch.rand(2, 30)
    soft = (logits[..., 0] - logits[..., 1] + (uniform / (1 - uniform)).log()).sigmoid()
    assert decision.weight is decision.keep
    assert torch.allclose(decision.keep, (soft >= 0.5).float(), atol=1e-6)
    assert 0.2 < decision.keep.mean() < 0.8
    factor = torch.rand(2, 30)
    parameters = [given.x, *policy.selectors[0].parameters()]
    found = torch.autograd.grad((decision.keep * factor).sum(), parameters)
    wanted = torch.autograd.grad((soft * factor).sum(), parameters)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, wanted, strict=True))


def test_noise_is_that_of_a_gumbel_softmax() -> None:
    """The share kept at given log-odds: sigmoid of them, for the published softmax of two noisy logits and for ours."""
    policy, wide = soft_policy(), torch.zeros(1, 40_000, 16)
    with torch.no_grad():
        for layer in policy.selectors[0]:
            for parameter in layer.parameters():
                parameter.zero_()
        policy.selectors[0][-1].bias.copy_(torch.tensor([0.4, -0.6]))
    published = F.gumbel_softmax(torch.tensor([0.4, -0.6]).expand(40_000, -1), tau=1.0)[:, 0]
    ours = policy.score(0, Tokens(wide, torch.zeros(1, 40_000, 2), None)).detach().sigmoid()[0]
    levels = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])
    assert torch.allclose(ours.quantile(levels), published.quantile(levels), atol=0.02)
    assert float((ours >= 0.5).float().mean()) == pytest.approx(1 / (1 + 2.718281828**-1), abs=0.01)


def test_dropped_once_stays_dropped_and_earlier_selectors_learn_from_later_stages() -> None:
    policy, given = soft_policy(), tokens()
    first = policy.decide(0, given, 5)
    second = policy.decide(1, given._replace(weight=first.weight), 5)
    assert (second.keep[first.keep < 0.5].abs() < 1e-6).all()
    assert second.keep.mean() < first.keep.mean()
    gradient = torch.autograd.grad(second.keep.sum(), policy.selectors[0][-1].weight)[0]
    assert gradient.abs().sum() > 0


def test_soft_weights_act_from_the_stages_own_block_on(image: Tensor) -> None:
    network = small_network("dynamicvit", keep_logit=0.0).train()
    record = Recorder(network)
    _, trace = network.forward_with_trace(image)
    assert trace.lengths == (65,) * 6 + (66,) * 2
    assert record.weights[0] is None
    for block, stage, others in ((1, 0, 5), (2, 0, 5), (3, 1, 5), (5, 2, 5), (6, 2, 6), (7, 2, 6)):
        weight = record.weights[block]
        assert weight is not None
        assert (weight[:, :others] == 1).all()
        assert torch.equal(weight[:, others:], trace.stages[stage].keep)


def test_selectors_start_by_keeping_and_can_start_as_published() -> None:
    torch.manual_seed(0)
    shares = []
    for logit in (4.0, 0.0):
        policy = DynamicViT(16, (Stage(1, 0.7),), keep_logit=logit).train()
        shares.append(float(policy.decide(0, tokens(8, 500), 5).keep.detach().mean()))
    assert shares[0] == pytest.approx(0.98, abs=0.01)
    assert shares[1] == pytest.approx(0.5, abs=0.1)


def trace_of(keeps: list[Tensor], policy: Policy, valid: Tensor | None = None) -> Trace:
    from reg4pru_monai.policies import StageTrace

    pool = Route(torch.arange(keeps[0].shape[1]).expand(keeps[0].shape), valid)
    records = [StageTrace(s, pool, k, k) for s, k in zip(policy.stages, keeps, strict=True)]
    return Trace((1, keeps[0].shape[1]), 1, (), tuple(records), ())


def test_budget_loss_by_hand() -> None:
    """Targets 0.7 and 0.35; means 3/4, 1/2 and 2/4, 1/4: weight x mean over stages of mean over images of squares."""
    policy = soft_policy(budget_weight=4.0, ramp=0.2)
    keeps = [torch.tensor([[1.0, 1, 1, 0], [1, 0, 1, 0]]), torch.tensor([[1.0, 0, 1, 0], [1, 0, 0, 0]])]
    first, second = (0.05**2 + 0.2**2) / 2, (0.15**2 + 0.1**2) / 2
    loss = policy.loss(trace_of(keeps, policy), torch.zeros(1), progress=1.0)
    assert float(loss["budget"]) == pytest.approx(4 * (first + second) / 2)
    # At the start of the ramp all tokens are wanted.
    everything = trace_of([torch.ones(2, 4)] * 2, policy)
    assert float(policy.loss(everything, torch.zeros(1), progress=0.0)["budget"]) == 0.0


def test_budget_counts_the_field_of_view_only() -> None:
    policy = soft_policy()
    keep = torch.tensor([[1.0, 0, 0, 0]])
    trace = trace_of([keep, keep], policy, torch.tensor([[True, True, False, False]]))
    expected = 4 * ((0.5 - 0.7) ** 2 + (0.5 - 0.35) ** 2) / 2
    assert float(policy.loss(trace, torch.zeros(1), progress=1.0)["budget"]) == pytest.approx(expected)


def test_active_targets_ramp() -> None:
    stages = [Stage(2, 0.7)] * 3
    assert active_targets(stages, 0.0, 0.2) == [1.0, 1.0, 1.0]
    assert active_targets(stages, 0.1, 0.2) == pytest.approx([0.85, 0.745, 0.6715])
    assert active_targets(stages, 0.2, 0.2) == pytest.approx([0.7, 0.49, 0.343])
    assert active_targets(stages, 1.0, 0.2) == pytest.approx([0.7, 0.49, 0.343])
    assert active_targets(stages, 0.0, 0.0) == pytest.approx([0.7, 0.49, 0.343])


def test_masked_mean_and_kept() -> None:
    values = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    assert masked_mean(values, None).tolist() == pytest.approx([2 / 3, 1.0])
    assert masked_mean(values, torch.tensor([[True, True, False], [False] * 3])).tolist() == [0.5, 0.0]
    route = Route(torch.tensor([[2, 0]]), torch.tensor([[True, False]]))
    assert kept(route, 4).tolist() == [[0.0, 0.0, 1.0, 0.0]]
    assert kept(route._replace(valid=None), 4).tolist() == [[1.0, 0.0, 1.0, 0.0]]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([Stage(3, 0.5), Stage(2, 0.5)], "must be at different, ascending blocks, got"),
        ([Stage(3, 0.5), Stage(3, 0.5)], "must be at different, ascending blocks, got"),
        ([Stage(3, 0.0)], r"keep_rate must be in \(0, 1\], got 0.0 at block 3"),
    ],
)
def test_stages_that_make_no_sense(stages: list[Stage], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DynamicViT(16, stages)


def test_keep_rates_per_stage() -> None:
    policy = soft_policy().with_keep_rate([0.9, 0.8])
    assert [stage.keep for stage in policy.stages] == [0.9, 0.8]
    with pytest.raises(ValueError, match="keep_rate must be one number or one for each of 2 stages"):
        policy.with_keep_rate([0.9])
