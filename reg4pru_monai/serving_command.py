"""`reg4pru register` and `reg4pru tracking sync`: thin, no logic of their own."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from .commands import readable

tracking = typer.Typer(help="The journals of trainings, and MLflow.", no_args_is_help=True, rich_markup_mode=None)

TrackingUri = Annotated[
    str | None,
    typer.Option(
        help="MLflow server or store [default: $MLFLOW_TRACKING_URI, else mlflow.db beside the training or its sweep]."
    ),
]


def register(
    checkpoint: Annotated[Path, typer.Argument(help="Weights, such as checkpoints/best.pt of a training.")],
    name: Annotated[str, typer.Option(help="Name of the registered model; made where it does not exist.")],
    alias: Annotated[str | None, typer.Option(help="Alias to move to this version, such as champion.")] = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Put a trained network into the MLflow model registry, ready to be loaded and served."""
    from mlflow.exceptions import MlflowException

    from . import serving
    from .tracking_store import masked
    from .weights import CheckpointError

    with readable(CheckpointError, MlflowException, ValueError, OSError):
        made = serving.register(checkpoint, name, alias, tracking_uri)
    uri, model = masked(made.logged.tracking_uri), made.model_uri
    typer.echo(
        f"{made.name} version {made.version}{f' ({made.alias})' if made.alias else ''}, run {made.logged.run_id}\n"
        f"load:  mlflow.set_tracking_uri({uri!r}); mlflow.pyfunc.load_model({model!r})\n"
        f"serve: MLFLOW_TRACKING_URI={shlex.quote(uri)} "
        f"mlflow models serve --model-uri {shlex.quote(model)} --env-manager local"
    )


@tracking.callback()
def _group() -> None:
    """The journals of trainings, and MLflow."""


@tracking.command()
def sync(
    folders: Annotated[list[Path], typer.Argument(metavar="OUTPUT_DIR...", help="Output folders of trainings.")],
    tracking_uri: TrackingUri = None,
) -> None:
    """Send what MLflow is missing of trainings that have ended. Sending twice is harmless.

    Exit status: 0 all is there, 1 something is not.
    """
    from .tracking_store import masked, resolve_uri, store_folder

    problems = 0
    for folder in folders:
        uri = resolve_uri(tracking_uri, store_folder(folder))
        problem = _send(folder, uri)
        text = f"error: {folder}: {problem}" if problem else f"{folder}: complete in {uri}"
        typer.echo(masked(text), err=bool(problem))
        problems += bool(problem)
    if problems:
        raise typer.Exit(1)


def _send(folder: Path, uri: str) -> str:
    """Send a journal; return what went wrong, empty if nothing did."""
    from .tracking import OFF, send_journal
    from .tracking_store import JOURNAL_NAME, RunStore, calm, reason

    if uri == OFF:
        return f'the tracking URI is "{OFF}": give --tracking-uri URI of a server or store'
    if not (folder / JOURNAL_NAME).is_file():
        return f"has no {JOURNAL_NAME}; give the output folder of a training"
    try:
        with calm():
            RunStore(uri, "").probe()
    except Exception as error:
        return f"MLflow at {uri} cannot be used ({reason(error)}); the journal keeps all, try again when it is back"
    try:
        complete = send_journal(folder, uri)
    except ValueError as error:
        return str(error)
    return "" if complete else f"not all of it arrived in {uri} (see above); the journal keeps all, try again"
