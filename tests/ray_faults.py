"""Work that kills its process at chosen files, for tests of what a Ray cluster survives. Workers import it."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import reg4pru_monai.batch.segment as segment_module
from batches import segment_in_process
from reg4pru_monai.batch.failures import StageError, WriteError
from reg4pru_monai.batch.inputs import Item
from reg4pru_monai.batch.work import Finished, Inferred, Prepared, Work


class FaultyWork(Work):
    """A plan lies beside the output, in a file for each fault: ``STEP~NAME`` with the number of times and the kind."""

    def prepare(self, item: Item) -> Prepared:
        self._fault("prepare", item.name)
        return super().prepare(item)

    def infer(self, files: Sequence[Prepared]) -> list[Inferred | StageError]:
        for file in files:
            self._fault("infer", file.item.name)
        return super().infer(files)

    def finish(self, file: Prepared, found: Inferred) -> Finished:
        self._fault("finish", file.item.name)
        return super().finish(file, found)

    def _fault(self, step: str, name: str) -> None:
        path = self.output.with_name("faults") / f"{step}~{name}"
        if not path.exists():
            return
        times, kind = path.read_text().split()
        while kind == "hold" and path.exists():
            time.sleep(0.05)
        if kind == "hold":
            return
        path.write_text(f"{int(times) - 1} {kind}") if int(times) > 1 else path.unlink()
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "memory":
            raise StageError(step, MemoryError())
        if kind == "full":
            raise WriteError(28, "No space left on device")


def segment_with_faults(folder: str, output: str, how: dict[str, Any]) -> None:
    """As segment_in_process, with the faults that were planned."""
    segment_module.Work = FaultyWork  # type: ignore[misc]
    segment_in_process(folder, output, how)


def plan_faults(output: Path, **faults: Any) -> None:
    """faults: by "STEP~NAME": (times, kind). kind: "kill", "memory", "full", or "hold" until its file is gone."""
    folder = output.with_name("faults")
    folder.mkdir(parents=True, exist_ok=True)
    for place, (times, kind) in faults.items():
        (folder / place).write_text(f"{times} {kind}")
