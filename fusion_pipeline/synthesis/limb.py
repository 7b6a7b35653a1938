"""A thigh, calf or arm: skin, fat, muscles between thin septa, bones, vessels, maybe a tumour."""

import torch
from torch import Tensor

from fusion_pipeline.synthesis.frame import Frame, Tissue
from fusion_pipeline.synthesis.noise import chance, choice

_MUSCLES = (Tissue.MUSCLE, Tissue.MUSCLE_B, Tissue.MUSCLE_C)


def limb_labels(frame: Frame) -> Tensor:
    """Draw one limb or two side by side.

    Args:
        frame: the lattice; the limb runs along z.

    Returns:
        ``(*S)`` int64 of `Tissue`.
    """
    radius = frame.number(45.0, 85.0)
    two = chance(frame.generator, 0.4)
    offset = radius * frame.number(0.95, 1.3)
    labels = torch.zeros(frame.shape, dtype=torch.int64)
    for side in (-1.0, 1.0) if two else (0.0,):
        one = _one_limb(frame, side * offset, radius * frame.number(0.95, 1.05))
        labels = torch.where(one > 0, one, labels)
    return labels


def _one_limb(frame: Frame, centre: float, radius: float) -> Tensor:
    """A single limb about the line x = centre."""
    taper = 1.0 + frame.number(-0.0015, 0.0015) * frame.z
    oval = frame.number(0.85, 1.15)
    skin = frame.column((centre, 0.0), (radius * oval, radius / oval)) / taper
    skin = skin + 0.03 * radius * frame.noise(60.0)
    fat = frame.number(0.05, 0.3) * radius * (1 + 0.3 * frame.noise(80.0)).clamp_min(0.3)
    labels = _layers(skin, fat)
    flesh = labels == Tissue.MUSCLE
    labels = _compartments(frame, labels, flesh, (centre, radius))
    labels = _vessels(frame, labels, flesh, (centre, radius))
    labels = _bones(frame, labels, (centre, radius))
    if chance(frame.generator, 0.6):
        labels = _tumour(frame, labels, skin < -2.0, (centre, radius))
    return labels


def _layers(skin: Tensor, fat: Tensor) -> Tensor:
    """Air, skin, subcutaneous fat, flesh."""
    labels = torch.where(skin < 0, int(Tissue.SKIN), int(Tissue.AIR))
    labels = torch.where(skin < -2.0, int(Tissue.FAT), labels)
    return torch.where(skin < -2.0 - fat, int(Tissue.MUSCLE), labels)


def _compartments(
    frame: Frame, labels: Tensor, flesh: Tensor, place: tuple[float, float]
) -> Tensor:
    """Muscles: cells about wandering centres, with fat where two cells meet."""
    centre, radius = place
    count = 5 + choice(frame.generator, 7)
    bend = 0.08 * radius * frame.noises(30.0, 2)
    u, v = frame.x - centre + bend[0], frame.y + bend[1]
    first = torch.full(frame.shape, torch.inf)
    second = first.clone()
    nearest = torch.zeros(frame.shape, dtype=torch.int64)
    for cell in range(count):
        angle, far = frame.number(0, 6.283), radius * frame.number(0.2, 0.85)
        tilt = frame.number(-0.2, 0.2) * frame.z
        a = far * float(torch.cos(torch.tensor(angle)))
        b = far * float(torch.sin(torch.tensor(angle)))
        distance = torch.sqrt((u - a - tilt) ** 2 + (v - b + tilt) ** 2)
        closer = distance < first
        second = torch.where(closer, first, torch.minimum(second, distance))
        nearest = torch.where(closer, int(_MUSCLES[cell % 3]), nearest)
        first = torch.minimum(first, distance)
    labels = torch.where(flesh, nearest, labels)
    gap = frame.number(0.5, 3.5) * (1 + 0.6 * frame.noise(40.0))
    return torch.where(flesh & (second - first < gap), int(Tissue.FAT), labels)


def _vessels(frame: Frame, labels: Tensor, flesh: Tensor, place: tuple[float, float]) -> Tensor:
    """Arteries and veins along the limb."""
    centre, radius = place
    for _ in range(2 + choice(frame.generator, 3)):
        a, b = frame.number(-0.5, 0.5) * radius, frame.number(-0.5, 0.5) * radius
        drift = frame.number(-0.15, 0.15) * frame.z
        width = frame.number(2.0, 4.5)
        vessel = frame.column((centre + a + drift, b - drift), (width, width))
        labels = torch.where(flesh & (vessel < 2.0), int(Tissue.FAT), labels)
        labels = torch.where(flesh & (vessel < 0), int(Tissue.BLOOD), labels)
    return labels


def _bones(frame: Frame, labels: Tensor, place: tuple[float, float]) -> Tensor:
    """One long bone or two; towards a joint they widen and the cortex thins."""
    centre, radius = place
    flare = ((frame.number(-1, 1) * frame.z - frame.number(20, 90)) / 25.0).clamp(0, 2)
    pairs = [(frame.number(-0.15, 0.15), frame.number(-0.15, 0.15), frame.number(0.17, 0.24))]
    if chance(frame.generator, 0.4):
        pairs.append((frame.number(0.35, 0.5), frame.number(-0.3, 0.3), frame.number(0.09, 0.14)))
    for a, b, share in pairs:
        width = share * radius
        lean = frame.number(-0.1, 0.1) * frame.z
        bone = frame.column((centre + a * radius + lean, b * radius), (width, width * 0.9))
        bone = bone - 0.6 * width * flare + 0.08 * width * frame.noise(25.0)
        cortex = width * frame.number(0.25, 0.45) / (1 + 1.5 * flare)
        core = torch.where(flare > 0.3, int(Tissue.SPONGY_BONE), int(Tissue.MARROW))
        labels = torch.where(bone < 0, int(Tissue.COMPACT_BONE), labels)
        labels = torch.where(bone < -cortex, core, labels)
    return labels


def _tumour(frame: Frame, labels: Tensor, body: Tensor, place: tuple[float, float]) -> Tensor:
    """A lobed mass, often dead at its centre."""
    centre, radius = place
    size = radius * frame.number(0.2, 0.6)
    at = (
        centre + frame.number(-0.5, 0.5) * radius,
        frame.number(-0.5, 0.5) * radius,
        frame.number(-0.5, 0.5) * radius,
    )
    mass = frame.ellipsoid(at, (size, size * frame.number(0.7, 1.0), size * frame.number(0.8, 1.8)))
    mass = mass + 0.12 * size * frame.noise(max(8.0, 0.6 * size))
    labels = torch.where(body & (mass < 0), int(Tissue.TUMOUR), labels)
    core = mass < -size * frame.number(0.3, 1.0) + 0.2 * size * frame.noise(max(6.0, 0.5 * size))
    return torch.where(body & core, int(Tissue.NECROSIS), labels)
