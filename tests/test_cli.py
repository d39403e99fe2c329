import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from reg4pru_monai import benchmark_variants
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


TINY = ("benchmark", "--presets", "tiny", "--sizes", "64", "--device", "cpu", "--repeats", "2", "--warmup", "0")


def test_the_benchmark_prints_and_writes(tmp_path: Path) -> None:
    (tmp_path / "ap.json").write_text('{"cropr@0.6": 0.8, "dense": 0.81}')
    options = ("--policies", "cropr", "--keep-rates", "0.6,0.4", "--decoders", "skip,eomt", "--stages", "1,4")
    more = ("--reactivate", "7", "--fov", "--peers", "BasicUNet", "--ap", tmp_path / "ap.json", "--threads", "1")
    said = reg4pru(*TINY, *options, *more, "--output", tmp_path / "new" / "out")
    assert said.startswith("random weights, round field of view")
    for setting in ("tiny, skip, 64 x 64 px, batch 1, cpu, float32, not compiled", "tiny, eomt, 64 x 64 px"):
        assert setting in said
    assert "published, not measured here" in said
    folder = tmp_path / "new" / "out"
    assert sorted(path.name for path in folder.iterdir()) == ["benchmark.csv", "benchmark.json", "benchmark.png"]
    found = json.loads((folder / "benchmark.json").read_text())
    assert [(row["network"], row["keep_rate"], row["ap"]) for row in found["rows"]] == [
        *2 * [("dense", None, 0.81), ("cropr", 0.6, 0.8), ("cropr", 0.4, None)],
        ("BasicUNet", None, None),
    ]
    assert {"stages": [1, 4], "reactivate": 7, "fov": True, "threads": 1, "warmup": 0}.items() <= found["plan"].items()
    assert found["environment"]["threads"] == 1


def test_the_benchmark_takes_named_schedules_and_compiles(tmp_path: Path) -> None:
    options = ("--policies", "random", "--keep-rates", "0.9", "--stages", "per_block", "--reactivate", "mask_pred")
    with torch.compiler.set_stance("force_eager"):
        reg4pru(*TINY, *options, "--peers", "none", "--compiled", "both", "--output", tmp_path)
    found = json.loads((tmp_path / "benchmark.json").read_text())
    assert [(row["network"], row["compiled"]) for row in found["rows"]] == [
        *[("dense", False), ("random", False)],
        *[("dense", True), ("random", True)],
    ]
    assert (found["plan"]["stages"], found["plan"]["reactivate"]) == ("per_block", "mask_pred")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--policies", "fast"), "policy must be one of dense"),
        (("--keep-rates", "0.7,half"), "--keep-rates must be numbers with commas between, got '0.7,half'"),
        (("--sizes", "512x512"), "--sizes must be numbers with commas between, got '512x512'"),
        (("--batch-sizes", "0.5"), "--batch-sizes must be numbers"),
        (("--stages", "2,x"), "--stages must be numbers"),
        (("--compiled", "maybe"), "--compiled must be no, yes or both, got 'maybe'"),
        (("--dtypes", "int8"), "dtypes must be some of float32"),
        (("--peers", "UNet"), "peers must be all, none or some of BasicUNet"),
        (("--sizes", ","), "sizes must name at least one"),
        (("--repeats", "1"), "repeats must be at least 2, got 1"),
        (("--ap", "lost.json"), "lost.json"),
        (("--checkpoint", "lost.pt"), "leave them out"),
    ],
)
def test_a_wrong_option_of_the_benchmark_is_named(options: tuple[str, str], message: str) -> None:
    said = reg4pru(*TINY, *options, code=2)
    assert message in said
    assert "Traceback" not in said


def test_a_failed_benchmark_leaves_the_earlier_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "benchmark.json").write_text("earlier")
    monkeypatch.setattr(benchmark_variants, "TOLERANCE", -1.0)
    said = reg4pru(*TINY, "--peers", "none", "--output", tmp_path, code=1)
    assert "error: dense (tiny, skip, 64 x 64 px, batch 1, cpu, float32, not compiled):" in said
    assert [path.name for path in tmp_path.iterdir()] == ["benchmark.json"]
    assert (tmp_path / "benchmark.json").read_text() == "earlier"


def test_without_a_command_the_help_is_shown() -> None:
    assert "phantoms" in reg4pru("--help")
