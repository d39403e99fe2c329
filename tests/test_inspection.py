import re
from base64 import b64decode
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from networks import Recorder, small_network
from reg4pru_monai.fundus.io import FundusReadError
from reg4pru_monai.fundus.phantom import make_phantom
from reg4pru_monai.inference import ARCHITECTURE, UNTRAINED, Pipeline
from reg4pru_monai.inspection import figures as inspection_figures
from reg4pru_monai.inspection import photograph as inspection
from reg4pru_monai.inspection.command import inspect
from reg4pru_monai.inspection.figures import Picture
from reg4pru_monai.inspection.photograph import Inspection, inspect_network, inspect_photograph, stopped_after
from reg4pru_monai.policies import Step
from reg4pru_monai.segmenter import Segmenter, build_segmenter
from reg4pru_monai.transforms import preprocessing
from reg4pru_monai.weights import save_checkpoint
from reg4pru_monai.windows import FundusWindowInferer

DECODERS = ("eomt", "skip")
PICTURES = ["removed", "scores", "reactivated", "probabilities", "blocks"]
EVERYTHING = ["inspect.html", *(f"{name}.png" for name in PICTURES)]


def pipeline(policy: str = "reg4pru", decoder: str = "eomt", **options: Any) -> Pipeline:
    """Untrained, with a window other than the whole image, which an inspection does not use."""
    network = small_network(policy, decoder, **options)
    return Pipeline(network, preprocessing(48, False), FundusWindowInferer(32), torch.device("cpu"))


def photograph() -> np.ndarray:
    return make_phantom((72, 80), seed=3).image


def network_input(made: Pipeline) -> tuple[Tensor, Tensor]:
    item = made.prepare(photograph())
    return item["image"].as_tensor()[None], item["fov"].as_tensor()[None]


def one_picture(found: Inspection) -> list[Picture]:
    """Stands in for drawing, which takes seconds."""
    return [Picture("removed", "title", "text", bytes(found.removed))]


@pytest.fixture(scope="module", params=DECODERS)
def inspected(request: pytest.FixtureRequest) -> tuple[Pipeline, Inspection]:
    made = pipeline("reg4pru", request.param)
    return made, inspect_network(made, photograph())


def test_removed_tokens_are_those_of_the_trace(inspected: tuple[Pipeline, Inspection]) -> None:
    made, found = inspected
    with torch.inference_mode():
        _, trace = made.network.forward_with_trace(*network_input(made))
    assert [stage.block for stage in found.stages] == [1, 3, 5]
    for stage, record in zip(found.stages, trace.stages, strict=True):
        index, keep = record.pool.index[0].numpy(), record.keep[0].numpy()
        assert sorted(np.flatnonzero(stage.removed)) == sorted(index[keep == 0])
        assert sorted(np.flatnonzero(np.isfinite(stage.score))) == sorted(index)
        assert np.array_equal(stage.score.flat[index], record.score[0].numpy())
        assert stage.score[stage.removed].max() <= np.nanmin(np.where(stage.removed, np.nan, stage.score))


