"""Pieces of HTML: lettered pictures, tables of them, colour bars, tables of numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.report.pictures import Mask, Picture, jpeg_uri
from fusion_pipeline.report.planes import Plane

_TALLEST = 1.15
_NAME_WIDTH = 100
_COLUMN_WIDTH = 290
_SIDES = ("left", "right", "top", "bottom")
_LETTERS = ("RL", "AP", "SI")
_WORDS = {"ct": "CT", "mr": "MR", "pet": "PET", "spect": "SPECT"}


@dataclass(frozen=True)
class Cell:
    """A picture and the SVG drawn over it."""

    picture: Picture
    svg: str = ""


def label(key: str) -> str:
    """An image key as a person writes it.

    >>> label("mr_t1"), label("pet")
    ('MR T1', 'PET')
    """
    first, _, rest = key.partition("_")
    return " ".join([_WORDS.get(first, first), rest.upper()]).strip()


def number(value: object) -> str:
    """A number with three digits, a dash where there is none.

    >>> number(0.0123456), number(1234.5), number(None), number(3)
    ('0.0123', '1234', '–', '3')
    """
    if value is None:
        return "–"
    if isinstance(value, bool | str | int):
        return escape(str(value))
    if not isinstance(value, float):
        return escape(
            ", ".join(number(v) for v in value) if isinstance(value, list) else str(value)
        )
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def planes_table(
    titles: Sequence[str], rows: Sequence[tuple[Plane, Sequence[Cell]]], caption: str
) -> str:
    """Pictures with one row for each plane.

    Args:
        titles: of the columns, plain text.
        rows: each plane and its pictures.
        caption: HTML below the table.
    """
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    body = "".join(
        f"<tr><th>{_plane_name(plane)}</th>{_cells(cells, [plane] * len(cells))}</tr>"
        for plane, cells in rows
    )
    return _table(head, body, caption, columns=len(titles))


def columns_table(
    rows: Sequence[tuple[str, Sequence[Cell]]], planes: Sequence[Plane], caption: str
) -> str:
    """Pictures with one column for each plane."""
    head = "".join(f"<th>{_plane_name(plane)}</th>" for plane in planes)
    body = "".join(
        f"<tr><th>{escape(name)}</th>{_cells(cells, planes)}</tr>" for name, cells in rows
    )
    return _table(head, body, caption, columns=len(planes))


def arrows(displacement: Matrix, present: Mask, plane: Plane, along: int = 14) -> str:
    """In-plane arrows over a picture.

    Args:
        displacement: ``(H, W, d)`` mm, as long as they are to be drawn.
        present: ``(H, W)`` where to draw them.
        plane: where the picture lies.
        along: arrows along the longer side.

    Returns:
        SVG in the picture's pixels.
    """
    every = max(plane.shape) // along
    lines = []
    for row in range(every // 2, plane.shape[0], every):
        for column in range(every // 2, plane.shape[1], every):
            vector = displacement[row, column] / plane.mm_per_pixel
            # columns and rows run against their world axes
            dx, dy = -vector[plane.column_axis], -vector[plane.row_axis]
            if present[row, column] and np.hypot(dx, dy) >= 1.5:
                lines.append(_arrow(column, row, dx, dy))
    rows, columns = plane.shape
    return f'<svg viewBox="0 0 {columns} {rows}"><path d="{"".join(lines)}"/></svg>'


def colour_bar(name: str, uri: str, ticks: Sequence[str]) -> str:
    """A colour bar with its ticks, left to right."""
    marks = "".join(f"<span>{escape(tick)}</span>" for tick in ticks)
    return (
        f'<div class="bar"><em>{escape(name)}</em>'
        f'<div><img src="{uri}" alt=""><p>{marks}</p></div></div>'
    )


def legend(title: str, entries: Sequence[tuple[str, tuple[float, ...]]]) -> str:
    """Coloured squares and their names."""
    items = "".join(
        f'<span><i style="background:rgb({",".join(str(round(255 * c)) for c in colour)})"></i>'
        f"{escape(name)}</span>"
        for name, colour in entries
    )
    return f'<p class="legend">{escape(title)} {items}</p>'


def numbers_table(title: str, rows: Mapping[str, object], heads: Sequence[str] = ()) -> str:
    """A table of names and numbers; a row may hold several, under ``heads``."""
    if not rows:
        return ""
    head = "".join(f"<th>{escape(h)}</th>" for h in heads)
    body = "".join(
        f"<tr><th>{escape(name)}</th>"
        + "".join(f"<td>{number(v)}</td>" for v in (row if isinstance(row, list) else [row]))
        + "</tr>"
        for name, row in rows.items()
    )
    top = f"<thead><tr><th></th>{head}</tr></thead>" if heads else ""
    return f'<table class="numbers"><caption>{escape(title)}</caption>{top}{body}</table>'


def _table(head: str, body: str, caption: str, *, columns: int) -> str:
    """The frame of a table of pictures, no wider than its pictures can use."""
    width = _NAME_WIDTH + _COLUMN_WIDTH * columns
    note = f'<p class="note">{caption}</p>' if caption else ""
    return (
        f'<table class="pictures" style="max-width:{width}px">'
        f"<thead><tr><th></th>{head}</tr></thead>{body}</table>{note}"
    )


def _cells(cells: Sequence[Cell], planes: Sequence[Plane]) -> str:
    """A row's pictures; the scale bar only in the first."""
    return "".join(
        f"<td>{_framed(cell, plane, with_scale=n == 0)}</td>"
        for n, (cell, plane) in enumerate(zip(cells, planes, strict=True))
    )


