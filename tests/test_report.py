import json
import math
import re
import shutil
import time
import tracemalloc
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from html.parser import HTMLParser
from io import BytesIO
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from reg4pru_monai.batch import report, report_histograms
from reg4pru_monai.batch.columns import Column, Value
from reg4pru_monai.batch.report import write_report
from reg4pru_monai.batch.report_histograms import Histogram, Numbers, figure

COLUMNS = (
    Column("name", "", "Path of the photograph."),
    Column("status", "", "done or failed."),
    Column("camera", "", "Camera, where the file names it."),
    Column("density_fraction", "", "Vessel pixels over pixels of the field of view."),
    Column("width_px", "px", "Mean vessel width."),
    Column("branches", "", "Branches of the skeleton."),
)
MALICIOUS = (
    "</script><script>window.hacked=1</script>.jpg",
    "<img src=x onerror=window.hacked=1>.jpg",
    "\"' onmouseover=window.hacked=1 x='.jpg",
    "a\nb\t.jpg",
    "odd-\udcff.jpg",
    "\u202egpj.exe\u200f",
    "&lt;b&gt;&amp;\u2028\u2029<!--<script>.jpg",
    "{{data}}{{title}}.jpg",
    "\u05e2\u05d9\u05df \u773c \U0001f441.jpg",
)
Row = Mapping[str, Value]


def jpeg(value: int = 90) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (64, 64), (value, 40, 20)).save(buffer, "JPEG")
    return buffer.getvalue()


def made(count: int) -> Iterator[Row]:
    """Rows of which every 50th failed; densities 0, 0.001, ..., 0.999 in turn, so that they are known."""
    for i in range(count):
        row: dict[str, Value] = {"name": f"eye/{i:06}.jpg", "status": "failed" if i % 50 == 49 else "done"}
        if row["status"] == "done":
            row |= {"camera": ("A1", "B2", None)[i % 3], "density_fraction": (i * 7 % 1000) / 1000}
            row |= {"width_px": 6 + math.sin(i), "branches": i % 11}
        yield row


def faults(count: int) -> Iterator[Row]:
    for row in made(count):
        if row["status"] == "failed":
            yield {
                "name": row["name"],
                "stage": "decode",
                "type": "ImageError",
                "message": "cut off",
                "remedy": "Copy.",
            }


def write(
    path: Path,
    rows: Callable[[], Iterable[Row]],
    errors: Callable[[], Iterable[Row]] = tuple,
    thumbnail: Callable[[str], bytes | None] = lambda name: None,
    **given: Any,
) -> "Page":
    given = {"title": "Run", "summary": [("Done", "3")], "settings": {"threshold": 0.5}} | given
    write_report(path, rows=rows, columns=COLUMNS, errors=errors, thumbnail=thumbnail, **given)
    return Page(path)


