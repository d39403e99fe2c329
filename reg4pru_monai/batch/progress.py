"""What a run says while it runs: a bar on a terminal, a line now and then in a log, JSON for programs, or nothing."""

import json
import sys
import threading
import time
from typing import Any

from tqdm import tqdm

from .journal import Record
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

    def started(self, summary: Summary) -> None:
        """Say what is to be done."""
        self._total = summary.now
        if self.mode == "json":
            return
        if self.mode != "quiet":
            for notice in summary.notices:
                self._say(notice)
            before = f", {summary.before} of them done before" if summary.before else ""
            self._say(f"{summary.own} photographs{before}; results go to {summary.output}")
        if self.mode == "bar":
            self._bar = tqdm(total=self._total, unit="photo", desc="segmenting", smoothing=0.05)

    def progress(self, record: Record) -> None:
        """Count a file, and say so where it is time to. Called from several threads."""
        with self._lock:
            self._done += 1
            self._failed += record.status == "failed"
            if self.mode == "json":
                self._print({"path": record.name, "status": record.status, "error": record.error})
            elif record.error is not None:
                self._say(f"{record.name!r} failed: {record.error['message']}")
            if self._bar is not None:
                self._bar.set_postfix(failed=self._failed, refresh=False)
                self._bar.update()
            elif self.mode == "lines" and time.monotonic() - self._logged > LOG_INTERVAL:
                self._log()

    def ended(self, summary: Summary, profile: bool = False) -> None:
        """Say how the run ended."""
        if self._bar is not None:
            self._bar.close()
        if self.mode == "json":
            self._print({"summary": summary_values(summary)})
        elif self.mode != "quiet" or summary.failed or summary.missing:
            self._say(closing(summary))
        if profile and summary.profile is not None and self.mode != "json":
            self._say(profile_line(summary))

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
    names = ("listed", "own", "before", "done", "failed", "missing", "seconds", "stopped", "exit_status", "notices")
    return {"output": str(summary.output), **{name: getattr(summary, name) for name in names}}


def closing(summary: Summary) -> str:
    """The last line of a run, and where to read on."""
    rate = f", {summary.done / summary.seconds:.2f} per second" if summary.done and summary.seconds else ""
    lines = [f"{summary.done} photographs segmented in {summary.seconds:.0f} s{rate}; {summary.failed} failed"]
    if summary.failed:
        lines.append(f"why: {summary.output / 'errors.csv'}")
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
