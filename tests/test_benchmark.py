import csv
import json
import re
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from reg4pru_monai import benchmark, benchmark_report, benchmark_variants, peers
from reg4pru_monai.accounting import block_cost
from reg4pru_monai.benchmark import Plan, Row, interleaved, run_benchmark
from reg4pru_monai.benchmark_report import PUBLISHED, environment, headline, read_ap, table, write
from reg4pru_monai.benchmark_variants import (
    BenchmarkError,
    Setting,
    Skipped,
    Source,
    Variant,
    check_count,
    check_dtype,
    make_disc,
    make_image,
    own_variants,
)
from reg4pru_monai.files import check_folder
from reg4pru_monai.inference import UNTRAINED
from reg4pru_monai.segmenter import Segmenter, build_segmenter
from reg4pru_monai.weights import CheckpointError, save_checkpoint

CPU = torch.device("cpu")
TINY = Plan(presets=("tiny",), sizes=(64,), devices=("cpu",), peers=("none",), repeats=3, warmup=0)
SETTING = Setting("tiny", "skip", 64, 1, "cpu", "float32", False)


def variants(plan: Plan) -> list[Variant]:
    return list(own_variants(plan.settings(), plan.networks(), plan.source, plan.fov))


@pytest.fixture(scope="module")
def measured() -> list[Row]:
    """Two policies at two keep rates, with dense, on 64 x 64."""
    return run_benchmark(replace(TINY, policies=("dynamicvit", "reg4pru")), {"reg4pru@0.5": 0.8})[0]


def test_the_rows_are_dense_and_what_was_asked_for(measured: list[Row]) -> None:
    names = ["dense", "dynamicvit@0.7", "dynamicvit@0.5", "reg4pru@0.7", "reg4pru@0.5"]
    assert [row.label for row in measured] == names
    assert {(row.preset, row.decoder, row.size, row.batch, row.compiled) for row in measured} == {
        ("tiny", "skip", 64, 1, False)
    }
    assert [row.ap for row in measured] == [None] * 4 + [0.8]


def test_a_row_agrees_with_itself(measured: list[Row]) -> None:
    for row in measured:
        assert row.latency_ms == pytest.approx(np.median(row.latencies_ms))
        assert min(row.latencies_ms) <= row.latency_ms <= row.latency_p95_ms <= max(row.latencies_ms)
        assert row.images_per_second == pytest.approx(1000 / row.latency_ms)
        assert row.flop_ratio == pytest.approx(measured[0].gflops_counted / row.gflops_counted)
        assert row.gflops == pytest.approx(row.gflops_counted)
        ratios = np.divide(measured[0].latencies_ms, row.latencies_ms)
        assert row.speedup == pytest.approx(np.median(ratios))
        assert row.speedup_low <= row.speedup <= row.speedup_high
        assert row.efficiency == pytest.approx(row.speedup / row.flop_ratio)
        assert row.efficiency_low == pytest.approx(row.speedup_low / row.flop_ratio)
        assert row.peak_memory_mib > 0.5  # the stem alone: 12 channels at 64 x 64 in float32 are 0.19 MiB, a few of it
    assert (measured[0].speedup, measured[0].flop_ratio, measured[0].efficiency) == (1, 1, 1)


def test_equal_graphs_cost_the_same_and_fewer_tokens_cost_less(measured: list[Row]) -> None:
    gflops = {row.label: row.gflops for row in measured}
    assert gflops["dynamicvit@0.7"] == gflops["reg4pru@0.7"] > gflops["reg4pru@0.5"]
    assert gflops["dense"] > gflops["reg4pru@0.7"]


