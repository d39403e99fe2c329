import os
import pickle
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from networks import SMALL, small_network
from reg4pru_monai.cli import app
from reg4pru_monai.presets import PRESETS
from reg4pru_monai.released import sha256
from reg4pru_monai.segmenter import Segmenter, build_segmenter, resize_positions
from reg4pru_monai.weights import (
    BACKBONES,
    CheckpointError,
    blend_checkpoints,
    load_backbone,
    load_checkpoint,
    load_network,
    mismatches,
    save_checkpoint,
    write_release,
)

EARLIER: dict[str, Any] = {"network": {"a": torch.arange(3.0)}, "epoch": 1}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A checkpoint that must survive."""
    save_checkpoint(tmp_path / "last.pt", EARLIER)
    return tmp_path / "last.pt"


def assert_unharmed(path: Path) -> None:
    assert load_checkpoint(path)["epoch"] == 1
    assert os.listdir(path.parent) == ["last.pt"]


# --- writing ---


def test_round_trip_and_replacement(path: Path) -> None:
    loaded = load_checkpoint(path)
    assert torch.equal(loaded["network"]["a"], EARLIER["network"]["a"])
    earlier = path.read_bytes()
    with open(path, "rb") as reader:  # one that reads while the new one is written
        save_checkpoint(path, {"epoch": 2})
        assert reader.read() == earlier
    assert load_checkpoint(path) == {"epoch": 2}
    assert os.listdir(path.parent) == ["last.pt"]


def test_folder_is_made_and_others_may_read(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "one" / "last.pt"
    save_checkpoint(path, EARLIER)
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, pickle.PicklingError])
def test_interrupted_save_leaves_the_earlier_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]
) -> None:
    def half(state: Any, file: Any) -> None:
        file.write(b"half of it")
        raise failure

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(failure):
        save_checkpoint(path, {"epoch": 2})
    monkeypatch.undo()
    assert_unharmed(path)


def test_killed_save_leaves_the_earlier_file(path: Path) -> None:
    script = """if True:
        import os, signal, sys, torch
        from reg4pru_monai.weights import save_checkpoint
        def half(state, file):
            file.write(b"half of it")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        torch.save = half
        save_checkpoint(sys.argv[1], {"epoch": 2})
    """
    process = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert process.returncode == -signal.SIGKILL
    assert load_checkpoint(path)["epoch"] == 1
    save_checkpoint(path, {"epoch": 2})
    assert load_checkpoint(path)["epoch"] == 2


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Files may not grow beyond 64 KiB: the write fails with a real OSError, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("small_disk")
def test_full_disk_names_the_file_and_harms_nothing(path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=f"{re.escape(str(path))}: checkpoint not written .*an earlier one is unharmed"
    ):
        save_checkpoint(path, {"a": torch.zeros(1 << 20)})
    assert_unharmed(path)


def test_folder_that_cannot_be_made(path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"last.pt/new.pt: checkpoint not written"):
        save_checkpoint(path / "new.pt", EARLIER)
    assert_unharmed(path)


# --- reading ---


class Code:
    """Would run a command when unpickled without protection."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def test_a_checkpoint_with_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"network": Code()}, tmp_path / "zip.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Code(), protocol=2))
    for name in ("zip.pt", "plain.pt"):
        with pytest.raises(CheckpointError, match=f"{name}: not a checkpoint of tensors and plain values") as caught:
            load_checkpoint(tmp_path / name)
        assert "weights_only" not in str(caught.value)  # no advice to switch the protection off
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"epoch 1\n", "not a (readable )?checkpoint"),
        (b"", "not a (readable )?checkpoint"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "not a (readable )?checkpoint"),
    ],
)
def test_a_file_that_is_no_checkpoint(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "notes.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"notes.pt: {message}"):
        load_checkpoint(path)


def test_a_truncated_checkpoint(path: Path) -> None:
    save_checkpoint(path, {"a": torch.zeros(10_000)})
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(CheckpointError, match=r"last.pt: not a readable checkpoint, or damaged"):
        load_checkpoint(path)


def test_no_checkpoint_and_no_dictionary(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none.pt: no such checkpoint; train first"):
        load_checkpoint(tmp_path / "none.pt")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(CheckpointError, match=r"tensor.pt: expected a dictionary of tensors, got Tensor"):
        load_checkpoint(tmp_path / "tensor.pt")


# --- trained networks ---


def test_load_network_prefers_the_average(tmp_path: Path) -> None:
    network, other = small_network("reg4pru"), small_network("reg4pru")
    average = {name: torch.zeros_like(value) for name, value in network.state_dict().items()}
    states: list[dict[str, Any]] = [{"network": network.state_dict(), "ema": average}, {"network": average}, average]
    for number, state in enumerate(states):
        save_checkpoint(tmp_path / f"{number}.pt", state)
        assert load_network(other, tmp_path / f"{number}.pt") is other
        assert all(not value.any() for value in other.state_dict().values())


def test_a_checkpoint_of_any_policy_evaluates_dense(tmp_path: Path) -> None:
    trained = small_network("dynamicvit").eval()
    save_checkpoint(tmp_path / "best.pt", {"network": trained.state_dict()})
    dense = small_network("dense").eval()
    nn.init.zeros_(dense.norm.weight)
    image = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(load_network(dense, tmp_path / "best.pt")(image), trained.dense()(image))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preset": replace(SMALL, dim=16)}, r"cls_token is \(1, 1, 32\), expected \(1, 1, 16\).* and \d+ more"),
        ({"decoder": "skip"}, r"decoder\.\S+ is missing"),
        ({"preset": replace(SMALL, depth=4), "stages": [1, 2]}, r"encoder.blocks.4\S+ is not in this network"),
    ],
)
def test_a_checkpoint_of_another_architecture(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    network = small_network(**{"policy": "dynamicvit", **change})
    before = {name: value.clone() for name, value in network.state_dict().items()}
    save_checkpoint(tmp_path / "best.pt", {"network": small_network("dynamicvit").state_dict()})
    with pytest.raises(CheckpointError, match=f"best.pt: checkpoint of another architecture: .*{message}") as caught:
        load_network(network, tmp_path / "best.pt")
    assert "Use the preset, decoder, policy and stages it was trained with." in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_mismatches_in_a_fixed_order() -> None:
    own = {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1), "d": torch.zeros(1)}
    given = {"d": 3, "a": torch.zeros(2), "b": torch.zeros(4), "e": torch.zeros(1)}
    assert mismatches(own, given) == [
        "c is missing",
        "e is not in this network",
        "b is (4,), expected (3,)",
        "d is not a tensor",
    ]
    assert mismatches(own, dict(own)) == []


