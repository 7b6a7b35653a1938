"""The words and numbers of the page, from the content of ``report.json``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fusion_pipeline.data import Image

_WORDS = {"ct": "CT", "mr": "MR", "pet": "PET", "spect": "SPECT"}
# Measures of the report: name on the page, unit (a length follows the case's), whether more is
# better (None: neither is).
_LENGTH = "length"
_MEASURES: dict[str, tuple[str, str, bool | None]] = {
    "nmi": ("Normalized mutual information", "", True),
    "mind": ("MIND-SSC distance", "", False),
    "overlap": ("Overlap", "", None),
    "tre_mm": ("Target registration error", _LENGTH, False),
    "landmarks_mm": ("Distance of landmarks", _LENGTH, False),
    "dice": ("Dice of labels", "", True),
    "hd95_mm": ("95 % Hausdorff distance of labels", _LENGTH, False),
}


@dataclass(frozen=True)
class Change:
    """A measure before and after registration.

    Attributes:
        name: the measure, in words.
        unit: ``mm``, ``px``, or empty.
        before: None where it is not known.
        after: likewise.
        largest: the largest value after registration, of an error in many points.
        verdict: ``better``, ``worse``, or empty where that cannot be said.
    """

    name: str
    unit: str
    before: float | None
    after: float | None
    largest: float | None
    verdict: str


@dataclass(frozen=True)
class NumbersTable:
    """Names and numbers.

    Attributes:
        title: what they are of.
        rows: one or more values for each name.
        heads: of the columns of values; empty where there is one.
    """

    title: str
    rows: Mapping[str, tuple[object, ...]]
    heads: tuple[str, ...] = ()


def label(key: str) -> str:
    """An image key as a person writes it.

    >>> label("mr_t1"), label("pet")
    ('MR T1', 'PET')
    """
    first, _, rest = key.partition("_")
    return " ".join([_WORDS.get(first, first), rest.upper()]).strip()


def words(name: str) -> str:
    """A name of the report as words.

    >>> words("wall_time")
    'wall time'
    """
    return name.replace("_", " ")


def number(value: object) -> str:
    """A number with three digits, a dash where there is none.

    >>> number(0.0123456), number(1234.5), number(None), number(3), number([1.0, 2.5])
    ('0.0123', '1234', '–', '3', '1, 2.5')
    """
    if value is None:
        return "–"
    if isinstance(value, list | tuple):
        return ", ".join(number(v) for v in value)
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def grid(image: Image) -> str:
    """Shape, spacing and units of an image."""
    shape = " × ".join(str(n) for n in image.shape)
    if image.spatial_dims == 2:
        return f"{shape} pixels"
    spacing = " × ".join(f"{s:.3g}" for s in image.spacing)
    return f"{shape} voxels of {spacing} mm, {image.units}"


def length_unit(image: Image) -> str:
    """What a length of the case is given in: the pixel of a picture is its unit."""
    return "mm" if image.spatial_dims == 3 else "px"


def similarity_changes(entry: Mapping[str, Any]) -> list[Change]:
    """The similarities of one moving image.

    Args:
        entry: ``registration.<key>`` of the report.
    """
    after = entry["similarity_after"]
    return [
        _change(name, "", before, after.get(name))
        for name, before in entry["similarity_before"].items()
    ]


def known_truth_changes(scores: Mapping[str, float | None], length: str) -> list[Change]:
    """What the known truth says of one moving image, a row for each measure.

    Single labels stand in ``report.json`` alone: a head has thirty.

    Args:
        scores: ``evaluation.<key>`` of the report: names that end in ``_before``, ``_after`` and
            ``_after_max``.
        length: unit of lengths.
    """
    endings = ("_before", "_after_max", "_after")
    stems = dict.fromkeys(
        name.removesuffix(ending)
        for name in scores
        for ending in endings
        if name.endswith(ending) and "_label_" not in name
    )
    return [
        _change(
            stem,
            length,
            scores.get(f"{stem}_before"),
            scores.get(f"{stem}_after"),
            scores.get(f"{stem}_after_max"),
        )
        for stem in stems
    ]


def numbers_tables(report: Mapping[str, Any]) -> list[NumbersTable]:
    """All other numbers of the report; no table without rows."""
    tables = [
        NumbersTable(f"Harmonization: {label(key)}", _named(scores))
        for key, scores in report["harmonization"].items()
    ]
    tables.append(NumbersTable("Fusion", _named(report["fusion"])))
    tables.extend(
        NumbersTable(f"Registration: {label(key)}", _registration_rows(entry))
        for key, entry in report["registration"].items()
    )
    seconds = {
        words(stage): (times.get("wall_s"), times.get("cpu_s"))
        for stage, times in report["timings"].items()
    }
    tables.append(NumbersTable("Seconds", seconds, ("wall", "CPU")))
    return [table for table in tables if table.rows]


def _registration_rows(entry: Mapping[str, Any]) -> dict[str, tuple[object, ...]]:
    """The pose and the details of one moving image."""
    axes = "R A S mm" if len(entry["translation_mm"]) == 3 else "pixels"
    return {
        f"translation of the centre, {axes}": (entry["translation_mm"],),
        "rotation, degrees": (entry["rotation_deg"],),
        "scale": (entry["scale"],),
        **_named(entry["details"]),
    }


def _named(values: Mapping[str, object]) -> dict[str, tuple[object, ...]]:
    """One value for each name, the names as words."""
    return {words(name): (value,) for name, value in values.items()}


def _change(
    name: str,
    length: str,
    before: float | None,
    after: float | None,
    largest: float | None = None,
) -> Change:
    """A measure before and after, and whether that is better."""
    text, unit, more_is_better = _MEASURES.get(name, (words(name), "", None))
    verdict = ""
    if more_is_better is not None and before is not None and after is not None and before != after:
        verdict = "better" if (after > before) == more_is_better else "worse"
    return Change(text, length if unit == _LENGTH else unit, before, after, largest, verdict)
