"""Numbers of a column in constant memory, and histograms of them as inline SVG for report.html."""

import math
from itertools import pairwise

import numpy as np

from .columns import Column
from .report_text import markup

_BINS = 24
_SAMPLE = 4096  # values of a column from which the range of its histogram is chosen


class Numbers:
    """Count, mean, spread and range of the numbers of a column, and evenly spaced ones of them. NaN is left out."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0
        self.low, self.high, self.whole = math.inf, -math.inf, True
        self.sample = np.empty(0)
        self._stride = 1

    def add(self, values: np.ndarray) -> None:
        """values: (n,) float64, finite."""
        if not len(values):
            return
        self.sample = np.append(self.sample, values[-self.count % self._stride :: self._stride])
        while len(self.sample) > _SAMPLE:
            self.sample, self._stride = self.sample[::2], self._stride * 2
        # Two sets joined: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm", 1979.
        mean, count = float(values.mean()), self.count + len(values)
        self.squares += float(((values - mean) ** 2).sum()) + (mean - self.mean) ** 2 * self.count * len(values) / count
        self.mean += (mean - self.mean) * len(values) / count
        self.count = count
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        self.whole = self.whole and bool((values == np.floor(values)).all())

    @property
    def deviation(self) -> float:
        """Standard deviation of the sample; NaN for fewer than two."""
        return math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else math.nan

    @property
    def varies(self) -> bool:
        """False where a histogram would be one bar, or differences are of rounding."""
        return self.count > 0 and not math.isclose(self.low, self.high, rel_tol=1e-9, abs_tol=1e-300)


class Histogram:
    """Counts between round edges, exact over all values, and counts below and above them.

    The edges enclose the values between the 1st and 99th percentile, with as much again on either side, so that one
    absurd value does not press all others into one bar.
    """

    def __init__(self, numbers: Numbers) -> None:
        low, high = (float(value) for value in np.quantile(numbers.sample, (0.01, 0.99)))
        spread = high - low
        low, high = max(numbers.low, low - spread), min(numbers.high, high + spread)
        if math.isclose(low, high, rel_tol=1e-9):
            low, high = numbers.low, numbers.high
        number = min(_BINS, math.ceil(2 * numbers.count ** (1 / 3)))  # Rice's rule
        self.edges = _round_values(low, high, number, least=1 if numbers.whole else 0)
        self._counts = np.zeros(len(self.edges) + 1, np.int64)

    def add(self, values: np.ndarray) -> None:
        """Count values; a bin holds those with lower edge <= value < upper edge. values: (n,) float64, finite."""
        self._counts += np.bincount(np.searchsorted(self.edges, values, "right"), minlength=len(self._counts))

    @property
    def below(self) -> int:
        """Values below the first edge."""
        return int(self._counts[0])

    @property
    def above(self) -> int:
        """Values from the last edge on."""
        return int(self._counts[-1])

    @property
    def counts(self) -> np.ndarray:
        """(bins,) int64."""
        return self._counts[1:-1]


def _round_values(low: float, high: float, number: int, least: float = 0) -> np.ndarray:
    """About ``number`` multiples of 1, 2 or 5 times a power of ten, the first <= low and the last > high."""
    exponent = math.floor(math.log10((high - low) / number))
    step = next(s for m in (1, 2, 5, 10) if (s := m * 10.0**exponent) * number >= (high - low) * (1 - 1e-9))
    step = max(step, least)
    values = np.arange(math.floor(low / step) - 1, math.floor(high / step) + 3) * step
    values = np.array([float(f"{value:.12g}") for value in values])  # 0.3, not 0.30000000000000004
    return values[np.searchsorted(values, low, "right") - 1 : np.searchsorted(values, high, "right") + 1]


_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 330, 202, 68, 14, 12, 44
_CHARACTER, _GAP = 8.0, 6.0  # px: of a digit in a wide font, and between two labels


def brief(number: float, spread: float = 0.0) -> str:
    """Four significant digits, more where the values in a spread would look alike, without an exponent below 1e15."""
    digits = 4
    if spread > 0 and number:
        digits = min(max(4, math.floor(math.log10(abs(number))) - math.floor(math.log10(spread)) + 2), 15)
    return f"{number:.0f}" if 10**digits <= abs(number) < 1e15 else f"{number:.{digits}g}"


def _label(value: float, step: float) -> str:
    """A multiple of step with the decimals that tell it from the next one."""
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if decimals > 7 or abs(value) >= 1e9:
        digits = math.floor(math.log10(max(abs(value), step))) - math.floor(math.log10(step) + 1e-9) + 1
        return f"{value:.{min(max(digits, 1), 15)}g}"
    return f"{value:.{decimals}f}"


def _ticks(edges: np.ndarray, whole: bool) -> list[tuple[float, float, str]]:
    """Of the horizontal axis: place of the tick (px), middle of its label (px), label. Labels never overlap.

    whole: the values are whole numbers; then a bin of one value is labelled below its middle.
    """
    first, last = float(edges[0]), float(edges[-1])
    scale = (_WIDTH - _RIGHT - _LEFT) / (last - first)
    shift = 0.5 if whole and math.isclose(edges[1] - edges[0], 1) else 0.0
    found: list[tuple[float, float, str]] = []
    for number in (6, 5, 4, 3, 2):
        values = _round_values(first, last, number, least=1 if whole else 0)
        step = values[1] - values[0]
        found = [_tick(v, step, _LEFT + (v + shift - first) * scale) for v in values if first <= v <= last - 2 * shift]
        apart = all(b[1] - a[1] >= (_width(a[2]) + _width(b[2])) / 2 + _GAP for a, b in pairwise(found))
        if len(found) > 1 and apart:
            return found
    ends = ((edge, _LEFT + (edge + shift - first) * scale) for edge in (first, last - 2 * shift))
    return found if len(found) == 1 else [_tick(edge, float(edges[1] - edges[0]), place) for edge, place in ends]


def _tick(value: float, step: float, place: float) -> tuple[float, float, str]:
    label = _label(value, step)
    half = _width(label) / 2
    return place, min(max(place, half), _WIDTH - half), label  # the label stays in the picture


def _width(label: str) -> float:
    return _CHARACTER * len(label)


def _count(value: float, highest: float) -> str:
    """A number of photographs, short enough for the vertical axis."""
    if highest < 1e5:
        return f"{value:,.0f}"
    return f"{value / 1e6:g}M" if highest >= 1e6 else f"{value / 1e3:g}k"


def figure(column: Column, numbers: Numbers, histogram: Histogram) -> str:
    """A histogram with its axes as inline SVG, and the numbers that describe it."""
    name, unit = markup(column.name), markup("no unit" if column.unit in ("", "1") else column.unit)
    spread = f", SD {brief(numbers.deviation)}" if numbers.count > 1 else ""
    low, mean, high = (brief(value, numbers.high - numbers.low) for value in (numbers.low, numbers.mean, numbers.high))
    told = f"n = {numbers.count:,}, mean {mean}{spread}, range {low} to {high}"
    first, last = (float(histogram.edges[end]) for end in (0, -1))
    step = float(histogram.edges[1]) - first
    outside = "".join(
        f'<button type="button" class="link" data-column="{name}" data-{side}="{edge!r}">{count:,} {words}</button> '
        for count, words, side, edge in (
            (histogram.below, f"below {_label(first, step)}", "below", first),
            (histogram.above, f"from {_label(last, step)}", "from", last),
        )
        if count
    )
    return (
        f'<figure><h3 title="{markup(column.definition)}">{name}</h3>{_svg(name, unit, told, histogram, numbers.whole)}'
        f'<figcaption class="soft">{told}{f"<br>Not drawn: {outside}" if outside else ""}</figcaption></figure>'
    )


def _svg(name: str, unit: str, told: str, histogram: Histogram, whole: bool) -> str:
    """name, unit, told: already escaped."""
    edges, counts = histogram.edges, histogram.counts
    levels = _round_values(0, float(counts.max()), 4, least=1)
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    xs = _LEFT + (edges - edges[0]) / (edges[-1] - edges[0]) * (right - _LEFT)
    heights = counts / levels[-1] * (bottom - _TOP)
    bars = "".join(
        f'<rect class="bar" x="{x:.1f}" y="{bottom - height:.1f}" width="{max(end - x - 1, 1):.1f}" '
        f'height="{height:.1f}"/><rect class="bin" x="{x:.1f}" y="{_TOP}" width="{end - x:.1f}" '
        f'height="{bottom - _TOP}" data-column="{name}" data-from="{low!r}" data-below="{high!r}">'
        f"<title>{_label(low, high - low)} to below {_label(high, high - low)}: {count:,}</title></rect>"
        for x, end, height, low, high, count in zip(
            xs, xs[1:], heights, edges.tolist(), edges[1:].tolist(), counts, strict=False
        )
        if count
    )
    below = "".join(
        f'<path d="M{x:.1f} {bottom}v4"/><text x="{middle:.1f}" y="{bottom + 18}" text-anchor="middle">{label}</text>'
        for x, middle, label in _ticks(edges, whole)
    )
    left = "".join(
        f'<path d="M{_LEFT} {y:.1f}H{right}"/><text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
        for label, y in ((_count(v, levels[-1]), bottom - v / levels[-1] * (bottom - _TOP)) for v in levels)
    )
    middle = (_TOP + bottom) / 2
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Histogram of {name}: {told}">{left}{below}{bars}'
        f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">{unit}</text>'
        f'<text transform="translate(15 {middle}) rotate(-90)" text-anchor="middle">photographs</text></svg>'
    )
