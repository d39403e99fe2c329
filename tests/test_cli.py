from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from reg4pru_monai.cli import app
from reg4pru_monai.fundus.io import read_image
from reg4pru_monai.fundus.phantom import make_phantom


def reg4pru(*arguments: str | Path, code: int = 0) -> str:
    """What a command prints, on one line, without the frame that typer draws around errors."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return " ".join(result.output.replace("│", " ").split())


def test_phantoms_are_written_as_asked(tmp_path: Path) -> None:
    said = reg4pru("phantoms", tmp_path / "new" / "eyes", "--count", "2", "--size", "64x80", "--seed", "5")
    assert said.startswith("2 photographs in ")
    names = sorted(path.name for path in (tmp_path / "new" / "eyes").iterdir())
    assert names == ["photograph_1.png", "photograph_2.png"]
    for number, name in enumerate(names):
        pixels = read_image(tmp_path / "new" / "eyes" / name)
        assert np.array_equal(pixels, make_phantom((64, 80), 5 + number).image)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--size", "64"), "size must be ROWSxCOLUMNS, such as 512x640, got '64'"),
        (("--size", "axb"), "size must be ROWSxCOLUMNS, such as 512x640, got 'axb'"),
        (("--size", "8x8"), "size must be at least 32 pixels"),
        (("--count", "0"), "--count"),
        (("--seed", "-1"), "--seed"),
    ],
)
def test_a_wrong_option_is_named(options: tuple[str, str], message: str, tmp_path: Path) -> None:
    said = reg4pru("phantoms", tmp_path / "eyes", *options, code=2)
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "eyes").exists()


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "File exists" in reg4pru("phantoms", tmp_path / "file", "--size", "32x32", code=2)


def test_the_summary_has_the_table_and_where_to_look(training: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    said = reg4pru("summary", training, "--segmented", "some/where")
    assert said.startswith("AP Dice AUC clDice images/s GFLOPs dense ")
    assert f"Pictures: {training / 'overlays'}" in said
    assert "Segmented: some/where/overlays some/where/masks" in said
    assert said.endswith(f"mlflow ui --backend-store-uri sqlite:///{training.parent / 'mlflow.db'}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert reg4pru("summary", training).endswith("MLflow: http://server:5000")


def test_the_summary_quotes_a_folder_with_a_space(
    training: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "my runs" / "first"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text((training / "metrics.json").read_text())
    assert f"'sqlite:///{tmp_path}/my runs/mlflow.db'" in reg4pru("summary", folder)


def test_a_folder_without_a_result_is_named(tmp_path: Path) -> None:
    said = reg4pru("summary", tmp_path, code=2)
    assert "metrics.json does not exist" in said.replace("metrics. json", "metrics.json")
    (tmp_path / "metrics.json").write_text("{}")
    assert "is no result of a training" in reg4pru("summary", tmp_path, code=2)


def test_without_a_command_the_help_is_shown() -> None:
    assert "phantoms" in reg4pru("--help")