def _framed(cell: Cell, plane: Plane, *, with_scale: bool) -> str:
    """A picture with the letters of its edges."""
    rows, columns = plane.shape
    width = min(100.0, 100.0 * _TALLEST * columns / rows)
    letters = "".join(
        f'<b class="{side}">{letter}</b>'
        for side, letter in zip(_SIDES, plane.letters, strict=False)
    )
    scale = _scale_bar(plane) if with_scale and plane.letters else ""
    return (
        f'<div class="frame" style="width:{width:.1f}%">'
        f'<img src="{jpeg_uri(cell.picture)}" width="{columns}" height="{rows}" alt="">'
        f"{cell.svg}{letters}{scale}</div>"
    )


def _scale_bar(plane: Plane) -> str:
    """A bar of a round length."""
    width = plane.shape[1] * plane.mm_per_pixel
    length = next((n for n in (100, 50, 20, 10, 5) if n <= 0.35 * width), 2)
    return f'<i class="scale" style="width:{100 * length / width:.1f}%"><s>{length} mm</s></i>'


def _plane_name(plane: Plane) -> str:
    """The plane and where it lies: ``axial S 42 mm``."""
    if not plane.letters:
        return ""
    axis = 3 - plane.column_axis - plane.row_axis
    position = float(plane.points[0, 0, axis])
    letter = _LETTERS[axis][0 if position >= 0 else 1]
    return f"{plane.name}<small>{letter} {abs(position):.0f} mm</small>"


def _arrow(x: float, y: float, dx: float, dy: float) -> str:
    """A shaft and two barbs, as an SVG path."""
    tip_x, tip_y = x + dx, y + dy
    back = 0.3
    left = (tip_x - back * (dx + 0.6 * dy), tip_y - back * (dy - 0.6 * dx))
    right = (tip_x - back * (dx - 0.6 * dy), tip_y - back * (dy + 0.6 * dx))
    return (
        f"M{x} {y}L{tip_x:.1f} {tip_y:.1f}"
        f"M{left[0]:.1f} {left[1]:.1f}L{tip_x:.1f} {tip_y:.1f}L{right[0]:.1f} {right[1]:.1f}"
    )
