"""Label maps of a head, a trunk or a limb, each one different, on any lattice."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from fusion_pipeline.synthesis.frame import Frame, slab_points
from fusion_pipeline.synthesis.head import head_labels
from fusion_pipeline.synthesis.limb import limb_labels
from fusion_pipeline.synthesis.noise import chance, uniform
from fusion_pipeline.synthesis.trunk import trunk_labels

Body = Literal["head", "trunk", "limb"]
_DRAW: dict[str, Callable[[Frame], Tensor]] = {
    "head": head_labels,
    "trunk": trunk_labels,
    "limb": limb_labels,
}
# what a lattice shows of each body: extent in mm along x, y, z; how far its middle may lie off 0
_EXTENT = {
    "head": (170.0, 215.0, 190.0),
    "trunk": (310.0, 215.0, 300.0),
    "limb": (190.0, 190.0, 190.0),
}
_OFFSET = {"head": (8.0, 8.0, 30.0), "trunk": (15.0, 10.0, 90.0), "limb": (20.0, 20.0, 40.0)}


def draw_body(frame: Frame, kind: str) -> Tensor:
    """The label map of one body in a frame, ``(*S)`` int64 of `Tissue`.

    Raises:
        ValueError: the kind is unknown.
    """
    if kind not in _DRAW:
        raise ValueError(f"expected a body of {', '.join(_DRAW)}, got {kind!r}")
    return _DRAW[kind](frame)


def body_label_map(shape: Sequence[int], generator: torch.Generator, kind: Body) -> Tensor:
    """A random body part, in a random pose, zoom and crop.

    Args:
        shape: spatial shape, 2 or 3 numbers; in 2D a slice, most often axial.
        generator: the randomness.
        kind: ``head``, ``trunk`` or ``limb``.

    Returns:
        ``(1, *shape)`` int64 of `Tissue`; 0 is the air around the body.
    """
    if kind not in _DRAW:
        raise ValueError(f"expected a body of {', '.join(_DRAW)}, got {kind!r}")
    matrix = _random_axes(len(shape), generator)
    extent = matrix.abs().T @ torch.tensor(_EXTENT[kind])
    zoom = uniform(generator, 0.75, 1.15)
    spacing = (zoom * extent / torch.tensor([float(n) for n in shape])).tolist()
    if chance(
        generator, 0.6
    ):  # equal voxels: the lattice then shows more along one axis, less along another
        spacing = [float(torch.tensor(spacing).mean())] * len(shape)
    centre = [uniform(generator, -o, o) for o in _OFFSET[kind]]
    if kind == "head":
        centre[2] -= 15.0
    tilt = _small_rotation(generator, 15.0)
    points = slab_points(shape, spacing, tilt @ matrix, centre)
    return draw_body(Frame(points, spacing, generator, bend=uniform(generator, 2.0, 7.0)), kind)[
        None
    ]


def _random_axes(d: int, generator: torch.Generator) -> Tensor:
    """Which patient axis each lattice axis follows, ``(3, d)``: mostly x, y, z; either way."""
    order = torch.arange(3)
    if chance(generator, 0.35):
        order = torch.randperm(3, generator=generator)
    signs = torch.where(torch.rand(3, generator=generator) < 0.5, -1.0, 1.0)
    return (torch.eye(3) * signs)[:, order][:, :d]


def _small_rotation(generator: torch.Generator, max_degrees: float) -> Tensor:
    """A random rotation of up to so many degrees, ``(3, 3)``."""
    axis = torch.randn(3, generator=generator)
    x, y, z = (axis / axis.norm() * uniform(generator, 0, max_degrees) * torch.pi / 180).tolist()
    return torch.linalg.matrix_exp(torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]]))
