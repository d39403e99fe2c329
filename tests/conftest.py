import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real photographs beside the project, or a skip that says why."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real photographs not found: {folder} is absent")
    return folder


@pytest.fixture(scope="session")
def cases() -> Path:
    """The folder of inputs that once went wrong, next to the project, or a skip that says why."""
    folder = ROOT.parent / "shared" / "cases"
    if not folder.is_dir():
        pytest.skip(f"cases not found: {folder} is absent")
    return folder


@pytest.fixture(scope="session")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a finished training on phantoms with MLflow and all it adds, started in another folder."""
    from runs import run

    before, folder = Path.cwd(), tmp_path_factory.mktemp("elsewhere")
    uri = os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.chdir(folder)
    try:
        run("train", tracking_uri=None, log_model=True, inspect_images=3)
    finally:
        os.chdir(before)
        if uri:
            os.environ["MLFLOW_TRACKING_URI"] = uri
    return folder / "runs" / "training"


@pytest.fixture(scope="session")
def phantom_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four phantoms to train on, two to test on, not square. Not to be changed: copy it."""
    from reg4pru_monai.fundus.phantom import write_phantoms

    return write_phantoms(tmp_path_factory.mktemp("data") / "phantoms", train=4, test=2, size=(112, 128), seed=0)
