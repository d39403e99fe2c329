"""The scripts under docs/measure, on sizes that take seconds, and the laws that their tables rest on."""

import importlib.util
import re
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conftest import ROOT
from networks import disc, small_network, write_checkpoint
from reg4pru_monai.accounting import count_flops, peak_memory
from reg4pru_monai.bundle import entries
from reg4pru_monai.encoder import Encoded
from reg4pru_monai.fundus.datasets import find_samples
from reg4pru_monai.fundus.io import read_image, read_mask
from reg4pru_monai.fundus.phantom import make_phantom, write_phantoms
from reg4pru_monai.inference import load_pipeline
from reg4pru_monai.losses import segmentation_loss
from reg4pru_monai.plots import save_picture
from reg4pru_monai.policies import POLICIES, StageTrace
from reg4pru_monai.release.degradations import DEGRADATIONS
from reg4pru_monai.released import CHECKPOINT
from reg4pru_monai.reproduce.evaluate import evaluate_variants
from reg4pru_monai.segmenter import Segmenter, build_segmenter
from reg4pru_monai.sweeps.experiments import read_experiment
from reg4pru_monai.tokens import Route
from runs import TINY, run

CAMERAS = read_experiment(ROOT / "configs" / "experiments" / "cameras.yaml")
THREADS = str(torch.get_num_threads())  # left as they are


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "measure" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(text: str) -> dict[str, list[str]]:
    """The lines of all tables, by their first cell."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {first: cells for first, *cells in lines}


# --- yardstick.py ---


def test_the_yardstick_has_the_published_flops_and_lengths() -> None:
    yardstick = script("yardstick")
    lengths: list[int] = []
    with torch.device("meta"):
        network, image = yardstick.Yardstick().eval(), torch.zeros(1, 3, 1024, 1024)
        for block in network.blocks:
            block.register_forward_hook(lambda _module, _inputs, output: lengths.append(output.shape[1]))
        assert count_flops(lambda: network(image)) == pytest.approx(511.4e9, rel=0.005)
        assert lengths == [4101] * 9 + [4102] * 3
        lengths.clear()
        assert count_flops(lambda: network.pruned(0.7)(image)) == pytest.approx(316.4e9, rel=0.005)
    assert lengths == [4101] * 3 + [2872] * 3 + [2008] * 3 + [1408] * 2 + [4102]


def test_ours_has_the_flops_of_the_yardstick_when_tokens_leave_late_and_fewer_when_they_leave_early() -> None:
    yardstick = script("yardstick")
    with torch.device("meta"):
        ours, image = build_segmenter("small", "reg4pru", "eomt").eval(), torch.zeros(1, 3, 1024, 1024)
        late = ours.with_policy(yardstick.Late(ours.encoder.policy)).eval()
        theirs = yardstick.Yardstick(0.7).eval()
        assert count_flops(lambda: ours.dense()(image)) == count_flops(lambda: theirs.pruned(None)(image))
        assert count_flops(lambda: late(image)) == count_flops(lambda: theirs(image))
        assert count_flops(lambda: ours(image)) < 0.9 * count_flops(lambda: theirs(image))


@pytest.mark.parametrize("pruned", [False, True])
def test_the_yardstick_is_the_same_network_as_ours(pruned: bool) -> None:
    """With the same weights, and ours removing after the stage's block, the logits are the same."""
    yardstick = script("yardstick")
    torch.manual_seed(0)
    theirs, ours = (
        yardstick.Yardstick(0.7 if pruned else None).eval(),
        build_segmenter("small", "reg4pru", "eomt").eval(),
    )
    copy_weights(theirs, ours)
    policy = yardstick.Late(ours.encoder.policy)
    image = torch.randn(2, 3, 96, 128)
    with torch.inference_mode():
        expected = F.interpolate(theirs(image), size=(96, 128), mode="bilinear", align_corners=False)
        found = (ours.with_policy(policy) if pruned else ours.dense()).eval()(image)
    assert found.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def copy_weights(theirs: torch.nn.Module, ours: Segmenter) -> None:
    """From the yardstick to our network."""
    names = (
        (r"^patch\.", "patch_embed.proj."),
        (r"^blocks\.(\d+)\.(qkv|proj)\.", r"encoder.blocks.\1.attn.\2."),
        (r"^blocks\.(\d+)\.(fc\d)\.", r"encoder.blocks.\1.mlp.\2."),
        (r"^blocks\.(\d+)\.gamma", r"encoder.blocks.\1.gamma_"),
        (r"^blocks\.", "encoder.blocks."),
        (r"^selectors\.", "encoder.policy.base.selectors."),
        (r"^(query$|mask_mlp|upscale)", r"decoder.\1"),
    )
    found = {}
    for name, value in theirs.state_dict().items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        found[name] = value
    prefix = found.pop("prefix")
    ours.load_state_dict(found | {"cls_token": prefix[:, :1], "reg_token": prefix[:, 1:]}, strict=True)