class Page(HTMLParser):
    """The page as a parser sees it: elements with attributes, and the text of those with an id or a simple name."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.path, self.source, self._open = path, path.read_bytes().decode("utf-8"), ""
        self.feed(self.source)
        self.data = json.loads(self.texts["data"])
        self.words = " ".join(re.sub(r"<(script|style).*?</\1>|<[^>]*>", "", self.source, flags=re.DOTALL).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = dict(attrs).get("id") or tag

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        self.texts[self._open] = self.texts.get(self._open, "") + data


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Page:
    rows: list[Row] = [
        {"name": "a.jpg", "status": "done", "density_fraction": 0.123456789012345, "width_px": math.nan, "branches": 3},
        {"name": "b.jpg", "status": "failed", "camera": ""},
        {
            "name": "c.jpg",
            "status": "done",
            "camera": "A1",
            "density_fraction": 0.2,
            "width_px": math.inf,
            "branches": 5,
        },
    ]
    errors: list[Row] = [{"name": "b.jpg", "stage": "decode", "type": "ImageError", "message": "x\ny", "remedy": "z"}]
    return write(
        tmp_path_factory.mktemp("report") / "report.html",
        lambda: iter(rows),
        lambda: iter(errors),
        lambda name: jpeg() if name == "a.jpg" else None,
        settings={"window": {"size": [512, 512]}, "policy": "reg4pru"},
        notices=["12 files of other kinds were ignored"],
    )


def test_what_the_page_says(small: Page) -> None:
    assert "1 of 3 photographs failed." in small.words
    assert "1 of the 2 that are done" in small.words
    assert "12 files of other kinds were ignored" in small.words
    assert "Research software, not a medical device. Not for diagnosis." in small.words
    assert "<dt>window.size</dt><dd>[512, 512]</dd><dt>policy</dt><dd>reg4pru</dd>" in small.source
    assert "<dt>width_px</dt><dd>Mean vessel width.\nUnit: px</dd>" in small.source
    assert "<div><dt>Done</dt><dd>3</dd></div>" in small.source
    assert {"failures", "photographs", "distributions", "results", "columns", "settings"} <= set(small.texts)


def test_rows_keep_their_values_and_nothing_that_json_has_not(small: Page) -> None:
    assert small.data["rows"] == [
        ["a.jpg", "done", None, 0.123456789012345, None, 3, 1],
        ["b.jpg", "failed", None, None, None, None, 2],
        ["c.jpg", "done", "A1", 0.2, "inf", 5, 3],
    ]
    assert [column["numeric"] for column in small.data["columns"]] == [False, False, False, True, False, True]
    assert small.data["thumbnails"] == [small.data["rows"][0]]
    assert b64decode(small.texts["jpeg-0"]) == jpeg()
    assert small.data["errors"] == [["b.jpg", "decode", "ImageError", "x\ny", "z"]]


def test_the_page_loads_nothing(small: Page) -> None:
    loads = {"src", "href", "srcset", "action", "formaction", "poster", "background", "style", "xlink:href", "manifest"}
    for tag, attributes in small.elements:
        assert tag not in {"iframe", "object", "embed", "base", "video", "audio", "form"}
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in loads or (name == "href" and str(value).startswith(("#", "data:,"))), (tag, name, value)
            assert value is None or not re.search(r"https?:|//", value) or name == "content", (tag, name, value)
    assert not re.search(r"url\(|@import|https?:", small.texts["style"])
    code = small.texts["script"]
    assert not re.search(r"fetch|XMLHttp|WebSocket|EventSource|Beacon|import\b|eval|Function\(|https?:", code)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|setAttribute\(\"on", code)


def test_the_policy_allows_the_own_script_and_style_alone(small: Page) -> None:
    policy = next(a["content"] for tag, a in small.elements if a.get("http-equiv") == "Content-Security-Policy")
    digest = {tag: b64encode(sha256(small.texts[tag].encode()).digest()).decode() for tag in ("script", "style")}
    assert policy == (
        f"default-src 'none'; script-src 'sha256-{digest['script']}'; style-src 'sha256-{digest['style']}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def page_of(names: Sequence[str], path: Path) -> Page:
    """A page with the names wherever something from outside can be."""
    text = " ".join(names)
    return write(
        path,
        lambda: ({"name": name, "status": "done", "camera": name, "branches": i} for i, name in enumerate(names)),
        lambda: (dict.fromkeys(("name", "stage", "type", "message", "remedy"), name) for name in names),
        lambda name: jpeg(),
        title=text,
        summary=[(text, text)],
        settings={text: text},
        notices=[text],
    )


def test_names_stay_data(tmp_path: Path) -> None:
    page = page_of(MALICIOUS, tmp_path / "report.html")
    plain = page_of([f"{i}.jpg" for i in range(len(MALICIOUS))], tmp_path / "plain.html")
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]
    assert [set(attributes) for _, attributes in page.elements] == [set(attributes) for _, attributes in plain.elements]
    shown = [row[0] for row in page.data["rows"]]
    assert shown[:3] == list(MALICIOUS[:3])
    assert shown[3:6] == [r"a\nb\t.jpg", r"odd-\udcff.jpg", r"\u202egpj.exe\u200f"]
    assert shown[6:] == [r"&lt;b&gt;&amp;\u2028\u2029<!--<script>.jpg", *MALICIOUS[7:]]
    assert page.data["errors"][3] == [r"a\nb\t.jpg"] * 3 + ["a\nb\\t.jpg"] * 2
    assert not set("<>&\u2028\u2029") & set(page.texts["data"])


# --- many rows --------------------------------------------------------------------------------------------------------


def test_more_rows_than_the_limit_are_sampled_evenly_and_the_page_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "ROWS", 40)
    monkeypatch.setattr(report, "THUMBNAILS", 7)
    monkeypatch.setattr(report, "FAILURES", 5)
    monkeypatch.setattr(report, "_CHUNK", 64)
    page = write(tmp_path / "a.html", lambda: made(1000), lambda: faults(1000), lambda name: jpeg())
    assert [row[-1] for row in page.data["rows"]] == [25 * i + 1 for i in range(40)]
    assert "The table holds 40 of the 1,000 rows, evenly spaced in the order of results.csv" in page.words
    places = np.array([row[-1] for row in page.data["thumbnails"]])
    assert len(places) == 7
    assert places[0] == 1
    assert places[-1] > 800
    assert np.diff(places).max() <= 2.1 * np.diff(places).min()
    assert "7 of the 980 that are done, evenly spaced" in page.words
    assert len(page.data["errors"]) == 5
    assert "The first 5 of 20 are listed; all are in errors.csv." in page.words
    assert "20 of 1,000 photographs failed." in page.words
    again = write(tmp_path / "b.html", lambda: made(1000), lambda: faults(1000), lambda name: jpeg())
    assert again.source == page.source


def test_thumbnails_that_only_a_few_photographs_have_are_all_shown(tmp_path: Path) -> None:
    few = {f"eye/{i:06}.jpg" for i in range(7, 5000, 40)}
    page = write(tmp_path / "a.html", lambda: made(5000), thumbnail=lambda name: jpeg() if name in few else None)
    assert {row[0] for row in page.data["thumbnails"]} == few - {row["name"] for row in faults(5000)}


def test_histograms_are_over_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "ROWS", 10)
    monkeypatch.setattr(report, "_CHUNK", 64)
    page = write(tmp_path / "report.html", lambda: made(1000))
    values = np.array([row["density_fraction"] for row in made(1000) if row["status"] == "done"], float)
    bins = re.findall(
        r'data-column="density_fraction" data-from="(.*?)" data-below="(.*?)"><title>[^<]*: (.*?)<', page.source
    )
    assert sum(int(count) for _, _, count in bins) == len(values) == 980
    for low, high, count in bins:
        assert int(count) == ((values >= float(low)) & (values < float(high))).sum()
    assert f"n = 980, mean {values.mean():.4g}, SD {values.std(ddof=1):.4g}, range 0 to 0.999" in page.source


def test_memory_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "ROWS", 100)
    monkeypatch.setattr(report, "FAILURES", 100)
    monkeypatch.setattr(report, "_CHUNK", 256)

    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            write_report(
                tmp_path / "a.html",
                "Run",
                [],
                {},
                lambda: made(count),
                COLUMNS,
                lambda: faults(count),
                lambda name: None,
            )
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1000)  # imports, caches
    assert peak(24_000) < peak(6_000) + 200_000


def test_no_rows_and_no_failures(tmp_path: Path) -> None:
    empty = write(tmp_path / "empty.html", lambda: ())
    assert "0 of 0 photographs are done." in empty.words
    assert "There are no thumbnails." in empty.words
    done = write(tmp_path / "done.html", lambda: made(3))
    assert "All 3 photographs are done." in done.words
    assert "Failures None." in done.words
    stopped = write(tmp_path / "stopped.html", lambda: made(3), missing=1)
    assert "3 of 4 photographs are done." in stopped.words
    both = write(tmp_path / "both.html", lambda: made(50), missing=3)
    assert "1 of 53 photographs failed. Not done yet: 3." in both.words


def test_frames_of_a_file_are_one_photograph(tmp_path: Path) -> None:
    frames: list[Row] = [{"name": "a.dcm", "status": "done", "branches": i} for i in range(3)]
    page = write(tmp_path / "a.html", lambda: [*frames, {"name": "b.dcm", "status": "failed"}])
    assert "1 of 2 photographs failed." in page.words
    assert len(page.data["rows"]) == 4


def test_columns_without_a_value_are_left_out_and_named(tmp_path: Path) -> None:
    page = write(tmp_path / "a.html", lambda: ({**row, "camera": "", "width_px": None} for row in made(3)))
    assert [column["name"] for column in page.data["columns"]] == ["name", "status", "density_fraction", "branches"]
    assert page.data["rows"][1] == ["eye/000001.jpg", "done", 0.007, 1, 2]
    assert "Without any value, and left out: camera, width_px." in page.words
    assert "left out" not in write(tmp_path / "b.html", lambda: made(3)).words


def test_an_earlier_report_stays_when_a_new_one_cannot_be_made(tmp_path: Path) -> None:
    first = write(tmp_path / "report.html", lambda: made(3))

    def broken() -> Iterator[Row]:
        yield from made(2)
        raise OSError("results.csv vanished")

    with pytest.raises(OSError, match="vanished"):
        write(tmp_path / "report.html", broken)
    assert (tmp_path / "report.html").read_bytes().decode() == first.source


# --- histograms -------------------------------------------------------------------------------------------------------


def filled(values: np.ndarray, chunk: int = 1000) -> tuple[Numbers, Histogram]:
    numbers = Numbers()
    for start in range(0, len(values), chunk):
        numbers.add(values[start : start + chunk])
    histogram = Histogram(numbers)
    for start in range(0, len(values), chunk):
        histogram.add(values[start : start + chunk])
    return numbers, histogram


@pytest.mark.parametrize("scale", [1e-6, 1, 1e7])
@pytest.mark.parametrize("offset", [-3, 0, 1000])
@pytest.mark.parametrize("count", [2, 9, 30_000])
def test_every_value_is_in_one_bin_and_the_moments_agree_with_numpy(scale: float, offset: float, count: int) -> None:
    values = (np.random.default_rng(count).normal(size=count) + offset) * scale
    numbers, histogram = filled(values)
    assert histogram.below + histogram.counts.sum() + histogram.above == count
    assert histogram.below == (values < histogram.edges[0]).sum()
    assert histogram.above == (values >= histogram.edges[-1]).sum()
    np.testing.assert_array_equal(
        histogram.counts, [((values >= a) & (values < b)).sum() for a, b in pairwise(histogram.edges)]
    )
    assert numbers.mean == pytest.approx(values.mean(), rel=1e-9)
    assert numbers.deviation == pytest.approx(values.std(ddof=1), rel=1e-6)
    assert (numbers.low, numbers.high) == (values.min(), values.max())
    assert 1 <= len(histogram.counts) <= 3 * 24 + 2


def test_edges_are_round_and_whole_numbers_have_whole_bins() -> None:
    _, tenths = filled(np.linspace(0, 1, 10_001)[:-1])
    np.testing.assert_array_equal(tenths.edges, [float(f"{i * 0.05:.2f}") for i in range(21)])
    assert (tenths.counts == 500).all()
    _, whole = filled(np.repeat([0.0, 1, 2, 3], 500))
    assert whole.edges.tolist() == [0, 1, 2, 3, 4]
    assert whole.counts.tolist() == [500] * 4


def test_an_absurd_value_does_not_press_the_others_into_one_bar() -> None:
    values = np.append(np.random.default_rng(0).normal(0.1, 0.01, 20_000), [1e9, -5])
    numbers, histogram = filled(values)
    assert (histogram.counts > 0).sum() > 8
    assert histogram.above >= 1
    assert histogram.below >= 1
    drawn = figure(Column("density", "", "x"), numbers, histogram)
    assert f'data-from="{histogram.edges[-1].item()!r}">{histogram.above} from' in drawn


def test_a_column_with_one_value_has_no_histogram(tmp_path: Path) -> None:
    page = write(tmp_path / "report.html", lambda: ({**row, "branches": 7} for row in made(20)))
    assert "<dt>branches</dt><dd>7 (20 photographs)</dd>" in page.source
    assert 'data-column="branches"' not in page.source
    assert 'data-column="density_fraction"' in page.source


def test_axes_name_the_unit_and_the_count(tmp_path: Path) -> None:
    page = write(tmp_path / "report.html", lambda: made(200))
    drawing = re.search(r'<svg[^>]*aria-label="Histogram of width_px: .*?</svg>', page.source, re.DOTALL)
    assert drawing is not None
    assert ">px</text>" in drawing[0]
    assert ">photographs</text>" in drawing[0]


def labels(drawing: str) -> list[str]:
    return re.findall(r'v4"/><text[^>]*>([^<]*)</text>', drawing)


def drawn(values: Iterable[float]) -> str:
    return figure(Column("x", "px", "x"), *filled(np.array(list(values), np.float64)))


def test_values_that_differ_little_are_told_apart() -> None:
    page = drawn(3262.13 + 0.001 * i for i in range(-14, 15))
    assert "mean 3262.13, SD 0.008515, range 3262.116 to 3262.144" in page
    assert len(set(labels(page))) == len(labels(page)) >= 2
    assert labels(drawn([0.62 + 1e-6 * i for i in range(30)]))[:2] == ["0.62000", "0.62001"]
    bins = re.findall(r"<title>(.*?) to below (.*?):", page)
    assert all(low != high for low, high in bins)


def test_whole_numbers_stand_below_their_bars() -> None:
    page = drawn([0] * 90 + [1] * 10)
    assert labels(page) == ["0", "1"]
    bars = [float(x) + float(w) / 2 for x, w in re.findall(r'class="bin" x="([\d.]+)" y="12" width="([\d.]+)"', page)]
    ticks = [float(x) for x in re.findall(r'<path d="M([\d.]+) \d+v4"/>', page)]
    assert ticks == pytest.approx(bars, abs=0.2)


@pytest.mark.parametrize(("count", "highest"), [(9, "10"), (90_000, "100k"), (99_000, "100k"), (900_000, "1M")])
def test_large_counts_are_short(count: int, highest: str) -> None:
    page = drawn([0] * count + [1])
    assert re.findall(r'text-anchor="end">([^<]*)</text>', page)[-1] == highest


@given(
    st.floats(-1e9, 1e9) | st.integers(-300, 300),
    st.floats(1e-6, 1e9) | st.integers(1, 10**6),
    st.integers(2, 50),
)
def test_labels_of_any_axis_are_apart_and_inside(low: float, spread: float, count: int) -> None:
    values = low + spread * np.linspace(0, 1, count)
    assume(values[-1] - values[0] > 1e-6 * max(abs(values)))
    numbers, histogram = filled(values)
    ticks = report_histograms._ticks(histogram.edges, numbers.whole)
    assert len(ticks) >= 1
    assert len({label for _, _, label in ticks}) == len(ticks)
    halves = [len(label) * 3.9 for _, _, label in ticks]  # a digit is at most 7.8 px wide in common fonts
    assert ticks[0][1] >= halves[0]
    assert ticks[-1][1] <= 330 - halves[-1]
    for (_, one, _), (_, other, _), a, b in zip(ticks, ticks[1:], halves, halves[1:], strict=False):
        assert other - one > a + b
    for place, _, label in ticks:  # a label says where it stands
        scale = (histogram.edges[-1] - histogram.edges[0]) / (330 - 14 - 68)
        at = histogram.edges[0] + (place - 68) * scale
        step = histogram.edges[1] - histogram.edges[0]
        assert abs(float(label) - at) <= 0.51 * step + abs(at) * 1e-5


# --- in a browser -----------------------------------------------------------------------------------------------------

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,900",
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    pytest.importorskip("selenium", reason="selenium is not installed: pip install selenium")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no Chromium with its driver on PATH: apt-get install chromium chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    yield chrome
    chrome.quit()


def opened(browser: Any, path: Path) -> float:
    """Open the page; the seconds it took."""
    browser.get_log("browser"), browser.get_log("performance")
    start = time.perf_counter()
    browser.get(path.as_uri())
    return time.perf_counter() - start


def requests(browser: Any) -> set[str]:
    """The schemes of all requests since the page was opened."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return {url.split(":")[0] for url in urls}