# --- foreign backbones ---


def timm_state(model: str, depth: int = 12, dim: int = 384, registers: int = 4, grid: int = 37) -> dict[str, Tensor]:
    """Parameters with the names and shapes of timm 1.0: vit_*_patch16_dinov3 (Eva) or vit_*_patch14_dinov2."""
    new = "dinov3" in model
    patch = 16 if new else 14
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, dim),
        "patch_embed.proj.weight": (dim, 3, patch, patch),
        "patch_embed.proj.bias": (dim,),
        "norm.weight": (dim,),
        "norm.bias": (dim,),
    }
    if registers:
        shapes["reg_token"] = (1, registers, dim)
    if not new:
        shapes["pos_embed"] = (1, grid**2 + (0 if registers else 1), dim)
    for i in range(depth):
        block = f"blocks.{i}."
        for norm in ("norm1", "norm2"):
            shapes |= {f"{block}{norm}.weight": (dim,), f"{block}{norm}.bias": (dim,)}
        shapes |= {block + "attn.qkv.weight": (3 * dim, dim)} | ({} if new else {block + "attn.qkv.bias": (3 * dim,)})
        shapes |= {block + "attn.proj.weight": (dim, dim), block + "attn.proj.bias": (dim,)}
        shapes |= {block + "mlp.fc1.weight": (4 * dim, dim), block + "mlp.fc1.bias": (4 * dim,)}
        shapes |= {block + "mlp.fc2.weight": (dim, 4 * dim), block + "mlp.fc2.bias": (dim,)}
        shapes |= {block + (f"gamma_{n}" if new else f"ls{n}.gamma"): (dim,) for n in (1, 2)}
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_dinov3_loads_into_the_preset(tmp_path: Path) -> None:
    network, state = build_segmenter("small", "reg4pru", "eomt"), timm_state("vit_small_patch16_dinov3")
    torch.save(state, tmp_path / "dinov3.pth")
    left = load_backbone(network, tmp_path / "dinov3.pth")
    loaded = network.state_dict()
    assert left == [name for name in loaded if name.startswith(("decoder.", "encoder.policy."))]
    for name, value in state.items():
        assert torch.equal(loaded[f"encoder.{name}" if name.startswith("blocks.") else name], value)
    assert network.norm.eps == network.encoder.blocks[0].norm1.eps == 1e-5
    assert network.encoder.rotary


