from pathlib import Path

import pytest
import yaml
from monai.bundle import ConfigParser

from conftest import ROOT
from reg4pru_monai.networks import build_network
from reg4pru_monai.policies import POLICIES

OVERLAYS = sorted(path for kind in ("data", "models", "policies") for path in (ROOT / "configs" / kind).glob("*.yaml"))
TRAIN = ROOT / "bundles" / "fundus_vessel_segmentation" / "configs" / "train.yaml"


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_an_overlay_says_only_what_differs(path: Path) -> None:
    overlay, known = yaml.safe_load(path.read_text()), ConfigParser.load_config_file(str(TRAIN))
    assert overlay.keys() <= known.keys()
    assert len(path.read_text().splitlines()) < 10
    network = {key: overlay[key] for key in ("preset", "policy", "decoder") if key in overlay}
    assert len(list(build_network(**network).parameters())) > 0


def test_every_policy_has_its_overlay() -> None:
    files = (ROOT / "configs" / "policies").glob("*.yaml")
    assert {yaml.safe_load(path.read_text())["policy"] for path in files} == set(POLICIES)