def test_what_the_yardstick_removes_it_puts_back() -> None:
    yardstick = script("yardstick")
    x = torch.randn(2, 5 + 30, yardstick.DIM)
    removed, y = yardstick.Removed(2, 30, x.device), x
    for count in (20, 12):
        y = removed.split(y, torch.rand(2, y.shape[1] - 5).argsort(1), count)
        assert y.shape[1] == 5 + count
    assert torch.equal(removed.merged(y), x)


def test_yardstick_prints_its_tables(capsys: pytest.CaptureFixture[str]) -> None:
    script("yardstick").main(["--size", "64", "--repeats", "2", "--threads", THREADS, "--late"])
    table = rows(capsys.readouterr().out)
    for name in ("yardstick dense", "yardstick pruned", "ours dense", "ours pruned", "ours pruned, late"):
        seconds, gflops, speedup, possible, efficiency = map(float, table[name])
        assert 0 < seconds < 60
        assert 0.5 < gflops < 1.5
        assert efficiency == pytest.approx(speedup / possible, rel=0.05)
        assert (possible == 1) == ("dense" in name)
    for pair in ("ours dense / yardstick dense", "ours pruned / yardstick pruned", "ours pruned / ours pruned, late"):
        middle, low, high = map(float, re.findall(r"[\d.]+", table[pair][0]))
        assert 0 < low <= middle <= high


# --- fov_first.py ---


def encode(
    network: Segmenter, image: Tensor, mask: Tensor | None = None, inside: Route | None = None
) -> tuple[Encoded, tuple[StageTrace, ...]]:
    """The encoder alone. mask: (B, N) bool, False hides a token as a key in every block, but leaves it there."""
    grid = (image.shape[2] // 4, image.shape[3] // 4)
    tokens, prefix, query = network._embed(image, grid)
    tokens = tokens._replace(weight=mask)
    encoded, trace = network.encoder(tokens, prefix, query, grid, inside, query_blocks=network.decoder.query_blocks)
    return encoded, trace.stages


def kept_sets(stages: tuple[StageTrace, ...]) -> list[list[set[int]]]:
    """The tokens that each stage keeps of each image, as places in the grid."""
    return [[set(index[keep > 0].tolist()) for index, keep in zip(s.pool.index, s.keep, strict=True)] for s in stages]


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "random"])  # which draws by number of tokens
def test_leaving_tokens_out_equals_masking_them(policy: str) -> None:
    network, image = small_network(policy).eval(), torch.randn(2, 3, 48, 64)
    fov = torch.cat((disc((48, 64), (24, 32), 24), disc((48, 64), (20, 28), 17))).float()
    mask = F.max_pool2d(fov, 4).flatten(1) > 0
    assert mask.sum(1).unique().numel() == 2
    with torch.no_grad():
        expected, expected_stages = encode(network, image, mask=mask)
        found, stages = encode(network, image, inside=network.inside(fov))
        expected_logits, logits = network._decode(image, expected, (12, 16)), network(image, fov)
    assert kept_sets(stages) == kept_sets(expected_stages)
    torch.testing.assert_close(found.query, expected.query, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.x[mask], expected.x[mask], atol=1e-5, rtol=1e-5)
    assert (found.x[~mask] - expected.x[~mask]).abs().max() > 0.1  # those outside are not computed
    # The decoder mixes neighbouring patches, so logits agree where no neighbour of the patch lies outside.
    deep = -F.max_pool2d(-mask.unflatten(1, (12, 16)).unsqueeze(1).float(), 3, stride=1, padding=1)
    inner = F.interpolate(deep, scale_factor=4, mode="nearest") > 0
    assert inner.sum() > 500
    torch.testing.assert_close(logits[inner], expected_logits[inner], atol=1e-5, rtol=1e-5)


