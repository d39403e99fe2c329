"""``reg4pru compare``: thin, no logic of its own."""

from pathlib import Path
from typing import Annotated

import typer

from ..commands import readable


def compare(
    output: Annotated[Path, typer.Option(help="Folder for the table (Markdown, CSV) and the figures.")],
    tracking_uri: Annotated[
        str | None, typer.Option(help="MLflow server or store [default: $MLFLOW_TRACKING_URI, else runs/mlflow.db].")
    ] = None,
    experiment: Annotated[str, typer.Option(help="Experiment to take runs from.")] = "fundus_vessels",
    parent: Annotated[str | None, typer.Option(help="Run id of a sweep: its members, of whatever experiment.")] = None,
    filter_string: Annotated[
        str | None, typer.Option("--filter", help="MLflow search, such as \"params.decoder = 'eomt'\".")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Configuration to compare with [default: the only dense one].")
    ] = None,
    metric: Annotated[str, typer.Option(help="Metric of the test set: ap, dice, cldice, …")] = "ap",
    published: Annotated[
        bool, typer.Option("--published", help="Draw published numbers too, marked; they are never ranked.")
    ] = False,
) -> None:
    """Compare runs: a table, figures, and a ranking where hardware, test set and resolution agree.

    Exit status: 0 done, ranked or not; 1 could not.
    """
    from ..files import check_folder
    from ..tracking_store import resolve_uri
    from .groups import compare
    from .store import ComparisonError
    from .tables import table, write

    with readable(ComparisonError, OSError):
        check_folder(output)
        if "/" in metric or metric.endswith(("_low", "_high")):
            raise ComparisonError(f"--metric {metric}: give the name alone, such as ap, dice or hd95_px")
        uri = resolve_uri(tracking_uri, Path("runs"))
        store, found = compare(uri, experiment, metric, parent, filter_string, baseline)
        typer.echo(table(found))
        written = write(output, found, published)
        for path in written:
            typer.echo(f"written: {path}")
        if found.parent:
            store.keep(found.parent, written, "comparison")
            typer.echo(f"kept in run {found.parent}, artifacts comparison/")
