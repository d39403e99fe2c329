"""What a column of results.csv is."""

from typing import NamedTuple

Value = str | int | float | None


class Column(NamedTuple):
    """A column, its unit ("" for none) and one or two sentences that define it; the documentation prints them.

    kind: str, int or float.
    """

    name: str
    unit: str
    definition: str
    kind: type[str | int | float] = float
