"""Titled panels in rows, drawn to the pixels of one picture."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from fusion_pipeline.report.pictures import Picture
from fusion_pipeline.report.planes import Pixels

WIDTH = 1000  # pixels of a drawn picture: what a browser's window shows without scrolling
_DPI = 100
_TITLE = 40  # pixels of two lines of the font below
_FONT = 9  # points
_GAP = 6  # pixels
_TALLEST = 1.25  # height of a panel in units of its width; a longer picture is drawn narrower
_AXES = (0.17, 0.17, 0.80, 0.81)  # left, bottom, width, height of a plot within its panel

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class PicturePanel:
    """A picture.

    Attributes:
        title: at most two lines.
        picture: ``(H, W, 3)``.
        legend: names and colours of what it shows.
    """

    title: str
    picture: Picture
    legend: tuple[tuple[str, Colour], ...] = ()


@dataclass(frozen=True)
class Curve:
    """Output against input.

    Attributes:
        name: for the legend.
        x: ``(n,)`` input, rising.
        low: ``(n,)`` 5th percentile of the output there.
        median: ``(n,)``.
        high: ``(n,)`` 95th percentile.
    """

    name: str
    x: Pixels
    low: Pixels
    median: Pixels
    high: Pixels


@dataclass(frozen=True)
class CurvePanel:
    """Curves with their bands; the output's axis goes from 0 to 1.

    Attributes:
        title: at most two lines.
        curves: one or more.
        x_label: what the input is measured in.
        y_label: the output.
    """

    title: str
    curves: tuple[Curve, ...]
    x_label: str
    y_label: str


Panel = PicturePanel | CurvePanel


def draw(rows: Sequence[Sequence[Panel]]) -> npt.NDArray[np.uint8]:
    """Draw rows of panels, each row as wide as the whole.

    Args:
        rows: one or more panels in each.

    Returns:
        ``(H, 1000, 3)``.
    """
    heights = [_height(row) for row in rows]
    total = sum(heights) + len(rows) * _TITLE + _GAP
    # a figure of its own and no pyplot: nothing global is touched, nothing has to be closed
    figure = Figure(figsize=(WIDTH / _DPI, total / _DPI), dpi=_DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    top = 0.0
    for row, height in zip(rows, heights, strict=True):
        width = WIDTH / len(row)
        for column, panel in enumerate(row):
            left, upper = column * width + _GAP / 2, top + _TITLE
            box = (left / WIDTH, 1 - (upper + height) / total, (width - _GAP) / WIDTH)
            _draw_panel(figure, panel, (*box, height / total))
        top += _TITLE + height
    canvas.draw()
    return np.array(canvas.buffer_rgba(), dtype=np.uint8)[..., :3]


def _height(row: Sequence[Panel]) -> float:
    """Pixels of the pictures of a row, without their titles."""
    width = WIDTH / len(row) - _GAP
    shapes = [p.picture.shape for p in row if isinstance(p, PicturePanel)]
    aspect = max((h / w for h, w, _ in shapes), default=1.0)
    return width * min(aspect, _TALLEST)


def _draw_panel(figure: Figure, panel: Panel, box: tuple[float, float, float, float]) -> None:
    """Draw a panel in its box: left, bottom, width, height, as shares of the figure."""
    left, bottom, width, height = box
    if isinstance(panel, PicturePanel):
        axes = figure.add_axes(box)
        # a sharp pixel is honest, and an event file of sharp pixels is half as large
        smaller = max(panel.picture.shape[:2]) < width * WIDTH
        axes.imshow(
            np.clip(panel.picture, 0, 1), interpolation="nearest" if smaller else "antialiased"
        )
        axes.set_axis_off()
        patches = [Patch(color=colour, label=name) for name, colour in panel.legend]
        if patches:
            axes.legend(handles=patches, fontsize=_FONT, loc="lower left", framealpha=0.7)
    else:
        x, y, w, h = _AXES
        inner = (left + x * width, bottom + y * height, w * width, h * height)
        axes = figure.add_axes(inner)
        _draw_curves(axes, panel)
    figure.text(
        left + width / 2,
        bottom + height + 4 / (figure.get_figheight() * _DPI),
        panel.title,
        ha="center",
        va="bottom",
        fontsize=_FONT,
    )


def _draw_curves(axes: Axes, panel: CurvePanel) -> None:
    """Each curve's median and its band."""
    for curve in panel.curves:
        (line,) = axes.plot(curve.x, curve.median, label=curve.name, linewidth=1.5)
        axes.fill_between(curve.x, curve.low, curve.high, color=line.get_color(), alpha=0.2)
    axes.set_ylim(0, 1)
    axes.set_xlabel(panel.x_label, fontsize=_FONT - 1, labelpad=1)
    axes.set_ylabel(panel.y_label, fontsize=_FONT - 1, labelpad=1)
    axes.tick_params(labelsize=_FONT - 2, pad=1)
    axes.grid(alpha=0.3)
    if len(panel.curves) > 1:
        axes.legend(fontsize=_FONT - 2, loc="upper left", framealpha=0.7)
