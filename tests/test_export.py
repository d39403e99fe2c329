"""What is exported computes what the network does, at its own size, and refuses every other."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import monai.bundle
import onnxruntime
import pytest
import torch
from monai.data import load_net_with_metadata

from networks import SMALL, disc, small_network
from reg4pru_monai.export import FORMATS, ExportError, export, export_checkpoint, probes
from reg4pru_monai.inference import CHECKPOINT, UNTRAINED, load_pipeline
from reg4pru_monai.segmenter import Segmenter, build_segmenter
from reg4pru_monai.weights import save_checkpoint
from runs import BUNDLE, config, undisturbed

SIZE = 32
REFUSALS = {  # of an image of another size: kind of the error, and what it says
    ".onnx": (onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, "index: 2 Got: 64 Expected: 32"),
    ".pt2": (AssertionError, r"image.size\(\)\[2\] == 32"),
    ".ts": (torch.jit.Error, r"image must be 32 x 32 pixels, as it was traced, got \[1, 3, 64, 32\]"),
}
traces = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # what it warns of is what these tests are about


def shallow(policy: str, decoder: str) -> Segmenter:
    """Three blocks, before a stage, between it and reactivation, and after; dense two: each takes time."""
    if policy == "dense":
        return small_network(policy, decoder, replace(SMALL, depth=2), stages=[]).eval()
    return small_network(policy, decoder, replace(SMALL, depth=3), stages=[1], keep_rate=0.5, reactivate=2).eval()


def largest_difference(run: object, network: torch.nn.Module, size: int, *batches: int) -> float:
    """Of any logit, on noise, over batches of these numbers of images."""
    assert callable(run)
    with torch.no_grad():
        images = [torch.randn(batch, 3, size, size) for batch in batches]
        return max(float((run(each) - network(each)).abs().max()) for each in images)


@pytest.mark.parametrize(
    ("policy", "decoder", "suffix"),
    [  # the shipped weights, pruned with the decoder skip, have tests of their own
        *(("reg4pru", "eomt", suffix) for suffix in FORMATS),
        *(("dense", "skip", suffix) for suffix in FORMATS),
        ("dense", "eomt", ".onnx"),
    ],
)
def test_a_file_computes_what_the_network_does_for_any_batch_and_refuses_other_sizes(
    policy: str, decoder: str, suffix: str, tmp_path: Path
) -> None:
    network, target = shallow(policy, decoder), tmp_path / "new" / f"vessels{suffix}"
    assert export(network, target, SIZE) <= FORMATS[suffix].tolerance
    assert list(target.parent.iterdir()) == [target]
    run = FORMATS[suffix].read(target)
    assert largest_difference(run, network, SIZE, 1, 2, 5) < FORMATS[suffix].tolerance
    error, message = REFUSALS[suffix]
    with pytest.raises(error, match=message):
        run(torch.zeros(1, 3, 64, 32))


def test_the_shipped_weights_as_onnx(tmp_path: Path) -> None:
    target = tmp_path / "vessels.onnx"
    assert export_checkpoint(CHECKPOINT, target) < 1e-4
    network = load_pipeline(device="cpu").network
    images = probes(network, 256)
    with torch.no_grad():
        found, expected = FORMATS[".onnx"].read(target)(images), network(images)
        dense = network.dense()(images)
    assert (found - expected).abs().max() < 1e-4
    assert (dense - expected).abs().max() > 0.1  # so that agreement with the pruned network means something


def test_another_keep_rate_is_exported(tmp_path: Path) -> None:
    export_checkpoint(CHECKPOINT, tmp_path / "vessels.ts", size=64, keep_rate=1.0)
    network = load_pipeline(device="cpu").network
    run = FORMATS[".ts"].read(tmp_path / "vessels.ts")
    assert largest_difference(run, network.dense(), 64, 1) < 1e-5
    assert largest_difference(run, network, 64, 1) > 0.1


# --- MONAI's commands


def monai_export(command: str, target: Path, size: int, **values: Any) -> None:
    """As `python -m monai.bundle COMMAND` on the bundle's inference.yaml."""
    places = {"bundle_root": str(BUNDLE), "config_file": config("inference"), "filepath": str(target)}
    with undisturbed():
        shape = [2, 3, size, size]
        getattr(monai.bundle, command)(**places, key_in_ckpt="network", input_shape=shape, **values)


@traces
def test_ckpt_export_traces_the_shipped_weights(tmp_path: Path) -> None:
    monai_export("ckpt_export", tmp_path / "vessels.ts", 256, use_trace=True)
    run, metadata, extra = load_net_with_metadata(str(tmp_path / "vessels.ts"), more_extra_files=("inference.json",))
    assert metadata == json.loads((BUNDLE / "configs" / "metadata.json").read_text())
    assert "network_def" in json.loads(extra["inference.json"])
    assert largest_difference(run, load_pipeline(device="cpu").network, 256, 1, 3) < 1e-5
    with pytest.raises(torch.jit.Error, match="image must be 256 x 256 pixels"):
        run(torch.zeros(1, 3, 320, 256))


