"""A pipeline and photographs small enough to segment dozens of them in a test."""

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any, NamedTuple

import torch

from networks import small_network
from reg4pru_monai.batch import Summary, segment_photographs, settings_of
from reg4pru_monai.batch.inputs import Item
from reg4pru_monai.batch.journal import Record, journals, read_lines
from reg4pru_monai.batch.status import ShardStatus, read_status
from reg4pru_monai.batch.work import Prepared, Work
from reg4pru_monai.fundus.phantom import make_phantom
from reg4pru_monai.inference import Pipeline
from reg4pru_monai.plots import save_picture
from reg4pru_monai.transforms import preprocessing
from reg4pru_monai.windows import FundusWindowInferer


def small_pipeline() -> Pipeline:
    """Untrained; its probabilities differ from pixel to pixel, and about half of them are above one half."""
    inferer = FundusWindowInferer(32, batch_size=4)
    network = small_network("reg4pru", "skip").eval()
    with torch.no_grad():
        network.decoder.logit.weight.mul_(20.0)  # type: ignore[union-attr, operator]
        network.decoder.logit.bias.copy_(-network(torch.randn(1, 3, 64, 64)).median())  # type: ignore[union-attr]
    return Pipeline(network, preprocessing(64, False), inferer, torch.device("cpu"))


def write_photographs(folder: Path, count: int, size: int = 72) -> Path:
    """photograph_00.png and on."""
    for number in range(count):
        save_picture(folder / f"photograph_{number:02}.png", make_phantom((size, size + 8), seed=number).image)
    return folder


def segment(inputs: Any, output: Path, choices: dict[str, Any] | None = None, **how: Any) -> Summary:
    """Segment with the small pipeline."""
    pipeline = how.pop("pipeline", None) or small_pipeline()
    given = [inputs] if isinstance(inputs, str | Path) else inputs
    return segment_photographs(given, output, pipeline, settings_of(pipeline, **(choices or {})), **how)


def segment_in_process(folder: str, output: str, how: dict[str, Any]) -> None:
    """For processes of tests: ends with the exit status of the run. how["deadly"]: a file that kills the process."""
    torch.set_num_threads(1)
    deadly, prepare = how.pop("deadly", None), Work.prepare

    def prepared(self: Work, item: Item) -> Prepared:
        if item.path == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return prepare(self, item)

    Work.prepare = prepared  # type: ignore[method-assign]
    os._exit(segment(folder, Path(output), **how).exit_status)


def table(output: Path, name: str = "results.csv") -> list[dict[str, str]]:
    """The rows of a table."""
    with open(output / name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def journal_lines(output: Path) -> list[dict[str, Any]]:
    """All lines of all journals, the oldest first."""
    paths = sorted((output / ".reg4pru" / "journal").iterdir())
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def comparable(output: Path) -> tuple[dict[str, bytes], list[dict[str, str]]]:
    """All pictures, and the table without the times."""
    pictures = {
        path.relative_to(output).as_posix(): path.read_bytes()
        for folder in ("masks", "overlays")
        for path in (output / folder).rglob("*")
        if path.is_file()
    }
    return pictures, [{key: value for key, value in row.items() if key != "seconds"} for row in table(output)]


def computed(output: Path) -> list[str]:
    """The name of every result that was ever computed, as often as it was."""
    return [
        line.record.name
        for path in journals(output)
        for line in read_lines(path)
        if line.record is not None and line.record.status == "done"
    ]


class Seen(NamedTuple):
    """What the status of an output folder says, with the names behind its counts."""

    listed: int
    done: int
    failures: list[Record]
    missing: list[str]
    shards: list[ShardStatus]


def seen(output: Path) -> Seen:
    with read_status(output) as status:
        failures, missing = list(status.which.failures()), list(status.which.missing())
        assert (status.failed, status.missing) == (len(failures), len(missing))
        return Seen(status.listed, status.done, failures, missing, status.shards)