def test_dinov2_loads_into_the_preset() -> None:
    network, state = build_segmenter("small_dinov2", "dynamicvit", "skip"), timm_state("vit_small_patch14_reg4_dinov2")
    left = load_backbone(network, state | {"mask_token": torch.zeros(1, 384)})
    assert all(name.startswith(("decoder.", "encoder.policy.")) for name in left)
    assert torch.equal(network.encoder.blocks[3].gamma_2, state["blocks.3.ls2.gamma"])
    assert torch.equal(network.encoder.blocks[3].attn.qkv.bias, state["blocks.3.attn.qkv.bias"])
    assert torch.equal(network.pos_embed, state["pos_embed"])
    assert network.norm.eps == network.encoder.blocks[0].norm2.eps == 1e-6
    assert not network.encoder.rotary


def test_every_backbone_fits_its_preset() -> None:
    """By shapes alone, base sizes included."""
    for preset, model in BACKBONES.items():
        with torch.device("meta"):
            own = build_segmenter(preset, "dense", "skip").state_dict()
        p = PRESETS[preset]
        assert (p.dim, p.patch) == (768 if "base" in model else 384, 16 if "dinov3" in model else 14)
        assert p.registers == (4 if "dinov3" in model or "reg4" in model else 0)
        assert own["encoder.blocks.11.attn.qkv.weight"].shape == (3 * p.dim, p.dim)
        assert ("encoder.blocks.0.attn.qkv.bias" in own) == ("pos_embed" in own) == ("dinov2" in model)


def small_dinov2(**changes: Any) -> Segmenter:
    preset = replace(SMALL, patch=14, depth=4, position_grid=6, qkv_bias=True, mask_stride=4, coordinate_scale=None)
    return small_network("dense", "skip", replace(preset, **changes)).eval()


def test_position_of_the_class_token_becomes_part_of_it() -> None:
    network = small_dinov2(registers=0)
    state = timm_state("dinov2", 4, 32, registers=0, grid=6)
    load_backbone(network, state)
    assert torch.equal(network.cls_token, state["cls_token"] + state["pos_embed"][:, :1])
    assert torch.equal(network.pos_embed, state["pos_embed"][:, 1:])


@pytest.mark.parametrize("registers", [0, 4])
def test_positions_of_another_grid_are_resized(registers: int) -> None:
    network, state = small_dinov2(registers=registers), timm_state("dinov2", 4, 32, registers, grid=9)
    load_backbone(network, state)
    assert torch.equal(network.pos_embed, resize_positions(state["pos_embed"][:, -81:], (6, 6)))


def test_wrong_backbones_say_what_does_not_fit(tmp_path: Path) -> None:
    network = small_dinov2()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fitting = timm_state("dinov2", 4, 32, grid=6)
    cases: list[tuple[dict[str, Tensor], str]] = [
        (timm_state("dinov2", 4, 32, registers=0, grid=6), "reg_token is missing"),
        (timm_state("dinov2", 5, 32, grid=6), "encoder.blocks.4.norm1.weight is not in this network"),
        (timm_state("dinov2", 4, 16, grid=6), r"cls_token is \(1, 1, 16\), expected \(1, 1, 32\)"),
        (timm_state("dinov3", 4, 32), "pos_embed is missing"),
        ({**fitting, "pos_embed": torch.zeros(1, 30, 32)}, r"pos_embed is \(1, 30, 32\), expected \(1, 36, 32\)"),
        ({**fitting, "norm.bias": 3}, "norm.bias is not a tensor"),  # type: ignore[dict-item]
    ]
    for state, message in cases:
        with pytest.raises(
            CheckpointError, match=f"the given state dict: backbone of another architecture: .*{message}"
        ):
            load_backbone(network, state)
    torch.save(cases[0][0], tmp_path / "noreg.pth")
    with pytest.raises(CheckpointError, match=r"noreg.pth: .*small_dinov2_noreg vit_small_patch14_dinov2"):
        load_backbone(network, tmp_path / "noreg.pth")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_backbone_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = small_dinov2()
    with pytest.raises(CheckpointError, match=r"none.safetensors: no such file"):
        load_backbone(network, tmp_path / "none.safetensors")
    (tmp_path / "bad.pth").write_text("no")
    with pytest.raises(CheckpointError, match=r"bad.pth: not a"):
        load_backbone(network, tmp_path / "bad.pth")
    (tmp_path / "x.safetensors").write_bytes(b"no")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(CheckpointError, match=r"x.safetensors: reading .safetensors needs .*pip install safetensors"):
        load_backbone(network, tmp_path / "x.safetensors")


def test_safetensors(tmp_path: Path) -> None:
    package = pytest.importorskip("safetensors.torch", reason="optional: pip install safetensors")
    network, state = small_dinov2(), timm_state("dinov2", 4, 32, grid=6)
    package.save_file(state, tmp_path / "model.safetensors")
    load_backbone(network, tmp_path / "model.safetensors")
    assert torch.equal(network.pos_embed, state["pos_embed"])
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match=r"bad.safetensors: not a readable checkpoint"):
        load_backbone(network, tmp_path / "bad.safetensors")


