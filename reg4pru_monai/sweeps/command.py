"""``reg4pru sweep``: thin, no logic of its own."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ..commands import readable


def sweep(
    experiment: Annotated[
        Path, typer.Argument(help="Experiment file, or the name of a shipped one, such as policies.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[-- --KEY VALUE ...]", help="Settings of all members.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds with commas, such as 42,43,44 [default: the file's].")] = "",
    jobs: Annotated[int, typer.Option(min=1, help="Members trained at once; they share the threads.")] = 1,
    dataset_dir: Annotated[
        list[Path] | None, typer.Option(help="Data set; give it again for several [default: phantoms].")
    ] = None,
    output_dir: Annotated[Path, typer.Option(help="Folder for the experiment's own folder.")] = Path("runs"),
    tracking_uri: Annotated[
        str | None,
        typer.Option(help="MLflow server or store [default: $MLFLOW_TRACKING_URI, else mlflow.db in --output-dir]."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")] = False,
) -> None:
    """Train every member of an experiment under one MLflow run; the same command again goes on where it ended.

    Exit status: 0 all finished, 1 some failed or a setting is wrong, 130 or 143 when stopped.
    """
    from ..fundus.datasets import DatasetError
    from .experiments import check_seeds, read_experiment
    from .plan import parse_overrides, plan, tracking_uris
    from .results import exit_status, summary, sync_command
    from .run import Sweep

    with readable(ValueError, DatasetError, OSError):
        found = read_experiment(experiment)
        if seeds:
            numbers = [int(part) if part.strip().isdigit() else part for part in seeds.split(",")]
            found = replace(found, seeds=check_seeds(numbers, "--seeds"))
        asked, written = tracking_uris(tracking_uri, output_dir)
        planned = plan(found, output_dir, dataset_dir or (), written, parse_overrides(overrides or ()))
    runner = Sweep(found, planned, asked, jobs, typer.echo)
    if dry_run:
        typer.echo(runner.preview())
        return
    with readable(OSError):
        results = runner.run()
    others = f" ({runner.earlier_rows} more of earlier calls)" if runner.earlier_rows else ""
    typer.echo(f"\n{summary(results)}\n\nTable of all members{others}: {runner.table}")
    if runner.missing:
        typer.echo(
            f"\nMLflow at {asked} has not taken everything. When it can be used, this sends what is missing:\n"
            f"{sync_command(runner.missing, written)}\n"
            "The same sweep again then puts all under one parent run, and trains nothing twice that has finished.",
            err=True,
        )
    raise typer.Exit(exit_status(results, runner.signals))
