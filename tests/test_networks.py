"""MONAI's U-Nets in the place of the transformer: built, trained, evaluated, and where they do not fit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from monai.networks.nets import BasicUNet, DynUNet
from typer.testing import CliRunner

from conftest import ROOT
from reg4pru_monai.cli import app
from reg4pru_monai.fundus.io import read_mask
from reg4pru_monai.fundus.phantom import write_phantoms
from reg4pru_monai.inference import load_pipeline
from reg4pru_monai.losses import TrainingStep
from reg4pru_monai.networks import UNetSegmenter, build_network
from reg4pru_monai.policies.dense import Dense
from reg4pru_monai.segmenter import Segmenter
from reg4pru_monai.tracking_store import read_journal
from reg4pru_monai.training import build_average, build_optimizer
from reg4pru_monai.weights import load_checkpoint
from runs import failure, run

SETTINGS = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "configs" / "models").glob("*_unet.yaml")}
ARCHITECTURES = [{k: each[k] for k in ("preset", "policy", "decoder")} for each in SETTINGS.values()]


def u_net(preset: str = "BasicUNet") -> UNetSegmenter:
    torch.manual_seed(0)
    network = build_network(preset, "dense", "none")
    assert isinstance(network, UNetSegmenter)
    return network.eval()


@pytest.fixture(scope="module")
def cameras(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two data sets of phantoms, of other sizes."""
    folder = tmp_path_factory.mktemp("cameras")
    small = write_phantoms(folder / "north", train=4, test=2, size=(112, 128), seed=0)
    large = write_phantoms(folder / "south", train=4, test=1, size=(160, 160), seed=50)
    return [str(small), str(large)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, cameras: list[str]) -> Path:
    """The output folder of a BasicUNet trained for a few seconds on both."""
    output = tmp_path_factory.mktemp("unet") / "training"
    more: dict[str, Any] = {
        "max_epochs": 8,
        "val_interval": 8,
        "crops_per_image": 2,
        "batch_size": 4,
        "warmup_steps": 1,
    }
    more |= {"dataset_dir": cameras, "output_dir": str(output), "learning_rate": 5e-3, "ema_decay": 0.8}
    run("train", **SETTINGS["basic_unet"], **more)
    return output


# --- the network ---


def test_the_preset_names_the_network() -> None:
    assert [type(build_network(**each).decoder) for each in ARCHITECTURES] in (
        [BasicUNet, DynUNet],
        [DynUNet, BasicUNet],
    )
    assert isinstance(build_network("tiny"), Segmenter)


@pytest.mark.parametrize(("preset", "millions"), [("BasicUNet", 2.0), ("DynUNet", 20.6)])
def test_the_sizes_that_the_configurations_state(preset: str, millions: float) -> None:
    with torch.device("meta"):
        network = build_network(preset, "dense", "none")
    assert sum(each.numel() for each in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    assert f"{millions} million parameters" in next(
        path.read_text() for path in (ROOT / "configs" / "models").glob("*_unet.yaml") if preset in path.read_text()
    )


def test_logits_are_those_of_the_u_net_at_any_size() -> None:
    network, image = u_net(), torch.randn(1, 3, 40, 70)
    with torch.inference_mode():
        whole = network.network(torch.nn.functional.pad(image, (0, 26, 0, 24)))
        logits, trace = network.forward_with_trace(image, torch.ones(1, 1, 40, 70), network.draw(0.5))
        assert torch.equal(logits, whole[..., :40, :70])
        assert torch.equal(logits, network(image))
        assert torch.equal(logits, network.forward_with_lengths(image)[0])
    assert (trace.grid, trace.patch, trace.lengths, trace.stages, trace.auxiliary) == ((40, 70), 1, (2800,), (), ())
    assert network.dense() is network


def test_a_dyn_unet_learns_by_the_same_step() -> None:
    """Two crops by heart, with the loss of the transformers; every parameter has its gradient."""
    network = u_net("DynUNet").train()
    step, optimizer, average = TrainingStep(network), build_optimizer(network, 1e-3), build_average(network)
    torch.manual_seed(1)
    image, label = torch.randn(2, 3, 32, 32), torch.zeros(2, 1, 32, 32)
    label[..., 10:14] = 1
    image[:, 1] += 2 * label[:, 0]
    losses = []
    for _ in range(8):
        terms = step(image, label, torch.ones(2, 1, 32, 32), 0.5)
        assert list(terms) == ["segmentation"]
        optimizer.zero_grad()
        terms["segmentation"].backward()
        assert all(each.grad is not None for each in network.parameters())
        optimizer.step()
        average.update_parameters(network)
        losses.append(terms["segmentation"].item())
    assert losses[-1] < 0.6 * losses[0]
    average.module.eval()
    assert torch.isfinite(average.module(image)).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "BasicUnet"}, "preset must be one of tiny, .*, BasicUNet, DynUNet, got 'BasicUnet'"),
        (
            {"preset": "BasicUNet"},
            "give policy dense and decoder none, as configs/models does, got 'reg4pru' and 'skip'",
        ),
        ({"policy_options": {"ramp": 0.1}}, "policy_options belongs to transformers; take it out for BasicUNet"),
        ({"masked_attention": 0.5}, "masked_attention belongs to transformers"),
    ],
)
def test_a_setting_that_does_not_fit_is_named(settings: dict[str, Any], message: str) -> None:
    if "preset" not in settings:
        settings = {"preset": "BasicUNet", "policy": "dense", "decoder": "none"} | settings
    with pytest.raises(ValueError, match=message):
        build_network(**settings)