def test_a_release_is_half_as_large_and_says_nearly_the_same(tmp_path: Path) -> None:
    network = small_network("dynamicvit", "skip").eval()
    configuration = {"preset": "tiny"}
    save_checkpoint(tmp_path / "best.pt", {"network": network.state_dict(), "configuration": configuration})
    write_release(tmp_path / "best.pt", tmp_path / "model.pt")
    assert (tmp_path / "model.pt").stat().st_size < 0.7 * (tmp_path / "best.pt").stat().st_size
    assert load_checkpoint(tmp_path / "model.pt")["configuration"] == configuration
    again = load_network(small_network("dynamicvit", "skip"), tmp_path / "model.pt").eval()
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(again.dense()(image), network.dense()(image), atol=2e-2, rtol=2e-2)


def test_a_release_needs_a_configuration(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "weights.pt", {"network": {"a": torch.zeros(1)}})
    with pytest.raises(CheckpointError, match=r"weights\.pt: holds no weights with a configuration"):
        write_release(tmp_path / "weights.pt", tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists()


def test_a_blend_lies_between_both_networks(tmp_path: Path) -> None:
    networks = [small_network("cropr+reg4pru", "skip"), small_network("cropr", "skip")]  # the latter without the route
    with torch.no_grad():
        for network, value in zip(networks, (1.0, 5.0), strict=True):
            for parameter in network.parameters():
                parameter.fill_(value)
    paths = [tmp_path / name for name in ("best.pt", "start.pt", "blended.pt")]
    settings = {"diameter": 512, "by_angle": True, "normalization": "local", "rim": 0.005}
    state = {"network": networks[0].state_dict(), "epoch": 7, "validation_ap": 0.9, "configuration": settings}
    save_checkpoint(paths[0], state)
    save_checkpoint(paths[1], {"network": networks[1].half().state_dict(), "configuration": settings})
    said = CliRunner().invoke(app, ["blend", *map(str, paths), "--share", "0.25"])
    assert said.exit_code == 0, said.output
    found = load_checkpoint(paths[2])
    assert found["blended"] == {"share": 0.25, "start_sha256": sha256(paths[1])}
    assert found["epoch"] == 7
    assert "validation_ap" not in found  # that of other weights
    mixed = load_network(small_network("cropr+reg4pru", "skip"), paths[2])
    assert {value for parameter in mixed.parameters() for value in parameter.unique().tolist()} == {2.0}
    assert all(parameter.dtype == torch.float32 for parameter in mixed.parameters())


def test_what_cannot_be_blended_says_why(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("best.pt", "start.pt", "blended.pt")]
    weights = small_network("cropr", "skip").state_dict()
    save_checkpoint(paths[0], {"network": weights, "configuration": {"diameter": 512}})
    other = small_network("cropr", "eomt").state_dict()
    save_checkpoint(paths[1], {"network": other, "configuration": {"diameter": 512}})
    with pytest.raises(CheckpointError, match=r"start\.pt cannot be blended: .*decoder.* and \d+ more\. Give"):
        blend_checkpoints(*paths)
    save_checkpoint(paths[1], {"network": weights})
    with pytest.raises(CheckpointError, match=r"start\.pt: holds no weights with a configuration"):
        blend_checkpoints(*paths)
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="share must be above 0 and below 1"):
            blend_checkpoints(*paths, share=share)
    assert not paths[2].exists()
    words = ["blend", *map(str, paths), "--share", "2"]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 1
    assert "share must be above 0 and below 1, got 2" in found.output


def test_random_routing_and_the_policy_below_it_share_their_weights(tmp_path: Path) -> None:
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for trained_as, evaluated_as in (("reg4pru", "dynamicvit"), ("dynamicvit", "reg4pru")):
        trained = small_network(trained_as).eval()
        save_checkpoint(tmp_path / "best.pt", {"network": trained.state_dict()})
        other = load_network(small_network(evaluated_as), tmp_path / "best.pt").eval()
        with torch.no_grad():
            assert torch.equal(other(image), trained(image))


def test_an_interrupt_in_the_middle_of_a_write_stays_one(path: Path) -> None:
    """The writer of torch turns it into an error of its own, and a stopped training would end as a failed one."""
    code = """
import signal, sys
import torch
from reg4pru_monai.weights import save_checkpoint

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
state, stopped = {"a": [torch.zeros(50_000) for _ in range(200)]}, 0
for attempt in range(40):
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.002 + 0.0005 * attempt)
        save_checkpoint(sys.argv[1], state)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        stopped += 1
print(stopped)
"""  # in a process of its own: here the interrupt could hit anybody's code
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10
    assert load_checkpoint(path).keys() in (EARLIER.keys(), {"a"})  # whole, whichever it is
