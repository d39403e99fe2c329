"""Every code block of the documentation is run, in the order of the page, in a folder that holds what the page assumes.

Python is run as it stands. Commands of the bundle are first resolved as they stand (file, keys, architecture), then run
with the settings of TINY; so are the `reg4pru` commands. `make` and `mlflow ui` are parsed by their own programs.
"""

import inspect
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import fire
import matplotlib
import monai.bundle
import pytest
import torch
import typer
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.networks.utils import convert_to_onnx
from typer.testing import CliRunner

from conftest import ROOT
from reg4pru_monai import inference
from reg4pru_monai.batch.ray_engine import INSTALL
from reg4pru_monai.cli import app
from runs import TINY, arguments, settings, undisturbed

PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "bundles/**/*.md", "configs/**/*.md")
    for path in ROOT.glob(pattern)
    if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
)
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
NOT_RUN = {"", "text", "json", "yaml", "bibtex", "csv", "console", "mermaid"}


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> Iterator[tuple[int, str, str]]:
    """(line, language, text) of every code block."""
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        yield text.count("\n", 0, found.start()) + 1, found[1], found[2]


def commands(text: str) -> Iterator[list[str]]:
    """The commands of a bash block, comments and line ends taken away."""
    for line in text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_point_to_files(page: Path) -> None:
    outside = ("http://", "https://", "mailto:", "#")
    targets = [t for t in LINK.findall(BLOCK.sub("", page.read_text(encoding="utf-8"))) if not t.startswith(outside)]
    missing = [target for target in targets if not (page.parent / target.split("#")[0]).exists()]
    assert not missing, f"{name_of(page)} links to files that are not there"


