"""What a run says while it runs: a bar on a terminal, a line now and then in a log, JSON for programs, or nothing."""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tqdm import tqdm

from .journal import Record
from .rows import doubtful_fields
from .segment import Summary

LOG_INTERVAL = 30.0  # s


class Display:
    """Shows rate, remaining time and failures. mode: "auto" (bar on a terminal, else lines), "quiet" or "json"."""

    def __init__(self, mode: str = "auto") -> None:
        self.mode = "bar" if mode == "auto" and sys.stderr.isatty() else "lines" if mode == "auto" else mode
        self._bar: Any = None
        self._lock = threading.Lock()
        self._done = self._failed = self._total = 0
        self._started = self._logged = time.monotonic()
        if sys.stderr is None or sys.stderr.closed:
            self._silence()

    def started(self, summary: Summary) -> None:
        """Say what is to be done."""
        self._total = summary.now
        with self._unheard():
            if self.mode in ("bar", "lines"):
                for notice in summary.notices:
                    self._say(notice)
                before = f", {summary.before} of them done before" if summary.before else ""
                self._say(f"{summary.own} photographs{before}; results go to {summary.output}")
            if self.mode == "bar":
                self._bar = tqdm(total=self._total, unit="photo", desc="segmenting", smoothing=0.05)

    def planned(self, summary: Summary) -> None:
        """Say what a run would do."""
        with self._unheard():
            if self.mode == "json":
                self._print({"dry_run": summary_values(summary)})
            elif self.mode != "quiet":
                print(plan(summary).encode("utf-8", "backslashreplace").decode(), flush=True)

    def progress(self, record: Record) -> None:
        """Count a file, and say so where it is time to. Called from several threads."""
        with self._lock, self._unheard():
            self._done += 1
            self._failed += record.status == "failed"
            if self.mode == "json":
                self._print({"path": record.name, "status": record.status, "error": record.error})
            elif record.error is not None and self.mode != "silent":
                self._say(f"{record.name!r} failed: {record.error['message']}")
            if self._bar is not None:
                self._bar.set_postfix(failed=self._failed, refresh=False)
                self._bar.update()
            elif self.mode == "lines" and time.monotonic() - self._logged > LOG_INTERVAL:
                self._log()

    def ended(self, summary: Summary, profile: bool = False) -> None:
        """Say how the run ended."""
        with self._unheard():
            if self._bar is not None:
                self._bar.close()
            shown = profile and summary.profile is not None
            if self.mode == "json":
                profiled = {"profile": summary.profile._asdict()} if shown and summary.profile else {}
                self._print({"summary": summary_values(summary), **profiled})
            elif self.mode in ("bar", "lines") or (self.mode == "quiet" and (summary.failed or summary.missing)):
                self._say(closing(summary))
            if shown and self.mode not in ("json", "silent"):
                self._say(profile_line(summary))

    @contextmanager
    def _unheard(self) -> Iterator[None]:
        """A terminal or reader that is gone does not end the run: the results go to the folder anyway."""
        try:
            yield
        except (OSError, ValueError):  # a closed pipe; a closed file
            self._silence()

    def _silence(self) -> None:
        self.mode, self._bar = "silent", None
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):  # or Python fails over it when it ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

    def _log(self) -> None:
        self._logged = time.monotonic()
        rate = self._done / (self._logged - self._started)
        left = (self._total - self._done) / rate if rate else 0.0
        self._say(
            f"{self._done} of {self._total} photographs, {self._failed} failed, {rate:.2f} per second, "
            f"{left / 60:.0f} minutes left"
        )

    def _say(self, text: str) -> None:
        with tqdm.external_write_mode(file=sys.stderr):
            print(text.encode("utf-8", "backslashreplace").decode(), file=sys.stderr, flush=True)

    def _print(self, line: dict[str, Any]) -> None:
        print(json.dumps(line), flush=True)


def summary_values(summary: Summary) -> dict[str, Any]:
    """The numbers of a summary, for JSON."""
    names = (
        "listed",
        "own",
        "before",
        "now",
        "done",
        "failed",
        "doubtful",
        "missing",
        "seconds",
        "stopped",
        "exit_status",
        "notices",
    )
    return {"output": str(summary.output), **{name: getattr(summary, name) for name in names}}


def plan(summary: Summary) -> str:
    """What a run would do."""
    limited = f", {summary.now} of them in this run" if summary.now < summary.missing else ""
    lines = [
        f"{summary.listed} photographs found, {summary.own} in this shard",
        f"{summary.before} done before, {summary.missing} to do{limited}",
        *summary.notices,
        "nothing was written",
    ]
    return "\n".join(lines)


def closing(summary: Summary) -> str:
    """The last line of a run, and where to read on."""
    rate = f", {summary.done / summary.seconds:.2f} per second" if summary.done and summary.seconds else ""
    lines = [f"{summary.done} photographs segmented in {summary.seconds:.0f} s{rate}; {summary.failed} failed"]
    if summary.failed:
        lines.append(f"why: {summary.output / 'errors.csv'}")
    if summary.doubtful:
        lines.append(doubtful_fields(summary.doubtful))
    if summary.missing:
        lines.append(f"{summary.missing} are left; the same command goes on with them")
    lines.append(f"report: {summary.output / 'report.html'}")
    return "\n".join(lines)


def profile_line(summary: Summary) -> str:
    """Shares of the wall clock."""
    profile = summary.profile
    assert profile is not None
    total = max(profile.total, 1e-9)
    return (
        f"of {profile.total:.1f} s the network computed {profile.network / total:.1%}, waited for photographs "
        f"{profile.waiting / total:.1%} and for results to be written {profile.blocked / total:.1%}"
    )
