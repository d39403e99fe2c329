"""report.html: what a run over photographs did, on one page that opens offline and loads nothing from a network.

Whatever comes from files (names, messages, values) is untrusted: escaped here, and only ever text, not markup, there.
"""

import json
import math
import re
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..files import replacing
from .columns import Column, Value
from .report_histograms import Histogram, Numbers, brief, figure
from .report_text import markup, shown

Row = Mapping[str, Value]
Cells = list[Value]  # of a row, in the order of the columns, and last its number in results.csv, from 1

ROWS = 20_000  # rows in the table; with about 40 columns, and the thumbnails, the page stays near 25 MB: an attachment
FAILURES = 5_000  # failures listed
THUMBNAILS = 200
_CHUNK = 4096  # rows held at a time

_ERROR_KEYS = ("name", "stage", "type", "message", "remedy")
_SCRIPT_ESCAPES = str.maketrans({character: f"\\u{ord(character):04x}" for character in "<>&"})


def write_report(
    path: Path,
    title: str,
    summary: Sequence[tuple[str, str]],
    settings: Mapping[str, object],
    rows: Callable[[], Iterable[Row]],
    columns: Sequence[Column],
    errors: Callable[[], Iterable[Row]],
    thumbnail: Callable[[str], bytes | None],
    notices: Sequence[str] = (),
    missing: int = 0,
) -> None:
    """Write the page. Memory does not grow with the number of rows.

    summary: label and value, shown at the top in this order. rows: a fresh iterator over the rows of results.csv,
    called twice; keys are those of columns, the first of which names the row, and "name" and "status" ("done" or
    "failed"). Of more than ROWS rows, as many evenly spaced ones are in the table, and the page says so; histograms are
    over all rows. errors: keys name, stage, type, message, remedy; the first FAILURES are listed, all are counted.
    thumbnail: the JPEG of a photograph by name, a few hundred pixels wide, or None; asked for every done row, and of
    more than THUMBNAILS as many evenly spaced ones are shown. missing: photographs not done yet, which have no row.
    """
    found = _survey(rows(), columns)
    total, numbers = found.rows, found.numbers
    filled = [column for column in columns if column.name in found.filled or not total]
    histograms = {name: Histogram(values) for name, values in numbers.items() if values.varies}
    kept, pictures = _collect(rows(), filled, total, histograms, thumbnail)
    listed, kinds = _failures(errors())
    data = {
        "columns": [
            {
                "name": column.name,
                "unit": column.unit,
                "definition": column.definition,
                "numeric": column.name in numbers,
            }
            for column in filled
        ],
        "rows": kept,
        "thumbnails": [row for row, _ in pictures],
        "errors": listed,
    }
    parts = {
        "title": markup(title),
        "banner": _banner(found.photographs + missing, found.failed, missing),
        "notices": "\n".join(f'<p class="notice">{markup(notice)}</p>' for notice in notices),
        "summary": "".join(f"<div><dt>{markup(label)}</dt><dd>{markup(value)}</dd></div>" for label, value in summary),
        "failures": _failures_html(len(listed), kinds),
        "pictures": _pictures_html(len(pictures), found.done),
        "histograms": _histograms_html(columns, numbers, histograms, total),
        "sample": _sample_html(len(kept), total) + _unfilled_html(columns, filled),
        "columns": _definitions(
            (column.name, f"{column.definition}\nUnit: {column.unit}" if column.unit else column.definition)
            for column in columns
        ),
        "settings": _definitions(_flat(settings)),
        "data": json.dumps(data, separators=(",", ":")).translate(_SCRIPT_ESCAPES),
        "jpegs": "\n".join(
            f'<script type="text/plain" id="jpeg-{number}">{b64encode(jpeg).decode()}</script>'
            for number, (_, jpeg) in enumerate(pictures)
        ),
    }
    template = files(__package__).joinpath("report.html").read_text("utf-8")
    with replacing(path) as beside, open(beside, "w", encoding="utf-8", newline="\n") as file:
        for number, piece in enumerate(re.split(r"\{\{(\w+)\}\}", template)):
            file.write(piece if number % 2 == 0 else _policy(template) if piece == "policy" else parts[piece])


