"""What ``reg4pru reproduce`` knows, by decoder, arm, variant, epoch and seed; means and intervals over seeds."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any, NamedTuple

from scipy.stats import t as student

Row = Mapping[str, Any]


class Estimate(NamedTuple):
    """A mean over seeds. low, high: 95 % interval by Student's t, NaN below three seeds."""

    mean: float
    low: float
    high: float
    seeds: int


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and interval of one value for each seed."""
    middle, n = mean(values), len(values)
    if n < 3:
        return Estimate(middle, math.nan, math.nan, n)
    half = float(student.ppf(0.975, n - 1)) * stdev(values) / math.sqrt(n)
    return Estimate(middle, middle - half, middle + half, n)


class Results:
    """Rows by decoder, arm, variant, epoch and seed, as ``evaluate_all`` returns them."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = list(rows)
        self.arms = list(dict.fromkeys((row["decoder"], row["arm"]) for row in self.rows))
        self.last = max(row["epoch"] for row in self.rows)

    def values(self, decoder: str, arm: str, variant: str, key: str = "ap") -> dict[int, float]:
        """One value for each seed, after the last epoch."""
        wanted = (decoder, arm, variant, self.last)
        return {
            row["seed"]: row[key]
            for row in self.rows
            if (row["decoder"], row["arm"], row["variant"], row["epoch"]) == wanted
        }

    def step(self, upper: tuple[str, str, str], lower: tuple[str, str, str]) -> list[float]:
        """AP of one (decoder, arm, variant) minus that of another, for each seed that has both."""
        above, below = self.values(*upper), self.values(*lower)
        return [above[seed] - below[seed] for seed in sorted(above.keys() & below.keys())]

    def course(self, decoder: str, arm: str, variant: str) -> dict[int, float]:
        """AP by epoch, of the seed with the most epochs."""
        own: dict[int, dict[int, float]] = {}
        for row in self.rows:
            if (row["decoder"], row["arm"], row["variant"]) == (decoder, arm, variant):
                own.setdefault(row["seed"], {})[row["epoch"]] = row["ap"]
        return dict(sorted(max(own.values(), key=len).items())) if own else {}