def test_every_token_of_the_field_of_view_is_kept_or_removed_once(inspected: tuple[Pipeline, Inspection]) -> None:
    _, found = inspected
    times = np.sum([stage.removed for stage in found.stages], axis=0)
    assert times.max() == 1
    kept = np.isfinite(found.stages[-1].score) & ~found.stages[-1].removed
    assert not (kept & found.removed).any()
    assert np.array_equal(kept | found.removed, found.tokens)
    rows, columns = np.nonzero(found.inside)
    expected = np.zeros_like(found.tokens)
    expected[rows // 4, columns // 4] = True
    assert np.array_equal(found.tokens, expected)


def test_the_bars_count_the_tokens_of_each_block(inspected: tuple[Pipeline, Inspection]) -> None:
    made, found = inspected
    with torch.inference_mode():
        _, lengths = made.network.forward_with_lengths(*network_input(made))
    axes = inspection_figures.Figure().subplots()
    inspection_figures._count(axes, found, inspection_figures.colours(found.stages))
    computed = [round(bar.get_height()) for bar in axes.containers[0]]
    query = 1 if made.network.decoder.query_blocks else 0
    assert computed == [length - 5 - query * (block >= 6) for block, length in enumerate(lengths)]
    for stack in zip(*axes.containers, strict=True):
        assert sum(bar.get_height() for bar in stack) == found.tokens.sum()


@pytest.mark.parametrize("variant", ["dense", "pruned"])
def test_the_last_read_out_is_the_prediction_of_the_whole_image(
    inspected: tuple[Pipeline, Inspection], variant: str
) -> None:
    made, found = inspected
    network = made.network.dense() if variant == "dense" else made.network
    whole = Pipeline(network, made.preprocessing, FundusWindowInferer(None), made.device)
    image, fov = network_input(made)
    with torch.inference_mode():
        expected = whole.inferer(image, network, fov=fov).sigmoid()[0, 0].numpy()
    shown = found.variants[variant]
    assert len(shown.after) == 8
    np.testing.assert_allclose(shown.probability, expected, atol=1e-6)
    assert all(np.abs(shown.probability - each).max() > 1e-4 for each in shown.after[:-1])
    assert np.abs(shown.probability - shown.routed).max() > 1e-4
    assert not shown.routed[~found.inside].any()


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_read_out_is_what_the_decoder_makes_of_the_output_of_the_block(decoder: str) -> None:
    network = small_network("dense", decoder).eval()
    recorder = Recorder(network)
    image = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        network(image)
        outputs = list(recorder.outputs)
        for blocks, output in enumerate(outputs, start=1):
            joined = decoder == "eomt" and blocks > 6
            query = output[:, :1] if joined else network.decoder.query
            tokens = network.norm(output[:, 6 if joined else 5 :]).unflatten(1, (8, 8)).permute(0, 3, 1, 2)
            expected = network.decoder(image, network.norm(query), tokens)
            torch.testing.assert_close(stopped_after(network, blocks)(image), expected)


def test_the_read_outs_of_the_query_blocks_are_those_of_the_deep_supervision() -> None:
    network = small_network("reg4pru", "eomt").eval()
    image = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        _, trace = network.forward_with_trace(image)
        for blocks, expected in zip((6, 7), trace.auxiliary, strict=True):
            torch.testing.assert_close(stopped_after(network, blocks)(image), expected)


def test_reading_out_leaves_the_network_as_it_was() -> None:
    network = small_network()
    before = list(network.encoder.blocks)
    twin = stopped_after(network, 2)
    assert list(network.encoder.blocks) == before
    assert list(twin.encoder.blocks)[:2] == before[:2]
    with pytest.raises(ValueError, match=r"blocks must be in 1\.\.8, got 0"):
        stopped_after(network, 0)


def test_the_same_half_is_drawn_every_time_and_no_random_number_is_used_up() -> None:
    made = pipeline()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = inspect_network(made, photograph())
    assert torch.equal(torch.rand(1), expected)
    second = inspect_network(made, photograph())
    for name in ("dense", "pruned"):
        assert np.array_equal(first.variants[name].routed, second.variants[name].routed)


def test_the_window_is_the_longest_that_training_draws(inspected: tuple[Pipeline, Inspection]) -> None:
    made, found = inspected
    policy = small_network("reg4pru").encoder.policy.train()
    drawn = [window for _ in range(100) if (window := policy.draw(1.0, 8).window)]
    assert found.window == (min(w.start for w in drawn), max(w.end for w in drawn), drawn[0].keep)
    torch.manual_seed(inspection.SEED)
    with torch.inference_mode():
        logits, _ = made.network.forward_with_trace(*network_input(made), Step(window=found.window))
    shown = np.where(found.inside, logits.sigmoid()[0, 0].numpy(), 0)
    np.testing.assert_allclose(found.variants["pruned"].routed, shown, atol=1e-6)


def test_the_photograph_is_at_canonical_scale_and_black_outside(inspected: tuple[Pipeline, Inspection]) -> None:
    _, found = inspected
    assert found.photograph.shape[:2] == found.inside.shape
    assert abs(max(found.inside.shape) - 48) <= 2
    assert not found.photograph[~found.inside].any()
    assert (
        abs(found.photograph[found.inside].mean() - photograph()[make_phantom((72, 80), seed=3).fov].mean() / 255)
        < 0.02
    )


def test_dense_shows_nothing_removed(tmp_path: Path) -> None:
    made = pipeline("dense")
    found = inspect_network(made, photograph())
    assert found.stages == ()
    assert not found.removed.any()
    assert list(found.variants) == ["dense"]
    written = inspect_photograph(made, photograph(), tmp_path)
    assert [path.name for path in written] == ["inspect.html", "removed.png", "probabilities.png", "blocks.png"]


def test_a_keep_rate_of_one_removes_nothing_and_changes_nothing() -> None:
    made = pipeline()
    whole = Pipeline(made.network.with_keep_rate(1.0), made.preprocessing, made.inferer, made.device)
    found = inspect_network(whole, photograph())
    assert len(found.stages) == 3
    assert not found.removed.any()
    np.testing.assert_allclose(found.variants["pruned"].probability, found.variants["dense"].probability, atol=1e-6)
    assert len(inspection_figures.draw(found)) == len(PICTURES)


@pytest.mark.parametrize("options", [{"stages": "per_block"}, {"reactivate": "mask_pred"}, {"stages": "jump1"}])
def test_other_schedules_are_drawn(options: dict[str, Any]) -> None:
    found = inspect_network(pipeline("random", "skip", keep_rate=0.9, **options), photograph())
    assert [picture.name for picture in inspection_figures.draw(found)] == PICTURES
    assert len({tuple(colour) for colour in inspection_figures.colours(found.stages)}) == len(found.stages)


def test_a_picture_shows_removed_tokens_in_their_colour_and_black_outside(
    inspected: tuple[Pipeline, Inspection],
) -> None:
    _, found = inspected
    grey = inspection_figures.painted(found, [])
    assert np.array_equal(grey[..., 0], grey[..., 2])
    stage = found.stages[1]
    shown = inspection_figures.painted(found, [(stage.removed, "#0000ff")])
    coloured = shown[..., 2] > shown[..., 0]
    assert np.array_equal(
        coloured, np.kron(stage.removed, np.ones((4, 4), bool))[: coloured.shape[0], : coloured.shape[1]] & found.inside
    )
    assert not shown[~found.inside].any()


def test_ranks_cut_where_the_stage_does(inspected: tuple[Pipeline, Inspection]) -> None:
    _, found = inspected
    ranks = inspection_figures._ranks(found, found.stages[0])
    assert not ranks[~found.inside].any()
    brightness = ranks.sum(2)
    removed = found.pixels(found.stages[0].removed) & found.inside
    assert brightness[removed].max() <= brightness[found.inside & ~removed].min() + 1e-6


def test_dice_by_hand() -> None:
    one, other = np.array([True, True, False]), np.array([True, False, False])
    assert inspection_figures.dice(one, other) == pytest.approx(2 / 3)
    assert inspection_figures.dice(~one & one, ~one & one) == 1.0


def test_the_files_are_written_and_the_page_holds_the_pictures(tmp_path: Path) -> None:
    name = "<b>&\u202e eye.png"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    written = inspect_photograph(pipeline(), photograph(), tmp_path / "out", name)
    assert [path.relative_to(tmp_path / "out").as_posix() for path in written] == EVERYTHING
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([*EVERYTHING, "mine.txt"])
    page = written[0].read_text(encoding="utf-8")
    assert "&lt;b&gt;&amp;\\u202e eye.png: what the network does" in page
    assert "<b>" not in page
    assert "not cut into windows" in page
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert "http" not in re.sub("http-equiv", "", re.sub(r"base64,[^\"]*", "", page))
    pictures = [b64decode(code) for code in re.findall(r"data:image/png;base64,([^\"]+)", page)]
    assert pictures == [path.read_bytes() for path in written[1:]]
    for picture in pictures:
        with Image.open(BytesIO(picture)) as image:
            assert image.width > 600


def test_nothing_is_replaced_where_one_file_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection_figures, "draw", one_picture)
    written = inspect_photograph(pipeline(), photograph(), tmp_path)
    before = {path: path.read_bytes() for path in written}
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        write(path, content)
        if sum(1 for _ in tmp_path.iterdir()) == 2 * len(written):
            raise OSError(28, "No space left on device")
        return len(content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        inspect_photograph(pipeline("reg4pru", "skip"), photograph(), tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_unreadable_photograph_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "eye.png").write_text("no image")
    with pytest.raises(FundusReadError, match=r"eye\.png"):
        inspect_photograph(pipeline(), tmp_path / "eye.png", tmp_path / "out")
    with pytest.raises(ValueError, match=r"must be \(H, W, 3\) RGB"):
        inspect_photograph(pipeline(), np.zeros((8, 8), np.uint8), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "model.pt"
    settings = {**UNTRAINED, "diameter": 64}
    network: Segmenter = build_segmenter(**{key: settings[key] for key in ARCHITECTURE})
    save_checkpoint(path, {"network": network.state_dict(), "configuration": settings})
    return path


def command(*arguments: str | Path, code: int = 0) -> str:
    app = typer.Typer(rich_markup_mode=None)
    app.command()(inspect)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output.replace("\n", " ")


def test_the_command_writes_where_it_says(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(photograph()).save("eye.png")
    command("eye.png", "--checkpoint", checkpoint)
    assert sorted(path.name for path in Path("inspection/eye").iterdir()) == sorted(EVERYTHING)
    said = command("eye.png", "--checkpoint", checkpoint, "--output", "else where", "--keep-rate", "1.0")
    assert said.count("written: ") == len(EVERYTHING)
    assert Path("else where/inspect.html").is_file()
    assert Path("else where/removed.png").read_bytes() != Path("inspection/eye/removed.png").read_bytes()


def test_the_command_names_what_is_wrong(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(photograph()).save("eye.png")
    Path("broken.png").write_text("no image")
    Path("file").write_text("")
    assert "error: none.pt: no such checkpoint" in command("eye.png", "--checkpoint", "none.pt", code=1)
    assert "broken.png" in command("broken.png", "--checkpoint", checkpoint, code=1)
    assert "lost.png" in command("lost.png", "--checkpoint", checkpoint, code=1)
    assert "keep_rate must be in (0, 1]" in command("eye.png", "--checkpoint", checkpoint, "--keep-rate", "2", code=1)
    monkeypatch.setattr(inspection_figures, "draw", one_picture)
    said = command("eye.png", "--checkpoint", checkpoint, "--output", "file", code=1)
    assert "File exists: 'file'" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.png", "eye.png", "file"]
