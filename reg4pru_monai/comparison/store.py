"""Reading an MLflow store: errors that say what is wrong and what there is instead."""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..tracking_store import RunStore, calm, masked, reason

PARENT = "mlflow.parentRunId"  # tag of a child run
MEMBER_OF = "member_of."  # and the id of a parent: tag of a run that a sweep found already done, with another parent


class ComparisonError(Exception):
    """A comparison that cannot be made; the message says why and what to do."""


class Store:
    """An MLflow store that exists. Raises ComparisonError where it cannot be read."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        with self._readable():
            _check_there(uri)
            from mlflow.tracking import MlflowClient

            self._client = MlflowClient(tracking_uri=uri)

    def __str__(self) -> str:
        """The URI without a password."""
        return masked(self.uri)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            with calm():
                yield
        except ComparisonError:
            raise
        except Exception as error:  # mlflow, its database layer and its HTTP client have no common base
            raise ComparisonError(f"MLflow at {self} cannot be used ({reason(error)})") from None

    def search(self, experiment: str | None, parent: str | None, filter_string: str | None) -> tuple[str, list[Any]]:
        """Name of the experiment, and its runs that match, oldest first.

        With a parent its experiment is named, and runs of all experiments can match: a sweep takes up a training that
        was finished in another one.
        """
        with self._readable():
            identities, name = self._of_parent(parent) if parent else self._of_name(experiment)
            own = (f"tags.{PARENT} = '{parent}'", f"tags.`{MEMBER_OF}{parent}` LIKE '%'") if parent else ("",)
            try:
                filters = [" and ".join(part for part in (each, filter_string) if part) for each in own]
                found = {run.info.run_id: run for each in filters for run in self._runs(identities, each)}
                return name, sorted(found.values(), key=lambda run: int(run.info.start_time))
            except Exception as error:
                if getattr(error, "error_code", "") != "INVALID_PARAMETER_VALUE":
                    raise
                raise ComparisonError(
                    f"MLflow does not understand --filter {filter_string!r} ({reason(error)}); "
                    "write it such as \"params.decoder = 'eomt'\""
                ) from None

    def _of_name(self, name: str | None) -> tuple[list[str], str]:
        found = self._client.get_experiment_by_name(str(name))
        if found is None:
            there = ", ".join(sorted(each.name for each in self._experiments()))
            raise ComparisonError(f"{self} has no experiment {name!r}; there are: {there}")
        return [str(found.experiment_id)], str(found.name)

    def _of_parent(self, run_id: str) -> tuple[list[str], str]:
        from mlflow.exceptions import MlflowException

        try:
            identity = self._client.get_run(run_id).info.experiment_id
        except MlflowException as error:
            raise ComparisonError(
                f"{self} has no run {run_id!r} for --parent ({reason(error)}); "
                "give the run id that reg4pru sweep printed"
            ) from None
        name = str(self._client.get_experiment(identity).name)
        return [str(each.experiment_id) for each in self._experiments()], name

    def _experiments(self) -> list[Any]:
        return _all_pages(lambda token: self._client.search_experiments(page_token=token))

    def _runs(self, experiments: list[str], filter_string: str) -> list[Any]:
        return _all_pages(lambda token: self._client.search_runs(experiments, filter_string, page_token=token))

    def tags(self, run_id: str) -> dict[str, str]:
        """The tags of a run."""
        with self._readable():
            return dict(self._client.get_run(run_id).data.tags)

    def table(self, run_id: str, path: str) -> list[dict[str, str]]:
        """The rows of a CSV file among the artifacts of a run; empty where there is none."""
        with self._artifact(run_id, path) as file:
            return list(csv.DictReader(file.read_text(encoding="utf-8").splitlines())) if file else []

    def values(self, run_id: str, path: str) -> dict[str, Any]:
        """The JSON object in a file among the artifacts of a run; empty where there is none."""
        with self._artifact(run_id, path) as file:
            return dict(json.loads(file.read_text(encoding="utf-8"))) if file else {}

    @contextmanager
    def _artifact(self, run_id: str, path: str) -> Iterator[Path | None]:
        """A copy of an artifact, None where there is none."""
        with self._readable(), TemporaryDirectory() as folder:
            try:
                file: Path | None = Path(self._client.download_artifacts(run_id, path, folder))
            except Exception:  # every artifact store has its own error for a file that is not there
                file = None
            yield file

    def keep(self, run_id: str, paths: Sequence[Path], folder: str) -> None:
        """Copy files into a run."""
        with self._readable():
            for path in paths:
                self._client.log_artifact(run_id, str(path), folder)


def _all_pages(search: Callable[[str | None], Any]) -> list[Any]:
    """Everything that a search of MLflow finds, which comes in pages."""
    found: list[Any] = []
    token = None
    while True:
        page = search(token)
        found += page
        if not (token := page.token):
            return found


def _check_there(uri: str) -> None:
    """Raise for a server that does not answer, and for a database that is not there: mlflow would make one."""
    if uri == "none":
        raise ComparisonError(
            'no MLflow store: the tracking URI is "none"; give --tracking-uri URI of a server or store'
        )
    if Path(uri).is_file():
        raise ComparisonError(f"{uri} is a file, not a tracking URI; give --tracking-uri sqlite:///{uri}")
    if uri.startswith(("http://", "https://")):
        RunStore(uri, "").probe()
    elif uri.startswith("sqlite:"):
        from sqlalchemy.engine import make_url

        path = Path(str(make_url(uri).database))
        if not path.is_file():
            raise ComparisonError(f"no MLflow store: {path} does not exist; give --tracking-uri URI of the store")
