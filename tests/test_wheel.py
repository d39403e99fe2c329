"""The wheel alone, away from the repository: read-only, without a home folder, under a user id that has no name."""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

from conftest import ROOT
from reg4pru_monai import startup
from reg4pru_monai.fundus.phantom import make_phantom
from reg4pru_monai.plots import save_picture

PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")

# All in one process, because every import of MONAI takes seconds.
PROGRAM = """
import os, pwd, sys
from pathlib import Path
def nameless(user_id):
    raise KeyError(user_id)
pwd.getpwuid = nameless
import reg4pru_monai
site, out = Path(sys.argv[1]), Path(sys.argv[2])
assert Path(reg4pru_monai.__file__).is_relative_to(site), reg4pru_monai.__file__
assert not {"torch", "monai", "numpy"} & sys.modules.keys()
import monai.bundle
from typer.testing import CliRunner
from reg4pru_monai import POLICIES, Pipeline, build_segmenter, load_pipeline
from reg4pru_monai.cli import app
from reg4pru_monai.released import BUNDLE

def reg4pru(*words):
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, (words, result.output, result.exception)
    return result.output

assert BUNDLE.is_relative_to(site) and reg4pru("bundle").strip() == str(BUNDLE)
assert isinstance(load_pipeline(device="cpu"), Pipeline)
reg4pru("segment", "photo.png", "--output", str(out / "segmented"))
mask = (out / "segmented" / "masks" / "photo.png.png").read_bytes()
planned = reg4pru("sweep", "policies", "--dry-run", "--output-dir", str(out / "runs"))
assert f"{site}/reg4pru_monai/configs/models/eomt.yaml" in planned
monai.bundle.run(config_file=str(BUNDLE / "configs" / "inference.yaml"), dataset_dir="photo.png",
    output_dir=str(out / "bundle"), device="cpu")
assert (out / "bundle" / "masks" / "photo.png.png").read_bytes() == mask
assert os.environ["XDG_CACHE_HOME"].startswith(os.environ["TMPDIR"]), os.environ["XDG_CACHE_HOME"]
assert "skan" not in sys.modules and "numba" not in sys.modules
"""


def test_the_wheel_works_alone(tmp_path: Path) -> None:
    built, site, photographs, out = (tmp_path / name for name in ("built", "site", "photographs", "out"))
    subprocess.run(
        [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(built), str(ROOT)], check=True
    )
    (wheel,) = built.iterdir()
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"reg4pru_monai"}
    assert wheel.stat().st_size < 10e6
    subprocess.run([*PIP, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    save_picture(photographs / "photo.png", make_phantom((150, 160), seed=1).image)
    out.mkdir()
    alone = {key: value for key, value in os.environ.items() if key not in ("LOGNAME", "USER", "LNAME", "USERNAME")}
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR", "MLFLOW_TRACKING_URI"):
        alone.pop(name, None)
    without = {"HOME": "/proc/nohome", "PYTHONDONTWRITEBYTECODE": "1"}
    installed = set(site.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(site), str(out)],
        cwd=photographs,
        env={**alone, **without, "PYTHONPATH": str(site), "TMPDIR": str(out)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Matplotlib created a temporary" not in done.stderr
    assert set(site.rglob("*")) == installed


def test_caches_go_to_no_folder_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("LOGNAME", "eve")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", "/mine")
    startup.adapt_environment()
    assert "XDG_CACHE_HOME" not in os.environ  # with a home folder nothing changes
    monkeypatch.setenv("HOME", "/proc/nohome")
    startup.adapt_environment()
    assert os.environ["XDG_CACHE_HOME"] == str(tmp_path / "reg4pru-eve")
    assert (tmp_path / "reg4pru-eve").stat().st_mode & 0o777 == 0o700
    assert os.environ["XDG_CONFIG_HOME"] == "/mine"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    startup.adapt_environment()
    assert "XDG_CACHE_HOME" not in os.environ