# --- reading the rows -------------------------------------------------------------------------------------------------


def _chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, _CHUNK)):
        yield chunk


def _finite(chunk: Sequence[Row], name: str) -> np.ndarray:
    """The numbers of a column but for NaN and infinities: (n,) float64."""
    values = np.array([v for row in chunk if isinstance(v := row.get(name), int | float)], np.float64)
    return values[np.isfinite(values)]


class _Survey(NamedTuple):
    """What the first pass finds. done: rows. failed: files, each of which has one row. filled: columns with a value."""

    rows: int
    done: int
    photographs: int
    failed: int
    filled: frozenset[str]
    numbers: dict[str, Numbers]


def _survey(rows: Iterable[Row], columns: Sequence[Column]) -> _Survey:
    """First pass: how many rows, done ones, files; and what the columns that hold only numbers hold."""
    counts: Counter[str] = Counter()
    numbers, filled = {column.name: Numbers() for column in columns}, {columns[0].name, "status"}
    last = None
    for chunk in _chunks(rows):
        counts["rows"] += len(chunk)
        for row in chunk:
            counts[str(row["status"])] += 1
            counts["photographs"] += row["name"] != last  # frames of a file follow each other
            last = row["name"]
        filled |= {c.name for c in columns if any(row.get(c.name) not in (None, "") for row in chunk)}
        for name in list(numbers):
            if any(isinstance(value := row.get(name), str) and value for row in chunk):
                del numbers[name]
            else:
                numbers[name].add(_finite(chunk, name))
    measured = {name: values for name, values in numbers.items() if values.count}
    total, done, photographs, failed = (counts[key] for key in ("rows", "done", "photographs", "failed"))
    return _Survey(total, done, photographs, failed, frozenset(filled), measured)


def _collect(
    rows: Iterable[Row],
    columns: Sequence[Column],
    total: int,
    histograms: Mapping[str, Histogram],
    thumbnail: Callable[[str], bytes | None],
) -> tuple[list[Cells], list[tuple[Cells, bytes]]]:
    """Second pass: fill the histograms; the rows of the table, and those with a thumbnail (JPEG)."""
    kept: list[Cells] = []
    pictures = _Pictures()
    number = 0
    for chunk in _chunks(rows):
        for name, histogram in histograms.items():
            histogram.add(_finite(chunk, name))
        for row in chunk:
            if _spaced(number, total, ROWS):
                kept.append(_cells(row, columns, number + 1))
            if row["status"] == "done" and (jpeg := thumbnail(str(row["name"]))):
                pictures.add(_cells(row, columns, number + 1), jpeg)
            number += 1
    return kept, pictures.spaced()


class _Pictures:
    """Evenly spaced ones of a stream of thumbnails of unknown length."""

    def __init__(self) -> None:
        self._held: list[tuple[Cells, bytes]] = []
        self._stride, self._met = 1, 0

    def add(self, row: Cells, jpeg: bytes) -> None:
        if self._met % self._stride == 0:
            self._held.append((row, jpeg))
        if len(self._held) > 2 * THUMBNAILS:
            self._held, self._stride = self._held[::2], self._stride * 2
        self._met += 1

    def spaced(self) -> list[tuple[Cells, bytes]]:
        """At most THUMBNAILS of them, in order."""
        count = len(self._held)
        return [picture for index, picture in enumerate(self._held) if _spaced(index, count, THUMBNAILS)]


def _spaced(index: int, total: int, limit: int) -> bool:
    """Whether the item is one of ``limit`` evenly spaced ones of ``total``, the first among them; all if not more."""
    return total <= limit or index * limit // total != (index - 1) * limit // total


def _cells(row: Row, columns: Sequence[Column], number: int) -> Cells:
    return [*(_cell(row.get(column.name)) for column in columns), number]


def _cell(value: Value) -> Value:
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)  # JSON has no infinity
    return shown(value) or None if isinstance(value, str) else value