@pytest.mark.parametrize("page", [p for p in PAGES if any(True for _ in blocks(p))], ids=name_of)
def test_code_blocks_run(
    page: Path, training: Path, phantom_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(sys, "argv", ["documentation"])
    matplotlib.use("agg")
    home = page.parent.parent if page.is_relative_to(ROOT / "bundles") else ROOT
    for folder in ("bundles", "configs", "models"):
        if (home / folder).is_dir():
            (tmp_path / folder).symlink_to(home / folder)
    reader = Reader(training / "checkpoints" / "best.pt", phantom_set)
    if not inference.CHECKPOINT.is_file():  # the weights of the bundle are published after the code
        monkeypatch.setattr(inference.load_pipeline, "__defaults__", reader.defaults())
    for line, language, text in blocks(page):
        where = f"{name_of(page)}:{line}"
        if language == "python":
            exec(compile("\n" * line + text, where, "exec"), reader.namespace)
        elif language in ("bash", "sh", "shell"):
            for words in commands(text):
                reader.execute(words, where)
        else:
            assert language in NOT_RUN, f"{where}: no rule for running a block of {language!r}"


def shown_commands(text: str) -> Iterator[list[str]]:
    """The commands of a console block that are ours; where there are prompts, all else is output."""
    lines = text.replace("\\\n", " ").splitlines()
    prompted = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    for line in prompted or lines:
        words = shlex.split(line, comments=True) if line.startswith("reg4pru ") else []
        if words and not set(words) & {"|", ">", ";"}:
            yield words[1:]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_that_are_shown_have_their_files_and_options(page: Path) -> None:
    """Blocks of console are not run, for they need data or hours; their files exist, and options of reg4pru parse."""
    programs: Any = typer.main.get_command(app)
    for line, language, text in blocks(page):
        if language != "console":
            continue
        files = re.findall(r"(?<![\w./])((?:configs|bundles|docs)/[\w/.+-]+\.(?:yaml|py))", text)
        missing = [file for file in files if not (ROOT / file).exists()]
        assert not missing, f"{name_of(page)}:{line} names files that are not there"
        for name, *words in shown_commands(text):
            try:
                programs.commands[name].make_context(name, [each.rstrip(";") for each in words])
            except Exception as error:  # of click, which typer brings along under a name of its own
                raise AssertionError(f"{name_of(page)}:{line}: reg4pru {name} {shlex.join(words)}: {error}") from error


class Reader:
    """Does what a page says. checkpoint: stands in for the weights of the bundle; data: for the reader's own data."""

    def __init__(self, checkpoint: Path, data: Path):
        self.checkpoint, self.data = checkpoint, data
        self.namespace: dict[str, Any] = {"__name__": "__main__"}
        self.programs: dict[str, Callable[[list[str], str], None]] = {
            **{"make": self.make, "reg4pru": self.reg4pru, "mlflow": self.mlflow, "torchrun": self.torchrun},
            **{"python": self.python, "git": self.known, "cd": self.known, "pip": self.known, ".": self.known},
        }

    def defaults(self) -> tuple[Any, ...]:
        """Those of load_pipeline, with the stand-in for the weights."""
        return (self.checkpoint, *(inference.load_pipeline.__defaults__ or ())[1:])

    def execute(self, words: list[str], where: str) -> None:
        """Run or check one command; one that there is no rule for is an error of the page or of this test."""
        while "=" in words[0]:  # VARIABLE=value before a command
            words = words[1:]
        program = Path(words[0]).name
        assert program in self.programs, f"{where}: no rule for running {shlex.join(words)!r}"
        self.programs[program](words[1:], where)

    def known(self, words: list[str], where: str) -> None:
        """Of a program that is not ours there is nothing to check."""

    def make(self, words: list[str], where: str) -> None:
        """The target exists."""
        subprocess.run(["make", "--dry-run", *words], cwd=ROOT, check=True, capture_output=True)

    def reg4pru(self, words: list[str], where: str) -> None:
        """Run it."""
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, f"{where}: {result.output}"

    def mlflow(self, words: list[str], where: str) -> None:
        """The options exist."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # mlflow, of its own parts
            from mlflow.cli import cli

        found = cli.get_command(click.Context(cli), words[0])
        assert found is not None, f"{where}: mlflow has no command {words[0]!r}"
        found.make_context(words[0], list(words[1:]))

    def torchrun(self, words: list[str], where: str) -> None:
        """The command behind it resolves; test_bundle runs it on two processes."""
        from torch.distributed.run import get_args_parser

        known = get_args_parser().parse_args(words)
        assert known.module
        self.bundle([known.training_script, *known.training_script_args][1:], where, run=False)

    def python(self, words: list[str], where: str) -> None:
        """A module of MONAI or pytest, or a script that is there."""
        if words[:2] == ["-m", "monai.bundle"]:
            self.bundle(words[2:], where)
        elif words[:2] != ["-m", "pytest"] and words[0] != "-m":
            assert (ROOT / words[0]).is_file(), f"{where}: {words[0]} is not there"

    def bundle(self, words: list[str], where: str, run: bool = True) -> None:
        """Resolve a `run` command with the values it gives, then run it with tiny ones where its data set is there."""
        if words[0] in ("ckpt_export", "onnx_export"):
            return self.export(words)
        assert words[0] == "run", f"{where}: no rule for monai.bundle {words[0]}"
        given = fire.Fire({"run": lambda run_id=None, **rest: rest | {"run_id": run_id}}, command=words)
        files = given.pop("config_file")
        run_id = given.pop("run_id") or "run"
        name = Path(files if isinstance(files, str) else files[0]).stem
        data = given.get("dataset_dir")
        if data == "my_data" and not Path(data).exists():
            shutil.copytree(self.data, data)
        if name != "train" and "checkpoint" not in given and not inference.CHECKPOINT.is_file():
            given["checkpoint"] = str(self.checkpoint)
        with undisturbed():
            found = ConfigWorkflow(files, logging_file=False, run_id=run_id, workflow_type=None, **given)
            assert run_id in found.parser, f"{where}: {name}.yaml has no {run_id!r}"
            if isinstance(files, str):  # more files are for more processes
                found.initialize()
            if run and (
                data is None or all(Path(each).exists() for each in ([data] if isinstance(data, str) else data))
            ):
                tiny = {"logging_file": False, **settings(name, **given), **self.small(name)}
                monai.bundle.run(run_id=run_id, config_file=files, **tiny)

    def export(self, words: list[str]) -> None:
        """Run ckpt_export. onnx_export takes long and has a test of its own: here its values are checked."""
        name, *values = words
        given = fire.Fire({name: lambda **rest: rest}, command=[name, *values])
        if name == "ckpt_export":
            with undisturbed():
                warnings.simplefilter("ignore", torch.jit.TracerWarning)
                monai.bundle.ckpt_export(**given)
        else:
            assert given["converter_kwargs"].keys() <= inspect.signature(convert_to_onnx).parameters.keys()
            assert all(Path(given[key]).exists() for key in ("bundle_root", "config_file", "ckpt_file"))

    def small(self, name: str) -> dict[str, Any]:
        """TINY even where the page gives other values."""
        known = ConfigParser.load_config_file(str(ROOT / f"bundles/fundus_vessel_segmentation/configs/{name}.yaml"))
        return {key: value for key, value in settings(name, diameter=TINY["diameter"]).items() if key in known}


def test_the_reader_sees_comments_lines_and_values() -> None:
    assert list(commands("a --b 'c d' \\\n  --e f  # g\n# h\n\ni\n")) == [["a", "--b", "c d", "--e", "f"], ["i"]]
    assert arguments({"a": 1, "b": [2, 3]}) == ["--a", "1", "--b", "[2, 3]"]


def test_what_a_console_shows_is_told_from_its_output() -> None:
    assert list(shown_commands("$ reg4pru a --b \\\n  c # d\nreg4pru said\n$ ls\n")) == [["a", "--b", "c"]]
    assert list(shown_commands("reg4pru a\n\nreg4pru b 'c d'\n")) == [["a"], ["b", "c d"]]


def test_every_page_is_found() -> None:
    assert {"README.md", "docs/training.md", "CONTRIBUTING.md"} <= set(map(name_of, PAGES))


def test_install_lines_name_no_index_where_the_project_is_not() -> None:
    sources = [*PAGES, *(ROOT / "reg4pru_monai").rglob("*.py")]
    lines = [line for path in sources for line in re.findall(r"pip install[^`\n]*", path.read_text(encoding="utf-8"))]
    assert len(lines) > 10
    assert [line for line in lines if re.search(r"reg4pru-monai(?!\S*\.whl)", line)] == []
    project = (ROOT / "pyproject.toml").read_text()
    assert INSTALL.removeprefix("pip install ") in project  # with the versions that the extra has