def column(browser: Any, place: str, number: int) -> list[str]:
    script = f"return [...document.querySelectorAll('{place} tbody tr')].map((row) => row.cells[{number}].textContent)"
    return browser.execute_script(script)


def typed(browser: Any, selector: str, text: str) -> None:
    field = browser.find_element("css selector", selector)
    field.clear()
    field.send_keys(text)


def told(browser: Any, place: str) -> str:
    return browser.find_element("css selector", f"{place} [role=status]").text


@pytest.fixture(scope="module")
def hundred(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hundred") / "report.html"
    write(path, lambda: made(120), lambda: faults(120), lambda name: jpeg(int(name[4:10])))
    return path


def test_sorting_by_keyboard(browser: Any, hundred: Path) -> None:
    opened(browser, hundred)
    button = browser.find_elements("css selector", "#results thead button")[3]
    header = browser.find_elements("css selector", "#results thead th")[3]
    assert header.get_attribute("aria-sort") == "none"
    known = [row.get("density_fraction") for row in made(120)]
    present = sorted(value for value in known if value is not None)
    for order, expected in (("ascending", present), ("descending", present[::-1]), ("none", known)):
        button.send_keys("\ue007")
        assert header.get_attribute("aria-sort") == order
        assert [float(text) if text else None for text in column(browser, "#results", 3)] == expected[:50]
    button.send_keys("\ue007")
    browser.find_elements("css selector", "#results .pager button")[-1].click()
    assert column(browser, "#results", 3)[-2:] == ["", ""]  # missing values come last
    assert browser.get_log("browser") == []


def test_paging(browser: Any, hundred: Path) -> None:
    opened(browser, hundred)
    first, previous, following, last = browser.find_elements("css selector", "#results .pager button")
    assert told(browser, "#results") == "1 to 50 of 120 rows"
    assert not first.is_enabled()
    assert not previous.is_enabled()
    following.click()
    assert column(browser, "#results", 0)[0] == "eye/000050.jpg"
    last.click()
    assert told(browser, "#results") == "101 to 120 of 120 rows"
    assert len(column(browser, "#results", 0)) == 20
    assert not following.is_enabled()
    first.click()
    assert column(browser, "#results", 0)[0] == "eye/000000.jpg"


def test_filtering(browser: Any, hundred: Path) -> None:
    opened(browser, hundred)
    typed(browser, "#results .search", "b2")
    assert set(column(browser, "#results", 2)) == {"B2"}
    browser.find_element("id", "reset").click()
    browser.find_element("css selector", "#status option:nth-child(3)").click()
    assert column(browser, "#results", 0) == ["eye/000049.jpg", "eye/000099.jpg"]
    browser.find_element("id", "reset").click()
    browser.find_elements("css selector", "#range option")[1].click()
    typed(browser, "#from", "0.7")
    typed(browser, "#below", "0.721")
    expected = [row["name"] for row in made(120) if 0.7 <= float(row.get("density_fraction") or 0) < 0.721]
    assert column(browser, "#results", 0) == expected
    typed(browser, "#results .search", "no such name")
    assert told(browser, "#results") == "No rows"
    browser.find_element("id", "reset").click()
    assert told(browser, "#results") == "1 to 50 of 120 rows"


def test_a_bar_filters_the_table_to_as_many_rows_as_it_counts(browser: Any, hundred: Path) -> None:
    opened(browser, hundred)
    for bar in browser.find_elements("css selector", ".bin[data-column=density_fraction]"):
        count = browser.execute_script("return arguments[0].textContent", bar).split(": ")[1]
        browser.execute_script("arguments[0].dispatchEvent(new MouseEvent('click', {bubbles: true}))", bar)
        assert told(browser, "#results").endswith(f"1 to {count} of {count} rows")


def test_failures_are_listed_and_searched(browser: Any, hundred: Path) -> None:
    opened(browser, hundred)
    assert column(browser, "#failures", 0) == ["eye/000049.jpg", "eye/000099.jpg"]
    assert column(browser, "#failures", 4) == ["Copy."] * 2
    typed(browser, "#failures .search", "0099")
    assert column(browser, "#failures", 0) == ["eye/000099.jpg"]
    browser.find_element("css selector", "[data-search=ImageError]").click()
    assert len(column(browser, "#failures", 0)) == 2


def test_a_thumbnail_opens_larger_with_its_values(browser: Any, hundred: Path) -> None:
    opened(browser, hundred)
    assert browser.execute_script("return document.querySelectorAll('#gallery img').length") == 28  # of 118: lazily
    browser.find_elements("css selector", "#gallery li button")[2].click()
    viewer = browser.find_element("id", "viewer")
    assert "eye/000002.jpg" in viewer.text
    assert "0.014" in viewer.text
    ready = "return new Promise((done) => { const p = document.getElementById('viewer-picture'); p.decode().then(() =>"
    assert browser.execute_script(ready + " done(p.naturalWidth)); })") == 64
    viewer.send_keys("\ue014")  # right arrow
    assert "eye/000003.jpg" in viewer.text
    viewer.send_keys("\ue00c")  # escape
    assert not viewer.is_displayed()
    browser.find_elements("css selector", "#results tbody button")[49].click()
    assert "cut off" in viewer.text
    assert not browser.find_element("id", "viewer-picture").is_displayed()


def test_malicious_names_are_inert(browser: Any, tmp_path: Path) -> None:
    opened(browser, page_of(MALICIOUS, tmp_path / "report.html").path)
    assert column(browser, "#results", 0)[:3] == list(MALICIOUS[:3])
    assert column(browser, "#failures", 0)[:3] == list(MALICIOUS[:3])
    for button in browser.find_elements("css selector", "[data-search]")[:2]:
        button.click()
    for number in range(len(MALICIOUS)):
        browser.execute_script("document.querySelectorAll('#gallery li button')[arguments[0]].click()", number)
    assert browser.execute_script("return [typeof window.hacked, document.images.length]") == [
        "undefined",
        len(MALICIOUS) + 1,
    ]
    assert browser.get_log("browser") == []
    assert requests(browser) <= {"file", "data"}


def test_a_script_that_slipped_in_would_not_run(browser: Any, hundred: Path, tmp_path: Path) -> None:
    source = hundred.read_text("utf-8").replace(
        "</main>", "<script>window.hacked=1</script><img src=x onerror=hacked=1>"
    )
    (tmp_path / "report.html").write_text(source, "utf-8")
    opened(browser, tmp_path / "report.html")
    assert browser.execute_script("return typeof window.hacked") == "undefined"
    assert any("Content Security Policy" in entry["message"] for entry in browser.get_log("browser"))


def test_a_hundred_thousand_rows_open_in_seconds(browser: Any, tmp_path: Path) -> None:
    page = write(tmp_path / "report.html", lambda: made(100_000), lambda: faults(100_000), lambda name: jpeg())
    assert opened(browser, page.path) < 10  # about half a second where measured
    assert told(browser, "#results") == "1 to 50 of 20,000 rows"
    start = time.perf_counter()
    browser.find_element("css selector", "#results thead button").click()
    typed(browser, "#results .search", "0000")
    assert time.perf_counter() - start < 5
    assert column(browser, "#results", 0)[0] == "eye/000000.jpg"
    assert browser.get_log("browser") == []
    assert "file" in (schemes := requests(browser))
    assert schemes <= {"file", "data"}


AXES: dict[str, Callable[[int], float]] = {
    "row_px": lambda i: 1161 + i % 15,
    "diameter_px": lambda i: 3262.13 + 0.001 * math.sin(i),
    "share": lambda i: 0.62 + 1e-5 * math.sin(i),
    "length_px": lambda i: 25_000 + 12_000 * math.sin(i),
    "flag": lambda i: float(i % 50 == 0),
    "odd": lambda i: 1e12 + 1e7 * math.sin(i),
    "small": lambda i: 1e-9 * math.sin(i),
    "tortuosity": lambda i: 1e6 if i == 7 else 1 + 0.1 * (i % 7),
}


@pytest.mark.parametrize("width", [1400, 500])
def test_labels_of_histograms_are_whole_and_apart(browser: Any, tmp_path: Path, width: int) -> None:
    columns = (*COLUMNS[:2], *(Column(name, "px", "A measurement.") for name in AXES))
    rows = [{"name": f"{i}", "status": "done", **{name: f(i) for name, f in AXES.items()}} for i in range(1500)]
    write_report(tmp_path / "report.html", "Run", [], {}, lambda: rows, columns, tuple, lambda name: None)
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        opened(browser, tmp_path / "report.html")
        found = browser.execute_script("""return [...document.querySelectorAll("figure svg")].map((svg) => [svg, ...
            svg.querySelectorAll("text")].map((part) => { const box = part.getBoundingClientRect();
            return [part.textContent, box.left, box.top, box.right, box.bottom]; }))""")
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert len(found) == len(AXES)
    for (_, left, top, right, bottom), *texts in found:
        assert len(texts) > 4
        for text, x, y, end, low in texts:
            assert left - 0.5 <= x <= end <= right + 0.5, text
            assert top - 2 <= y <= low <= bottom + 2, text
        for one, other in combinations(texts, 2):
            beside = one[3] <= other[1] or other[3] <= one[1]
            # Boxes hold the line height, of which digits need about half.
            assert beside or one[4] <= other[2] + 5 or other[4] <= one[2] + 5, (one, other)


def test_a_narrow_window_has_no_sideways_scrolling(browser: Any, hundred: Path) -> None:
    size = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        opened(browser, hundred)
        wide = "const page = document.documentElement; return [innerWidth, page.scrollWidth - page.clientWidth]"
        assert browser.execute_script(wide) == [400, 0]
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
