"""Records as rows of a CSV file, and back."""

import csv
import io
from collections.abc import Sequence
from dataclasses import Field, astuple, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Record = TypeVar("Record", bound="DataclassInstance")
_READ = {str: str, int: int, float: float}  # how a text becomes a field again


def as_csv(records: Sequence["DataclassInstance"], kind: type["DataclassInstance"]) -> str:
    """A row for each record, below the names of its fields.

    Args:
        records: of one kind; may be none.
        kind: a dataclass of texts, integers and floats.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow([field.name for field in fields(kind)])
    rows.writerows(astuple(record) for record in records)
    return text.getvalue()


def read_csv(path: Path, kind: type[Record]) -> list[Record]:
    """The records of a file that `as_csv` made.

    Args:
        path: of the file.
        kind: of the records.
    """
    with path.open(encoding="utf-8", newline="") as file:
        return [
            kind(**{field.name: _value(field, row[field.name]) for field in fields(kind)})
            for row in csv.DictReader(file)
        ]


def _value(field: "Field[Any]", text: str) -> object:
    """A text as the field's own type."""
    return _READ[field.type](text)  # type: ignore[index]


__all__ = ["as_csv", "read_csv"]