@traces
def test_ckpt_export_takes_the_architecture_from_the_checkpoint_given(tmp_path: Path) -> None:
    network, path = build_segmenter("tiny", decoder="eomt", keep_rate=0.5).eval(), str(tmp_path / "best.pt")
    configuration = {**UNTRAINED, "decoder": "eomt", "keep_rate": 0.5}
    save_checkpoint(path, {"network": network.state_dict(), "configuration": configuration})
    monai_export("ckpt_export", tmp_path / "vessels.ts", 64, use_trace=True, ckpt_file=path, checkpoint=path)
    assert largest_difference(torch.jit.load(tmp_path / "vessels.ts"), network, 64, 1, 3) < 1e-5


def test_ckpt_export_does_not_script(tmp_path: Path) -> None:
    with pytest.raises(torch.jit.frontend.NotSupportedError):
        monai_export("ckpt_export", tmp_path / "vessels.ts", 256)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:.*dynamic_axes", "ignore:.isinstance.treespec, LeafSpec")  # of MONAI, of torch
def test_onnx_export_takes_any_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # MONAI leaves a file there
    network, path = shallow("dense", "skip"), tmp_path / "model.pt"
    torch.save({"network": network.state_dict()}, path)
    values = {"input_names": ["image"], "dynamic_axes": {"image": {0: "batch"}}}
    small = {"_target_": "test_export.shallow", "policy": "dense", "decoder": "skip"}
    named = {"net_id": "network_def", "ckpt_file": str(path), "converter_kwargs": values, "network_def": small}
    monai_export("onnx_export", tmp_path / "vessels.onnx", SIZE, **named)
    assert largest_difference(FORMATS[".onnx"].read(tmp_path / "vessels.onnx"), network, SIZE, 1, 3) < 1e-4


@traces
def test_a_field_of_view_is_not_traced() -> None:
    fov = disc((SIZE, SIZE), (16, 16), 10)
    with pytest.raises(ValueError, match="trace with the image alone"):
        torch.jit.trace(shallow("dense", "skip"), (torch.zeros(1, 3, SIZE, SIZE), fov))


# --- the check before a file appears


def test_a_file_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "vessels.ts"
    target.write_text("earlier")
    script = FORMATS[".ts"]

    def of_other_counts(network: Segmenter, images: torch.Tensor, path: Path) -> None:
        script.write(network.with_keep_rate(0.9), images, path)

    monkeypatch.setitem(FORMATS, ".ts", script._replace(write=of_other_counts))
    with pytest.raises(ExportError, match=r"vessels.ts: not written: its logits would differ .* 1e-05 is allowed"):
        export(shallow("reg4pru", "skip"), target, SIZE)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("vessels.ts", "earlier")]


def test_a_network_in_training_is_exported_as_it_predicts_and_goes_on_training(tmp_path: Path) -> None:
    network = shallow("reg4pru", "skip").train()
    export(network, tmp_path / "vessels.ts", SIZE)
    assert all(module.training for module in network.modules())
    assert largest_difference(FORMATS[".ts"].read(tmp_path / "vessels.ts"), network.eval(), SIZE, 1) < 1e-5


def test_the_images_compared_are_those_of_the_clearest_selection() -> None:
    network = shallow("reg4pru", "skip")
    images = probes(network, SIZE, count=8)
    assert images.shape == (8, 3, SIZE, SIZE)
    assert len(images.flatten(1).unique(dim=0)) == 8
    with torch.no_grad():
        records = [network.forward_with_trace(image[None])[1].stages[0] for image in images]
    gaps = [float(r.score[r.keep > 0].min() - r.score[r.keep == 0].max()) for r in records]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > gaps[-1]
    assert torch.equal(probes(network, SIZE, count=2), images[:2])


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("vessels.pth", SIZE, r"target must end with one of .onnx, .pt2, .ts, got 'vessels.pth'"),
        ("vessels.ts", 16, "size must be at least 32 pixels, got 16"),
    ],
)
def test_a_wrong_argument_is_named(name: str, size: int, message: str, tmp_path: Path) -> None:
    with pytest.raises((ExportError, ValueError), match=message):
        export(shallow("dense", "skip"), tmp_path / name, size)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExportError, match=rf"{package}.*pip install onnx onnxscript onnxruntime"):
        export(shallow("dense", "skip"), tmp_path / "vessels.onnx", SIZE)
    assert not list(tmp_path.iterdir())