def test_fov_first_prints_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--preset", "tiny", "--size", "128", "--batch", "2", "--repeats", "2", "--threads", THREADS]
    script("fov_first").main(options)
    table = rows(capsys.readouterr().out)
    for name in ("1 x 128 x 128", "2 x 128 x 128"):
        share, without, given, ratio, possible = table[name]
        assert 0.78 < float(share) < 0.9  # of the square, and the patches on the border
        assert 0 < float(given) < 60
        assert 0 < float(without) < 60
        assert 1.05 < float(possible) < 1.3
        assert re.fullmatch(r"[\d.]+ \([\d.]+ to [\d.]+\)", ratio)


def test_fov_first_reads_photographs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, size in enumerate(((96, 112), (96, 100))):
        save_picture(tmp_path / f"{number}.png", make_phantom(size, seed=number).image)
    fov_first = script("fov_first")
    image, fov = fov_first.photographs(tmp_path, 96, 2)
    assert image.shape[:2] == (2, 3)
    assert fov.shape == (2, 1, *image.shape[2:])
    assert 0.6 < fov.mean() < 0.95
    options = ["--preset", "tiny", "--size", "96", "--batch", "1", "--repeats", "1", "--threads", THREADS]
    fov_first.main(["--images", str(tmp_path), *options])
    assert any(name.startswith("1 x 9") for name in rows(capsys.readouterr().out))
    with pytest.raises(ValueError, match="must hold at least 3 photographs, got 2; lower --batch"):
        fov_first.photographs(tmp_path, 96, 3)


# --- time_profile.py ---


def test_the_profile_accounts_for_every_operator_once() -> None:
    profile = script("time_profile")
    network, image = small_network("reg4pru").eval(), torch.randn(1, 3, 48, 64)
    with torch.inference_mode():
        started = time.perf_counter()
        found = profile.times(network, image)
        elapsed = (time.perf_counter() - started) * 1e3
        dense = profile.times(network.dense(), image)
    everything = {*profile.PARTS.values(), profile.KERNEL, profile.LINEAR}
    assert set(found) == everything
    assert set(dense) == everything - {profile.PARTS["policy"]}
    assert 0 < sum(found.values()) <= elapsed
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_the_profile_prints_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--preset", "tiny", "--policy", "cropr", "--size", "64", "--repeats", "2", "--threads", THREADS]
    script("time_profile").main(options)
    table = rows(capsys.readouterr().out)
    shares = [cells[3] for name, cells in table.items() if cells[3].endswith("%")]
    assert len(shares) == 11
    assert sum(float(share.rstrip("%")) for share in shares) == pytest.approx(100, abs=1)


# --- keep_rates.py ---