def test_nothing_can_be_pruned() -> None:
    message = "BasicUNet has no tokens to prune; leave out policy and keep_rate"
    with pytest.raises(ValueError, match=message):
        u_net().with_keep_rate(0.5)
    with pytest.raises(ValueError, match=message):
        u_net().with_policy(Dense())


def test_a_backbone_is_of_transformers(tmp_path: Path) -> None:
    error = failure("train", **SETTINGS["basic_unet"], backbone="timm.pt", output_dir=str(tmp_path / "out"))
    assert "backbone belongs to transformers; take it out for BasicUNet" in str(error)


# --- the bundle ---


def test_training_learns_and_is_evaluated_dense_only(trained: Path) -> None:
    records = [record["metrics"] for record in read_journal(trained) if record["kind"] == "metrics"]
    losses = [each["train/loss"] for each in records if "train/loss" in each]
    assert len(losses) == 8
    assert losses[-1] < 0.8 * losses[0]
    result = json.loads((trained / "metrics.json").read_text())
    assert result["parameters"] == 1979009
    assert result["dense/auc"] > 0.55  # after 24 steps
    assert not [name for name in result if name.startswith("pruned") or name == "efficiency"]
    final = next(each for each in records if "test/dense/ap" in each)
    assert final["test/dense/dataset/north/ap"] == pytest.approx(result["dense/dataset/north/ap"])
    assert "test/pruned/ap" not in final


def test_each_data_set_has_its_own_metrics(trained: Path, cameras: list[str], tmp_path: Path) -> None:
    """The same as evaluating on one of them alone, which is how a network is tested on a camera it never saw."""
    result = json.loads((trained / "metrics.json").read_text())
    assert (result["dataset/north/images"], result["dataset/south/images"]) == (2, 1)
    checkpoint = str(trained / "checkpoints" / "best.pt")
    run("evaluate", dataset_dir=cameras[0], checkpoint=checkpoint, output_dir=str(tmp_path / "alone"))
    alone = json.loads((tmp_path / "alone" / "metrics.json").read_text())
    for name in ("ap", "ap_low", "ap_high", "dice", "auc", "cldice", "ece"):
        assert result[f"dense/dataset/north/{name}"] == pytest.approx(alone[f"dense/{name}"], abs=1e-5)
    assert not [name for name in alone if "dataset/" in name]
    assert result["dense/dataset/south/ap_low"] is None  # one subject


def test_the_checkpoint_says_what_it_is_and_segments(trained: Path, cameras: list[str], tmp_path: Path) -> None:
    checkpoint = trained / "checkpoints" / "best.pt"
    assert load_checkpoint(checkpoint)["configuration"]["preset"] == "BasicUNet"
    photograph = sorted((Path(cameras[0]) / "images").iterdir())[-1]
    found = CliRunner().invoke(
        app, ["segment", str(photograph), "--output", str(tmp_path), "--checkpoint", str(checkpoint)]
    )
    assert found.exit_code == 0, found.output
    (mask,) = (tmp_path / "masks").glob("*.png")
    assert (read_mask(mask) == load_pipeline(checkpoint)(photograph).mask()).all()
    rows = (tmp_path / "results.csv").read_text().splitlines()
    share = dict(zip(rows[0].split(","), rows[1].split(","), strict=True))["tokens_computed_fraction"]
    assert float(share) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["inspect", "PHOTO", "--checkpoint", "BEST"],
            "inspect is for transformers; the checkpoint is of MONAI's BasicUNet",
        ),
        (["export", "BEST", "unet.pt2"], "export is for transformers"),
        (["segment", "PHOTO", "--output", "OUT", "--checkpoint", "BEST", "--keep-rate", "0.5"], "no tokens to prune"),
    ],
)
def test_what_a_u_net_cannot_do_is_said(
    words: list[str], message: str, trained: Path, cameras: list[str], tmp_path: Path
) -> None:
    names = {
        "PHOTO": str(next((Path(cameras[0]) / "images").iterdir())),
        "BEST": str(trained / "checkpoints" / "best.pt"),
        "OUT": str(tmp_path / "out"),
    }
    found = CliRunner().invoke(app, [names.get(word, word) for word in words])
    assert found.exit_code != 0
    assert message in " ".join(found.output.split())
    assert "Traceback" not in found.output
