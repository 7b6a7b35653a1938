"""Tumours that PET sees best."""

import torch
from torch import Tensor

from fusion_pipeline.synthesis.frame import Frame, Tissue
from fusion_pipeline.synthesis.noise import choice

# where lesions grow, and their radius in mm
_SITES: dict[str, tuple[tuple[Tissue, float], ...]] = {
    "head": ((Tissue.WHITE, 12.0), (Tissue.WHITE, 6.0)),
    "trunk": ((Tissue.LIVER, 14.0), (Tissue.LUNG, 10.0)),
}


def with_lesions(frame: Frame, labels: Tensor, body: str) -> Tensor:
    """Put one lesion or two into a label map: lobed, the larger one dead at its centre.

    Args:
        frame: the lattice.
        labels: ``(*S)`` of `Tissue`.
        body: ``head`` or ``trunk``.

    Returns:
        ``(*S)``; unchanged where the tissue is not in view.
    """
    sites = _SITES[body][: 1 + choice(frame.generator, 2)]
    for tissue, radius in sites:
        size = radius * frame.number(0.85, 1.15)
        place = _deep_inside(frame, labels == tissue, size, body)
        if place is not None:
            labels = _grown(frame, labels, place, size)
    return labels


def _deep_inside(
    frame: Frame, home: Tensor, size: float, body: str
) -> tuple[float, float, float] | None:
    """A random point of a tissue, off the middle line; in a head above the skull base."""
    good = home & (frame.x.abs() > 1.6 * size)
    if body == "head":
        good &= (frame.z > 2.0) & (frame.x.abs() < 44.0) & (frame.y.abs() < 55.0)
    found = torch.nonzero(good)
    if len(found) == 0:
        return None
    at = tuple(found[choice(frame.generator, len(found))].tolist())
    return float(frame.x[at]), float(frame.y[at]), float(frame.z[at])


def _grown(frame: Frame, labels: Tensor, place: tuple[float, float, float], size: float) -> Tensor:
    """The lesion itself."""
    radii = [size * frame.number(0.8, 1.2) for _ in range(3)]
    mass = frame.ellipsoid(place, radii) + 0.1 * size * frame.noise(max(6.0, 0.7 * size))
    labels = torch.where(mass < 0, int(Tissue.TUMOUR), labels)
    return torch.where(mass < -max(0.5 * size, 5.0), int(Tissue.NECROSIS), labels)