def test_keep_rates_prints_a_column_for_each_data_set(
    phantom_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A keep rate of 1 is dense; what removes fewer tokens costs more; all images are both sets together."""
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "measure"))
    other = write_phantoms(tmp_path / "other", train=4, test=1, size=112, seed=9)
    checkpoint = write_checkpoint(tmp_path / "model.pt", 96)
    words = [str(checkpoint), str(phantom_set), str(other), "--keep-rates", "1", "0.3", "--behind", "--random"]
    script("keep_rates").main(words)
    table = rows(capsys.readouterr().out)
    assert table["keep rate"] == [
        *("GFLOPs", "speed-up", "phantoms AP", "phantoms Dice", "other AP", "other Dice", "all AP", "all Dice")
    ]
    assert table["1.0"][2:] == table["dense"][2:]
    gflops = {name: float(table[name][0]) for name in ("0.3", "0.3 behind", "1.0")}
    assert gflops["0.3"] < gflops["0.3 behind"] < gflops["1.0"]
    assert float(table["dense"][1]) == 1
    assert len({table[name][2] for name in ("dense", "0.3", "0.3 behind", "0.3 random")}) == 4
    assert re.fullmatch(r"0\.\d{4} \[(nan|0\.\d{4}), (nan|0\.\d{4})\]", table["0.3"][4])


# --- robustness.py ---


def test_robustness_prints_clean_and_degraded_of_each_checkpoint(
    phantom_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = [str(write_checkpoint(tmp_path / name, 96)) for name in ("a.pt", "b.pt")]
    script("robustness").main([str(phantom_set), "--checkpoints", *checkpoints, "--limit", "1"])
    table = rows(capsys.readouterr().out)
    assert table["photographs"] == checkpoints
    found = {name.rpartition(" ")[2]: cells for name, cells in table.items() if name.startswith("phantoms")}
    assert {each.name for each in DEGRADATIONS if each.tells_angle} == found.keys()
    clean = {}
    for name, (first, second) in found.items():
        assert first == second
        clean[name], degraded = map(float, first.split(" → "))
        assert degraded <= 1
    assert clean.pop("crop") != clean["blur"]  # of the pixels that are left
    assert len(set(clean.values())) == 1


# --- resolutions.py ---


def test_fewer_pixels_cost_the_weights_that_ship_accuracy_and_the_whole_photograph_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_phantoms(tmp_path / "phantoms", train=2, test=1, size=320)
    words = [str(CHECKPOINT), str(data), "--angle", "30", "--pixels-per-degree"]

    def found() -> list[list[float]]:
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| phantoms (1)")]
        return [[float(cell) for cell in line.split("|")[4:6]] for line in lines]

    script("resolutions").main([*words, "9", "3"])
    (fine, fine_whole), (coarse, coarse_whole) = found()
    assert 0.5 < coarse < fine < fine_whole + 0.02
    assert coarse < coarse_whole - 0.05
    script("resolutions").main([*words, "9", "--noise", "0", "16"])
    (clean, clean_whole), (noisy, noisy_whole) = found()
    assert clean == fine
    assert 0.2 < noisy < fine - 0.03
    assert clean_whole == noisy_whole == fine_whole


@pytest.mark.parametrize(("options", "problem"), [([], "tell it with --angle"), (["--angle", "30"], "ask for fewer")])
def test_resolutions_that_no_photograph_has_are_refused(
    phantom_set: Path, tmp_path: Path, options: list[str], problem: str
) -> None:
    checkpoint = str(write_checkpoint(tmp_path / "a.pt", 96))
    with pytest.raises(SystemExit, match=problem):
        script("resolutions").main([checkpoint, str(phantom_set), *options, "--pixels-per-degree", "1000"])


# --- training_memory.py ---


def test_the_calculated_memory_of_a_training_step_is_what_the_allocator_counts() -> None:
    memory = script("training_memory")
    network = build_segmenter("tiny", "dense", "eomt").train()
    image, label = torch.zeros(2, 3, 128, 128), torch.zeros(2, 1, 128, 128)

    def step() -> None:
        logits, trace = network.forward_with_trace(image, None)
        terms = [segmentation_loss(each, label) for each in (*trace.auxiliary, logits)]
        del logits, trace
        torch.stack(terms).sum().backward()

    measured = peak_memory(step, torch.device("cpu")) / 1024
    between, peak = memory.needed("tiny", "eomt", "dense", 128, 2, amp=False)
    weights = 4 * sum(parameter.numel() for parameter in network.parameters()) / 2**30
    assert between == pytest.approx(4 * weights, rel=0.05)  # weights, two moments, average
    assert peak - between == pytest.approx(measured, rel=0.1)
    assert memory.needed("tiny", "eomt", "dense", 128, 2, checkpointed=True, amp=False)[1] < peak


def test_the_table_of_training_memory(capsys: pytest.CaptureFixture[str]) -> None:
    script("training_memory").main(["--preset", "tiny", "--size", "64", "--decoders", "skip", "--policies", "dense"])
    assert re.search(r"^\| skip, dense, batch 1 \| 0\.0 \| \d\.\d \| \d\.\d \|$", capsys.readouterr().out, re.MULTILINE)


# --- cameras.py ---


@pytest.fixture(scope="module")
def trained(phantom_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep with one training, as long and validated as the experiment says, but two steps for 616."""
    folder, own = tmp_path_factory.mktemp("cameras"), CAMERAS.shared.settings
    settings = {**TINY, **{key: own[key] for key in ("max_epochs", "val_interval", "test_entries")}}
    settings |= {"max_epochs": own["max_epochs"].replace("616", "2"), "policy": "dense"}
    run("train", **settings, dataset_dir=str(phantom_set), output_dir=str(folder / "small-seed42-0123abcd"))
    return folder


def test_cameras_trains_as_many_steps_on_any_data_set_and_tests_no_test_subject(
    trained: Path, phantom_set: Path
) -> None:
    state = torch.load(trained / "small-seed42-0123abcd" / "checkpoints" / "last.pt", weights_only=True)
    assert state["ema_updates"] == 2
    table = (trained / "small-seed42-0123abcd" / "per_image.csv").read_text().splitlines()
    names = {line.split(",")[0] for line in table[1:]}
    assert names == {each["name"] for each in entries(phantom_set, "validation")}


def test_a_training_is_tested_on_all_cameras_but_its_own(
    trained: Path,
    phantom_set: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cameras = script("cameras")
    other = write_phantoms(tmp_path / "other", train=3, test=1, size=112, seed=9)
    words = [str(trained), "--data", str(phantom_set), str(other), "--phantoms", "2", "112", "--limit", "3"]
    words += ["--kept", str(tmp_path / "kept.json")]
    cameras.main(words)
    first = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in first.splitlines()[2:]]
    assert [row[:2] for row in rows] == [
        ["small-seed42, phantoms", "other"],
        ["small-seed42, phantoms", "strange-2-112"],
        ["**small-seed42**", "mean of 2"],
    ]
    values = np.array([[float(cell) for cell in row[2:]] for row in rows])
    np.testing.assert_allclose(values[2], values[:2].mean(0), atol=0.5)
    np.testing.assert_allclose(values[2, :6], values[:2, :6].mean(0), atol=0.006)
    own, best, ece, seconds = values[0, [2, 4, 6, 7]]
    pipeline = load_pipeline(trained / "small-seed42-0123abcd" / "checkpoints" / "best.pt", device="cpu")
    variants = {"as it is": pipeline.network, "bare": cameras.without_pruned_blocks(pipeline.network)}
    found = evaluate_variants(pipeline, variants, entries(other, "train", 0.0))
    aps = [found[name]["ap"] for name in variants]
    assert values[0, :2] == pytest.approx([aps[0], aps[0] - aps[1]], abs=1e-4)
    assert aps[0] != aps[1]
    assert 0 < own <= best < 1
    assert 0 < ece < 1
    assert 0 < seconds < 60
    monkeypatch.setattr(cameras, "measured", None)  # all of it is kept
    cameras.main(words)
    assert capsys.readouterr().out == first


def test_weights_that_ship_have_seen_what_their_facts_say() -> None:
    (found,) = script("cameras").subjects([CHECKPOINT])
    assert found.seen == ("CHASE_DB1", "HRF")


def test_the_worth_of_the_pruned_blocks_is_that_of_those_between_the_first_stage_and_reactivation() -> None:
    """Blocks whose layer scales are zero are the identity, too."""
    cameras, image, fov = script("cameras"), torch.randn(1, 3, 48, 64), disc((48, 64), (24, 32), 24)
    for policy in ("dense", "reg4pru"):
        network = small_network(policy).eval()
        with torch.no_grad():
            whole, bare = network(image, fov), cameras.without_pruned_blocks(network)(image, fov)
            assert (whole - bare).abs().max() > 1e-3
            for block in network.encoder.blocks[1:7]:
                block.gamma_1.zero_(), block.gamma_2.zero_()
            torch.testing.assert_close(network(image, fov), bare)


def test_strange_phantoms_are_those_of_the_generator_in_another_look(tmp_path: Path) -> None:
    cameras = script("cameras")
    found = {each.name: each for each in find_samples(cameras.strange_phantoms(tmp_path, 2, 112)).samples}
    assert found.keys() == {"cut_top_bottom", "grey_background"}
    for number, (frame, _) in enumerate(cameras.LOOKS[:2]):
        phantom, image, mask = (
            make_phantom(112, cameras.FIRST_PHANTOM + number, frame),
            found[frame].image,
            found[frame].label,
        )
        assert mask is not None
        assert np.array_equal(read_mask(mask), phantom.mask)
        assert np.abs(read_image(image).astype(float) - phantom.image).mean() > 2
    before = image.stat()
    cameras.strange_phantoms(tmp_path, 2, 112)
    assert image.stat() == before
