"""Pictures on their planes and the tables they stand in: what ``frames.html.j2`` draws."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.report.pictures import Mask, Picture, jpeg_uri
from fusion_pipeline.report.planes import Plane

_LARGEST_ASPECT = 1.15  # height by width; a taller picture is drawn narrower
_NAME_WIDTH = 100  # pixels of the page
_COLUMN_WIDTH = 290
_EDGES = ("left", "right", "top", "bottom")
_LETTERS = ("RL", "AP", "SI")
_SCALE_BARS_MM = (100, 50, 20, 10, 5)
_SHORTEST_ARROW = 1.5  # pixels of the picture


@dataclass(frozen=True)
class ScaleBar:
    """A bar of a round length.

    Attributes:
        length_mm: what it stands for.
        percent: of the picture's width.
    """

    length_mm: int
    percent: float


@dataclass(frozen=True)
class Frame:
    """A picture, the plane it shows, and what is drawn over it.

    Attributes:
        picture: ``(H, W, 3)`` in 0..1.
        plane: the picture's pixels in the world.
        arrows: SVG path in the picture's pixels, see `arrows`; empty for none.
    """

    picture: Picture
    plane: Plane
    arrows: str = ""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.plane.shape

    @property
    def percent(self) -> float:
        """Width on the page, in percent of the column."""
        rows, columns = self.shape
        return min(100.0, 100.0 * _LARGEST_ASPECT * columns / rows)

    @property
    def uri(self) -> str:
        """The picture as a ``data:`` address."""
        return jpeg_uri(self.picture)

    @property
    def letters(self) -> dict[str, str]:
        """The patient's direction at each edge of the picture; empty in 2D."""
        return dict(zip(_EDGES, self.plane.letters, strict=False))

    @property
    def scale_bar(self) -> ScaleBar | None:
        """The longest round length that takes about a third of the width; none in 2D."""
        if not self.plane.letters:
            return None
        width_mm = self.shape[1] * self.plane.mm_per_pixel
        length = next((n for n in _SCALE_BARS_MM if n <= 0.35 * width_mm), 2)
        return ScaleBar(length, 100 * length / width_mm)


@dataclass(frozen=True)
class Heading:
    """The name of a row or column.

    Attributes:
        name: what it shows.
        position: where a plane lies, such as ``S 42 mm``; empty for others.
    """

    name: str
    position: str = ""


@dataclass(frozen=True)
class ColourBar:
    """A colour map with its ticks, left to right.

    Attributes:
        name: what it measures.
        uri: the colours, as a ``data:`` address.
        ticks: evenly spaced.
    """

    name: str
    uri: str
    ticks: Sequence[str]


@dataclass(frozen=True)
class Legend:
    """Coloured squares and their names.

    Attributes:
        title: what the names are.
        entries: name and colour, RGB in 0..1.
    """

    title: str
    entries: Sequence[tuple[str, tuple[float, ...]]]

    @property
    def swatches(self) -> list[tuple[str, str]]:
        """Name and CSS colour of each entry."""
        return [
            (name, f"rgb({','.join(str(round(255 * c)) for c in colour)})")
            for name, colour in self.entries
        ]


@dataclass(frozen=True)
class FrameTable:
    """Pictures in rows and columns, and what is said below them.

    Attributes:
        columns: their headings.
        rows: the heading and the pictures of each row.
        caption: plain text; empty for none.
        legend: below the caption.
        bars: last.
    """

    columns: Sequence[Heading]
    rows: Sequence[tuple[Heading, Sequence[Frame]]]
    caption: str = ""
    legend: Legend | None = None
    bars: Sequence[ColourBar] = ()

    @property
    def width(self) -> int:
        """The most that its pictures can use, in pixels of the page."""
        return _NAME_WIDTH + _COLUMN_WIDTH * len(self.columns)


def plane_heading(plane: Plane) -> Heading:
    """The plane and where it lies: ``axial``, ``S 42 mm``; nothing in 2D."""
    if not plane.letters:
        return Heading("")
    axis = 3 - plane.column_axis - plane.row_axis
    position = float(plane.points[0, 0, axis])
    letter = _LETTERS[axis][0 if position >= 0 else 1]
    return Heading(plane.name, f"{letter} {abs(position):.0f} mm")


def arrows(displacement: Matrix, present: Mask, plane: Plane, along: int = 14) -> str:
    """In-plane arrows over a picture.

    Args:
        displacement: ``(H, W, d)`` mm, as long as they are to be drawn.
        present: ``(H, W)`` where to draw them.
        plane: where the picture lies.
        along: arrows along the longer side.

    Returns:
        An SVG path in the picture's pixels.
    """
    every = max(plane.shape) // along
    paths = []
    for row in range(every // 2, plane.shape[0], every):
        for column in range(every // 2, plane.shape[1], every):
            vector = displacement[row, column] / plane.mm_per_pixel
            # columns and rows run against their world axes
            dx, dy = -vector[plane.column_axis], -vector[plane.row_axis]
            if present[row, column] and np.hypot(dx, dy) >= _SHORTEST_ARROW:
                paths.append(_arrow(column, row, dx, dy))
    return "".join(paths)


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