def _failures(errors: Iterable[Row]) -> tuple[list[list[Value]], Counter[tuple[str, str]]]:
    """The first failures as the page wants them, and how many of each (stage, type) there are among all."""
    listed: list[list[Value]] = []
    kinds: Counter[tuple[str, str]] = Counter()
    for error in errors:
        kinds[str(error["stage"]), str(error["type"])] += 1
        if len(listed) < FAILURES:
            cells = (str(error[key] or "") for key in _ERROR_KEYS)
            listed.append([shown(cell, keep="\n" if number > 2 else "") for number, cell in enumerate(cells)])
    return listed, kinds


# --- writing the page -------------------------------------------------------------------------------------------------


def _policy(template: str) -> str:
    """A Content-Security-Policy: the style and script of the template run, pictures are inside the page, no more."""
    hashes = {
        tag: b64encode(sha256(found[1].encode()).digest()).decode()
        for tag in ("style", "script")
        if (found := re.search(rf"<{tag}>(.*?)</{tag}>", template, re.DOTALL))
    }
    return (
        f"default-src 'none'; script-src 'sha256-{hashes['script']}'; style-src 'sha256-{hashes['style']}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _banner(listed: int, failed: int, missing: int) -> str:
    done = listed - failed - missing
    if failed:
        left = f"Not done yet: {missing:,}. " if missing else ""
        link = '<a href="#failures">Which and why</a>'
        return f'<p class="banner bad">{failed:,} of {listed:,} photographs failed. {left}{link}</p>'
    if missing or not listed:
        return f'<p class="banner notice">{done:,} of {listed:,} photographs are done.</p>'
    return f'<p class="banner good">All {listed:,} photographs are done.</p>'


def _failures_html(listed: int, kinds: Counter[tuple[str, str]]) -> str:
    total = kinds.total()
    if not total:
        return "<p>None.</p>"
    items = "".join(
        f"<li>{count:,} in {markup(stage)}: "
        f'<button type="button" class="link" data-search="{markup(kind)}">{markup(kind)}</button></li>'
        for (stage, kind), count in kinds.most_common()
    )
    cut = f'<p class="notice">The first {listed:,} of {total:,} are listed; all are in errors.csv.</p>'
    return (f"<ul>{items}</ul>" if total > 1 else "") + (cut if listed < total else "")


def _pictures_html(pictured: int, done: int) -> str:
    if not pictured:
        return "<p>There are no thumbnails.</p>"
    which = "all that are done" if pictured == done else f"{pictured:,} of the {done:,} that are done, evenly spaced"
    return f'<p class="soft">With the vessels found: {which}. Choose one to see it larger, with its values.</p>'


def _sample_html(kept: int, total: int) -> str:
    if kept == total:
        return '<p class="soft">Choose a name to see all its values. A number in full: its tooltip.</p>'
    return (
        f'<p class="notice">The table holds {kept:,} of the {total:,} rows, evenly spaced in the order of results.csv, '
        "which holds all. Sorting and filtering act on the rows of the table. Counts and histograms are over all.</p>"
    )


def _unfilled_html(columns: Sequence[Column], filled: Sequence[Column]) -> str:
    empty = [column.name for column in columns if column not in filled]
    return f'<p class="soft">Without any value, and left out: {markup(", ".join(empty))}.</p>' if empty else ""


def _histograms_html(
    columns: Sequence[Column], numbers: Mapping[str, Numbers], histograms: Mapping[str, Histogram], total: int
) -> str:
    drawn = [column for column in columns if column.name in histograms]
    figures = "".join(figure(column, numbers[column.name], histograms[column.name]) for column in drawn)
    same = _definitions(
        (name, f"{brief(values.mean)} ({values.count:,} photographs)")
        for name, values in numbers.items()
        if name not in histograms
    )
    intro = f"Over all {total:,} photographs, where measured. Choose a bar to see its photographs in the table."
    return (f'<p class="soft">{intro}</p><div class="histograms">{figures}</div>' if figures else "") + (
        f'<details><summary>Columns with one value throughout</summary><dl class="definitions">{same}</dl></details>'
        if same
        else ""
    )


def _definitions(pairs: Iterable[tuple[str, object]]) -> str:
    return "".join(f"<dt>{markup(term)}</dt><dd>{markup(str(meaning))}</dd>" for term, meaning in pairs)


def _flat(settings: Mapping[Any, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Nested settings as ("window.size", value)."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
