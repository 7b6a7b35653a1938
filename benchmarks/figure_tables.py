"""Measured figures, asked by name, and the table that shows them."""

from collections.abc import Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

SOURCES = {"ct-mr": "CT–MR", "ct-pet": "CT–PET", "mr-pet": "MR–PET", "triple": "CT–MR–PET"}


class Figures:
    """The groups of ``docs/figures.json``, asked by group, row and column.

    Args:
        groups: as stored.
    """

    def __init__(self, groups: Mapping[str, Mapping[str, Any]]) -> None:
        self._rows = {
            name: {row["id"]: row for row in group["rows"]} for name, group in groups.items()
        }

    def numbers(self, group: str, row: str, column: str = "value") -> list[float]:
        """All numbers of a cell: a mean and its deviation, or the groups of a sentence."""
        return list(self._rows[group][row]["values"][column])

    def value(self, group: str, row: str, column: str = "value") -> float:
        """The first number of a cell."""
        return self.numbers(group, row, column)[0]

    def n(self, group: str, row: str) -> int:
        """How many cases stand behind a row."""
        return int(self._rows[group][row]["n"])


def rounded(value: float, digits: int) -> str:
    """A number with so many digits after the point, halves away from zero, a true minus.

    >>> rounded(-0.007, 2), rounded(2.675, 2), rounded(1.0, 1)
    ('−0.01', '2.68', '1.0')
    """
    exact = Decimal(str(value)).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)
    return f"{exact}".replace("-", "−")


def spread(numbers: Sequence[float], digits: int = 2) -> str:
    """A mean with its deviation, if there is one.

    >>> spread([1.5, 0.25]), spread([0.8])
    ('1.50 ± 0.25', '0.80')
    """
    return " ± ".join(rounded(one, digits) for one in numbers)


def table(caption: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A caption and a table of at most six columns."""
    lines = ["| " + " | ".join(line) + " |" for line in (headings, *rows)]
    return "\n".join([caption, "", lines[0], "|" + "---|" * len(headings), *lines[1:]])