def test_each_setting_has_one_dense_row_and_is_compared_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that ticks with the pixels: dense takes two ticks each, others one."""

    def clock(variant: Variant, device: torch.device) -> tuple[float, Any]:
        tick = variant.image.numel() * (1.0 if variant.setting.decoder == "skip" else 3.0)
        return tick * (2 if variant.name == "dense" else 1), None

    monkeypatch.setattr(benchmark, "seconds", clock)
    plan = replace(TINY, policies=("random", "random"), keep_rates=(0.5, 0.5), sizes=(16, 32), batch_sizes=(1, 2))
    rows, skipped = run_benchmark(replace(plan, decoders=("skip", "eomt")))
    assert [row.network for row in rows] == ["dense", "random"] * 8
    assert len({(row.decoder, *row.condition) for row in rows}) == 8
    assert [row.speedup for row in rows] == [1, 2] * 8
    assert rows[-1].images_per_second == pytest.approx(2 / (2 * 3 * 32 * 32 * 3))
    assert not skipped


def test_repetitions_are_interleaved_in_changing_order() -> None:
    called: list[int] = []
    calls = [lambda number=number: called.append(number) for number in range(4)]
    times = interleaved(calls, [CPU] * 4, 6)
    rounds = [called[start : start + 4] for start in range(0, 24, 4)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in rounds)
    assert len({tuple(order) for order in rounds}) > 3
    assert np.shape(times) == (4, 6)
    first = list(called)
    interleaved(calls, [CPU] * 4, 6)
    assert called[24:] == first


def test_a_variant_is_the_forward_pass_that_predicts() -> None:
    for variant in variants(replace(TINY, policies=("cropr",), decoders=("eomt",), keep_rates=(0.6,))):
        assert isinstance(variant.network, Segmenter)
        assert not variant.network.training
        found = variant()
        assert found.is_inference()
        with torch.no_grad():
            assert torch.equal(found, variant.network(variant.image))


def test_policies_share_the_weights_of_dense() -> None:
    dense, *pruned = variants(replace(TINY, policies=("reg4pru", "cropr"), keep_rates=(0.7, 0.3)))
    for variant in pruned:
        own = dict(variant.network.named_parameters())
        assert all(own[name] is weight for name, weight in dense.network.named_parameters())
    assert [variant.network.encoder.policy.stages[0].keep for variant in pruned] == [0.7, 0.3, 0.7, 0.3]


def test_stages_and_reactivation_are_passed_on() -> None:
    plan = replace(TINY, policies=("random",), keep_rates=(0.5,), stages=(2, 4), reactivate="mask_pred")
    dense, pruned = variants(plan)
    assert [stage.block for stage in pruned.network.encoder.policy.stages] == [2, 4]
    assert dense.network.encoder.reactivate == pruned.network.encoder.reactivate == 8


def test_compiling_leaves_the_other_network_alone() -> None:
    plan = replace(TINY, policies=("random",), keep_rates=(0.5,), compiled=(False, True))
    eager, compiled = (found for found in variants(plan) if found.name == "random")
    with torch.compiler.set_stance("force_eager"):
        for variant in (eager, compiled):
            variant.prepare(warmup=0)
        assert torch.equal(eager(), compiled())
    compiled_calls = [[block._compiled_call_impl for block in v.network.encoder.blocks] for v in (eager, compiled)]
    assert not any(compiled_calls[0])
    assert all(compiled_calls[1])
    assert (eager.flops, eager.counted) == (compiled.flops, compiled.counted)


def test_what_torch_cannot_run_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(variant: Variant, warmup: int) -> None:
        raise RuntimeError("no C++ compiler\nand much more")

    monkeypatch.setattr(Variant, "prepare", fail)
    with pytest.raises(BenchmarkError, match=r"^dense \(tiny, skip, 64 x 64 px, .*\) does not run here: no C\+\+ comp"):
        run_benchmark(TINY)


def test_a_count_that_does_not_agree_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    check_count("dense", 1.009e9, 1e9)
    with pytest.raises(BenchmarkError, match=r"dense: 1\.011 GFLOPs follow from the trace, but torch counts 1"):
        check_count("dense", 1.011e9, 1e9)
    monkeypatch.setattr(benchmark_variants, "count_flops", lambda call: 10**9)
    with pytest.raises(BenchmarkError, match="does not know a part"):
        run_benchmark(TINY)


def test_the_field_of_view_is_the_inscribed_disc() -> None:
    setting = SETTING._replace(batch=2)
    disc = make_disc(setting)
    assert disc.shape == (2, 1, 64, 64)
    assert disc.float().mean() == pytest.approx(np.pi / 4, abs=0.01)
    assert disc[0, 0, 0, 32]
    assert disc[0, 0, 32, 63]
    assert not disc[0, 0, 3, 3]
    assert torch.equal(make_image(setting), make_image(setting))
    assert make_image(setting).shape == (2, 3, 64, 64)
    whole, inside = (variants(replace(TINY, policies=("dense",), fov=fov))[0] for fov in (False, True))
    for variant in (whole, inside):
        variant.prepare(warmup=0)
    block = whole.network.encoder.blocks[0]  # of 8 x 8 patches the corners lie outside; 5 tokens are no patches
    assert whole.counted - inside.counted == 8 * (block_cost(block, 64 + 5) - block_cost(block, 60 + 5))


def test_threads_are_set_for_the_run_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before, during = torch.get_num_threads(), []
    monkeypatch.setattr(Variant, "prepare", lambda *_: during.append(torch.get_num_threads()) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_benchmark(replace(TINY, threads=before + 1))
    assert during == [before + 1]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policies": ("fast",)}, "policy must be one of"),
        ({"policies": ()}, "policies must name at least one"),
        ({"keep_rates": (1.5,)}, r"keep_rate must be in \(0, 1\], got 1.5"),
        ({"presets": ("huge",)}, "preset must be one of"),
        ({"decoders": ("unet",)}, "decoder must be one of eomt, skip, got 'unet'"),
        ({"sizes": (64, 0)}, "sizes must be at least 1, got 0"),
        ({"batch_sizes": (0,)}, "batch_sizes must be at least 1, got 0"),
        ({"devices": ("abacus",)}, "device must be auto, cpu or an available GPU"),
        ({"dtypes": ("int8",)}, "dtypes must be some of float32, bfloat16, float16, got 'int8'"),
        ({"stages": "often"}, "stages must be one of"),
        ({"repeats": 1}, "repeats must be at least 2, got 1"),
        ({"warmup": -1}, "warmup must be at least 0, got -1"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"peers": ("UNet",)}, "peers must be all, none or some of BasicUNet, .*, got 'UNet'"),
        ({"checkpoint": Path("best.pt")}, "are those of the checkpoint; leave them out"),
    ],
)
def test_a_plan_that_cannot_be_measured_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_benchmark(replace(TINY, **options))


# --- reduced precision -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import os, signal\nos.kill(os.getpid(), signal.SIGILL)  # {}", "SIGILL"),
        ("raise RuntimeError('not implemented for {}')", "RuntimeError: not implemented for bfloat16"),
    ],
)
def test_a_dtype_that_the_cpu_cannot_is_named(program: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_variants, "PROBE", program)
    check_dtype(CPU, "float32")
    with pytest.raises(ValueError, match=re.escape(f"bfloat16 does not run on this CPU ({reason}); leave it out")):
        run_benchmark(replace(TINY, dtypes=("float32", "bfloat16")))


def test_reduced_precision_is_autocast() -> None:
    try:
        check_dtype(CPU, "bfloat16")
    except ValueError as error:
        pytest.skip(str(error))
    plan = replace(TINY, policies=("dense",), dtypes=("float32", "bfloat16"), repeats=2)
    full, half = variants(plan)
    assert (full().dtype, half().dtype) == (torch.float32, torch.bfloat16)
    assert next(half.network.parameters()).dtype == torch.float32
    assert torch.allclose(full(), half().float(), atol=0.1)


# --- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """DynamicViT in a tiny network with the eomt decoder, stages elsewhere."""
    settings = {"preset": "tiny", "decoder": "eomt", "policy": "dynamicvit", "stages": [2, 3], "reactivate": 6}
    network = build_segmenter(**settings)
    path = tmp_path / "best.pt"
    save_checkpoint(path, {"network": network.state_dict(), "configuration": {**UNTRAINED, **settings}})
    return path


def test_a_checkpoint_gives_weights_and_architecture(checkpoint: Path) -> None:
    plan = replace(TINY, presets=(), checkpoint=checkpoint, policies=("reg4pru", "random"), keep_rates=(0.4,))
    saved = torch.load(checkpoint, weights_only=True)["network"]
    _, routed, chance = variants(plan)
    assert (routed.setting.preset, routed.setting.decoder) == ("tiny", "eomt")
    assert torch.equal(routed.network.patch_embed.proj.weight, saved["patch_embed.proj.weight"])
    selectors = routed.network.encoder.policy.base.selectors
    assert torch.equal(selectors[1][1].weight, saved["encoder.policy.selectors.1.1.weight"])
    for variant in (routed, chance):
        assert [tuple(stage)[:2] for stage in variant.network.encoder.policy.stages] == [(2, 0.4), (3, 0.4)]
        assert variant.network.encoder.reactivate == 6


def test_a_checkpoint_without_the_scorers_of_a_policy_is_named(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"best.pt: checkpoint of another architecture: .*scorers"):
        run_benchmark(replace(TINY, presets=(), checkpoint=checkpoint, policies=("cropr",)))
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        run_benchmark(replace(TINY, presets=(), checkpoint=tmp_path / "lost.pt"))


def test_random_weights_are_the_same_in_every_run() -> None:
    first, second = (Source().build("tiny", "skip", "cropr").state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


# --- peers -----------------------------------------------------------------------------------------------------------


def test_peers_are_measured_or_skipped_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    rows, skipped = run_benchmark(replace(TINY, policies=("dense",), peers=("all",), repeats=2))
    found = {row.label: row for row in rows[1:]}
    assert sorted([*found, *(entry.network for entry in skipped)]) == sorted(peers.PEERS)
    assert all(entry.reason for entry in skipped)
    assert "timm_vit_small" not in found
    reason = next(entry.reason for entry in skipped if entry.network == "timm_vit_small")
    assert re.fullmatch(r"ModuleNotFoundError: .*timm.*; pip install einops timm", reason)
    unet = found["BasicUNet"]
    assert unet.gflops_counted == pytest.approx(0.6229, rel=1e-3)
    assert (unet.preset, unet.gflops, unet.flop_ratio, unet.efficiency) == (None, None, None, None)
    ratios = np.divide(rows[0].latencies_ms, unet.latencies_ms)
    assert unet.speedup == pytest.approx(np.median(ratios))


def test_a_size_that_a_peer_cannot_take_is_a_reason() -> None:
    plan = replace(TINY, policies=("dense",), sizes=(40, 36), decoders=("skip", "eomt"), peers=("DynUNet",), repeats=2)
    rows, skipped = run_benchmark(plan)
    assert [row.network for row in rows] == ["dense"] * 4
    assert [(entry.network, entry.size) for entry in skipped] == [("DynUNet", 40), ("DynUNet", 36)]
    assert all("Sizes of tensors must match" in entry.reason for entry in skipped)


def test_peers_give_one_logit_per_pixel() -> None:
    image = torch.randn(1, 3, 64, 64)
    for build in (peers.basic_unet, peers.dyn_unet):
        with torch.no_grad():
            assert build(64).eval()(image).shape == (1, 1, 64, 64)


def test_timm_is_asked_for_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def create_model(name: str, **options: Any) -> nn.Module:
        asked.append((name, options))
        return nn.Conv2d(3, 8, 16, 16)

    monkeypatch.setitem(sys.modules, "timm", types.SimpleNamespace(create_model=create_model))
    rows, _ = run_benchmark(replace(TINY, policies=("dense",), peers=("timm_vit_small",), sizes=(32, 64), repeats=2))
    assert [(row.label, row.size) for row in rows[2:]] == [("timm_vit_small", 32), ("timm_vit_small", 64)]
    assert asked[1] == ("vit_small_patch16_224", {"pretrained": False, "img_size": 64, "num_classes": 0})


@pytest.mark.parametrize(
    ("given", "names"), [(["all"], tuple(peers.PEERS)), (["none"], ()), (["UNETR", "UNETR"], ("UNETR",))]
)
def test_chosen_peers(given: Sequence[str], names: Sequence[str]) -> None:
    assert peers.chosen_peers(given) == names


# --- the report ------------------------------------------------------------------------------------------------------


def row(network: str, keep: float | None = None, **changes: Any) -> Row:
    """A row with round numbers."""
    numbers = {"latency_ms": 2500.0, "latency_p95_ms": 2600.0, "images_per_second": 0.4, "gflops": 511.4}
    ratios = {"speedup": 1.5, "speedup_low": 1.4, "speedup_high": 1.6, "flop_ratio": 1.62}
    efficiency = {"efficiency": 0.93, "efficiency_low": 0.86, "efficiency_high": 0.99}
    values = {**numbers, **ratios, **efficiency, "gflops_counted": 511.5, "peak_memory_mib": 812.25, "ap": None}
    return Row(
        network,
        keep,
        **({"preset": "small", "decoder": "eomt"} | {k: changes.pop(k) for k in ("preset", "decoder") if k in changes}),
        **{"size": 1024, "batch": 8, "device": "cuda:0", "dtype": "bfloat16", "compiled": True},
        **(values | changes),
        latencies_ms=[2500.0, 2500.0],
    )


PEER = {"preset": None, "decoder": None, "gflops": None, "flop_ratio": None}
PEER |= {"efficiency": None, "efficiency_low": None, "efficiency_high": None}


def test_the_table_is_aligned_and_names_its_units() -> None:
    rows = [row("dense", ap=0.8261), row("dynamicvit+reg4pru", 0.75, latency_ms=12.5), row("UNETR", **PEER)]
    lines = table(
        rows, [Skipped("DynUNet", 1000, "reason " * 30), Skipped("DynUNet", 900, "reason " * 30)], "top"
    ).splitlines()
    assert lines[0] == "top"
    assert max(map(len, lines)) <= 120
    start = lines.index("small, eomt, 1024 x 1024 px, batch 8, cuda:0, bfloat16, compiled")
    header, units, dense, pruned = lines[start + 1 : start + 5]
    assert header.split() == ["median", "p95", "images", "GFLOPs", "peak", "speed-up", "FLOP", "efficiency", "AP"]
    assert units.split()[:7] == ["network@keep", "rate", "ms", "ms", "per", "s", "/image"]
    cells = ["2500.00", "2600", "0.400", "511.4", "812.2", "1.50", "[1.40", "1.60]", "1.62", "0.93", "[0.86", "0.99]"]
    assert dense.split() == ["dense", *cells, "0.8261"]
    assert pruned.split() == ["dynamicvit+reg4pru@0.75", "12.50", *cells[1:], "-"]
    assert len(dense) == len(header)
    peer = lines[lines.index("other networks, 1024 x 1024 px, batch 8, cuda:0, bfloat16, compiled") + 3]
    assert peer.split() == ["UNETR", "2500", "2600", *cells[2:3], "511.5", *cells[4:8], "-", "-", "-"]
    assert any(line.startswith("skipped: DynUNet at 1000, 900 px: reason reason") for line in lines)


def test_the_ap_column_appears_with_values_only() -> None:
    assert " AP" not in table([row("dense")], [], "")
    assert " AP" in table([row("dense", ap=0.5)], [], "")


def test_the_published_numbers_are_marked() -> None:
    text = table([row("dense")], [], "")
    tail = text[text.index("published, not measured here") :]
    assert "batch 8, bfloat16, compiled blocks, GPU not stated" in tail
    assert re.search(r"random_route\(Reg4Pru\) +reg4pru@0.7 +407.8 +316.4 +1.26 +1.62 +0.78\n", tail)
    ratios = {entry.arm: (round(entry.speedup, 3), round(1 / entry.flop_ratio, 3)) for entry in PUBLISHED}
    assert ratios == {  # METHOD section 11
        "dense": (1.0, 1.0),
        "soft_mask(hard_eval)": (1.287, 0.619),
        "gumbel_penult": (1.228, 0.619),
        "random_route(Reg4Pru)": (1.258, 0.619),
        "aux_route_penult(CROPR)": (1.268, 0.612),
    }


def test_the_environment_names_no_machine() -> None:
    made_with = environment(replace(TINY, threads=3), "reg4pru benchmark")
    assert made_with["threads"] == 3
    assert made_with["package.torch"] == torch.__version__
    assert list(made_with["devices"]) == ["cpu"]
    assert torch.backends.cpu.get_cpu_capability() in made_with["devices"]["cpu"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", made_with["date"])
    assert "host" not in made_with
    top = headline(replace(TINY, fov=True), made_with)
    assert top.startswith(
        "random weights, round field of view (other networks: whole frame), 3 interleaved repetitions"
    )
    assert "CPU threads: 3" in top


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"dense": 0.8, "cropr@0.70": 1}, {"dense": 0.8, "cropr@0.7": 1.0}),
        ({"cropr@.5": 0.25, "BasicUNet": 0.5}, {"cropr@0.5": 0.25, "BasicUNet": 0.5}),
        ({}, {}),
    ],
)
def test_ap_values_by_row(given: dict[str, float], found: dict[str, float], tmp_path: Path) -> None:
    plan = replace(TINY, policies=("cropr",), peers=("BasicUNet",))
    (tmp_path / "ap.json").write_text(json.dumps(given))
    assert read_ap(tmp_path / "ap.json", plan) == found


def test_a_policy_with_one_keep_rate_needs_no_keep_rate_in_its_name(tmp_path: Path) -> None:
    (tmp_path / "ap.json").write_text('{"cropr": 0.7}')
    assert read_ap(tmp_path / "ap.json", replace(TINY, policies=("cropr",), keep_rates=(0.6,))) == {"cropr@0.6": 0.7}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"reg4pru": 0.8}', "no row is called 'reg4pru'; there are dense, cropr@0.7, cropr@0.5"),
        ('{"cropr@0.6": 0.8}', "no row is called 'cropr@0.6'; there are"),
        ('{"cropr@high": 0.8}', "no row is called 'cropr@high'"),
        ('{"cropr": 0.8}', "no row is called 'cropr'"),
        ('{"dense": 82.6}', r"average precision of dense must be a number in \[0, 1\], got 82.6"),
        ('{"dense": "0.8"}', "must be a number"),
        ('{"dense": true}', "must be a number"),
        ("[0.8]", "must hold an object such as .* got list"),
        ("dense: 0.8", "is no JSON file"),
    ],
)
def test_wrong_ap_values_are_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "ap.json").write_text(text)
    with pytest.raises(ValueError, match=f"ap.json.* {message}"):
        read_ap(tmp_path / "ap.json", replace(TINY, policies=("cropr",)))


def test_the_files_hold_the_result(measured: list[Row], tmp_path: Path) -> None:
    skipped = [Skipped("UNETR", 72, "too odd")]
    plan = replace(TINY, policies=("dynamicvit", "reg4pru"))
    paths = write(tmp_path / "new", plan, measured, skipped, {"date": "today"})
    assert [path.name for path in paths] == ["benchmark.json", "benchmark.csv", "benchmark.png"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(path.name for path in paths)
    found = json.loads(paths[0].read_text())
    assert found["environment"] == {"date": "today"}
    assert found["plan"]["sizes"] == [64]
    assert [Row(**each) for each in found["rows"]] == measured
    assert found["skipped"] == [{"network": "UNETR", "size": 72, "reason": "too odd"}]
    assert found["published"]["measured_here"] is False
    assert found["published"]["rows"][0]["gflops"] == 511.4
    with open(paths[1], newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["network"] for line in lines] == [each.network for each in measured]
    assert float(lines[4]["speedup"]) == measured[4].speedup
    assert (lines[0]["keep_rate"], lines[4]["keep_rate"], lines[4]["ap"]) == ("", "0.5", "0.8")
    with Image.open(paths[2]) as picture:
        assert picture.size[0] > 300


def test_without_ap_values_there_is_no_plot(tmp_path: Path) -> None:
    paths = write(tmp_path, TINY, [row("dense")], [], {})
    assert [path.name for path in paths] == ["benchmark.json", "benchmark.csv"]


def test_the_plot_has_a_panel_per_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn: dict[str, Any] = {}
    draw: Callable[..., None] = benchmark_report.save_ap_against_speed
    monkeypatch.setattr(
        benchmark_report,
        "save_ap_against_speed",
        lambda path, panels: drawn.update(panels) or draw(path, panels),
    )
    rows = [
        row("dense", ap=0.8, images_per_second=0.4),
        row("cropr", 0.7, ap=0.79),
        row("cropr", 0.5),
        row("dense", decoder="skip", ap=0.82),
        row("cropr", 0.7, decoder="skip", ap=0.81, speedup=1.6),
        row("UNETR", **PEER, ap=0.75),
    ]
    write(tmp_path, TINY, rows, [], {})
    first, second = drawn.items()
    where = "1024 x 1024 px, batch 8, cuda:0, bfloat16, compiled\ndense: 0.4 images/s"
    assert first[0] == f"small, eomt, {where}"
    assert [(point.network, point.keep, point.speedup, point.ap) for point in first[1]] == [
        ("dense", None, 1.5, 0.8),
        ("cropr", 0.7, 1.5, 0.79),
        ("UNETR", None, 1.5, 0.75),
    ]
    assert second[0] == f"small, skip, {where}"
    assert [(point.network, point.speedup) for point in second[1]] == [("dense", 1.5), ("cropr", 1.6)]


def test_a_failed_run_leaves_the_earlier_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write(tmp_path, TINY, [row("dense", ap=0.8)], [], {})
    earlier = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(benchmark_report, "save_ap_against_speed", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(tmp_path, TINY, [row("dense", ap=0.9)], [], {})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == earlier


def test_a_folder_that_cannot_be_written_is_found_before_the_run(tmp_path: Path) -> None:
    check_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        check_folder(tmp_path / "file")
