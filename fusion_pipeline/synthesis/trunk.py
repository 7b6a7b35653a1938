"""Chest and belly: wall, ribs, spine, pelvis, and the organs inside."""

import torch
from torch import Tensor

from fusion_pipeline.synthesis.frame import Frame, Tissue, blend


def trunk_labels(frame: Frame) -> Tensor:
    """Draw a trunk about 290 mm wide; z = 0 lies under the dome of the diaphragm.

    Args:
        frame: the lattice.

    Returns:
        ``(*S)`` int64 of `Tissue`.
    """
    waist = 1.0 - 0.06 * torch.cos((frame.z + 60.0) / 60.0)
    skin = frame.column((0.0, 0.0), (frame.number(136, 152), frame.number(92, 106))) / waist
    skin = skin + 3.0 * frame.noise(70.0)
    front = (frame.y / 100.0).clamp(-1, 1)
    fat = frame.number(6, 16) * (1 + 0.4 * front + 0.2 * frame.noise(80.0)).clamp_min(0.3)
    wall = skin + fat + 2.0
    cavity = wall + 11.0 + 2.0 * frame.noise(50.0)
    labels = torch.where(skin < 0, int(Tissue.SKIN), int(Tissue.AIR))
    labels = torch.where(skin < -2.0, int(Tissue.FAT), labels)
    labels = torch.where(wall < 0, int(Tissue.MUSCLE), labels)
    labels = torch.where(_seams(frame) & (wall < 0), int(Tissue.FAT), labels)
    labels = torch.where(cavity < 0, int(Tissue.FAT), labels)
    dome = 12.0 + 28.0 * (1 - (frame.x.abs() / 110.0) ** 2 - (frame.y / 100.0) ** 2).clamp_min(-2)
    above = frame.z - dome + 2.0 * frame.noise(50.0)
    labels = _belly(frame, labels, (cavity < 0) & (above < -3.0))
    labels = _chest(frame, labels, (cavity < 0) & (above > 0), (cavity < 0) & (above > -3.0))
    labels = _vessels(frame, labels, cavity < 0)
    labels = _ribs(frame, labels, wall, cavity)
    return _spine_and_pelvis(frame, labels, wall)


def _seams(frame: Frame) -> Tensor:
    """Fat between the muscles of back and wall."""
    return frame.noise(28.0).abs() < 0.08


def _put(labels: Tensor, where: Tensor, tissue: Tissue) -> Tensor:
    return torch.where(where, int(tissue), labels)


def _belly(frame: Frame, labels: Tensor, room: Tensor) -> Tensor:
    """Organs under the diaphragm; the right side is x > 0."""
    loops = frame.noise(17.0) + 0.3 * frame.noise(8.0)
    bowel = room & (frame.z < -20.0) & (frame.y > -35.0) & (loops > -0.3)
    labels = _put(labels, bowel, Tissue.BOWEL)
    gas = bowel & (loops > 0.75) & (frame.noise(40.0) + 0.012 * frame.y > 0.1)
    labels = _put(labels, gas, Tissue.CAVITY)
    bumps = 2.5 * frame.noise(30.0)
    stomach = frame.ellipsoid((-48.0, 28.0, 0.0), (34.0, 32.0, 40.0)) + bumps
    labels = _put(labels, room & (stomach < 0), Tissue.BOWEL)
    labels = _put(labels, room & (stomach < -4.0) & (frame.y > 42.0), Tissue.CAVITY)
    liver = blend(
        frame.ellipsoid((60.0, 8.0, -5.0), (62.0, 72.0, 62.0)),
        frame.ellipsoid((8.0, 40.0, 8.0), (60.0, 34.0, 26.0)),
        12.0,
    )
    labels = _put(labels, room & (liver + bumps < 0), Tissue.LIVER)
    spleen = frame.ellipsoid((-92.0, -32.0, -4.0), (26.0, 38.0, 42.0)) + bumps
    labels = _put(labels, room & (spleen < 0), Tissue.SPLEEN)
    kidney = frame.pair((54.0, -46.0, -62.0), (25.0, 23.0, 48.0)) + bumps
    labels = _put(labels, room & (kidney < 5.0) & (kidney > 0), Tissue.FAT)
    labels = _put(labels, room & (kidney < 0), Tissue.KIDNEY)
    hilum = frame.pair((40.0, -42.0, -62.0), (12.0, 8.0, 22.0))
    labels = _put(labels, room & (hilum < 0), Tissue.FAT)
    bladder = frame.ellipsoid((0.0, 22.0, -168.0), (34.0, 28.0, 26.0)) + bumps
    return _put(labels, room & (bladder < 0), Tissue.URINE)


def _chest(frame: Frame, labels: Tensor, room: Tensor, diaphragm: Tensor) -> Tensor:
    """Lungs with their vessels, heart, diaphragm."""
    labels = _put(labels, diaphragm & ~room, Tissue.MUSCLE)
    middle = frame.column((0.0, 0.0), (26.0, 70.0)) + 3.0 * frame.noise(40.0)
    lung = room & (middle > 0)
    labels = _put(labels, lung, Tissue.LUNG)
    hilar = torch.exp(-(((frame.x.abs() - 30.0) / 55.0) ** 2) - (frame.y / 60.0) ** 2)
    twigs = frame.noise(11.0) ** 2 + frame.noise(11.0) ** 2
    labels = _put(labels, lung & (twigs < 0.14 * hilar), Tissue.BLOOD)
    heart = frame.ellipsoid((-22.0, 24.0, 62.0), (52.0, 42.0, 42.0)) + 2.0 * frame.noise(40.0)
    labels = _put(labels, room & (heart < 0), Tissue.HEART)
    chambers = torch.minimum(
        frame.ellipsoid((-38.0, 20.0, 60.0), (24.0, 22.0, 28.0)),
        frame.ellipsoid((0.0, 26.0, 64.0), (22.0, 26.0, 30.0)),
    )
    return _put(labels, room & (chambers < 0), Tissue.BLOOD)


def _vessels(frame: Frame, labels: Tensor, room: Tensor) -> Tensor:
    """Aorta, caval vein, windpipe."""
    sway = 3.0 * frame.noise(90.0)
    aorta = frame.column((-12.0 + sway, -32.0), (11.0, 11.0))
    vein = frame.column((18.0 + sway, -30.0), (12.0, 9.0))
    labels = _put(labels, room & (torch.minimum(aorta, vein) < 0), Tissue.BLOOD)
    airway = frame.column((3.0, -8.0), (8.0, 8.0))
    return _put(labels, room & (airway < 0) & (frame.z > 105.0), Tissue.CAVITY)


def _ribs(frame: Frame, labels: Tensor, wall: Tensor, cavity: Tensor) -> Tensor:
    """Bands that run down to the front in the chest wall, and the breastbone."""
    phase = (frame.z + 0.45 * frame.y - 0.1 * frame.x.abs()) * (6.283 / 26.0)
    shell = (
        (wall < -1.5) & (cavity > -2.5) & (frame.z + 0.3 * frame.y > -35.0 + 0.2 * frame.x.abs())
    )
    band = torch.cos(phase) + 0.1 * frame.noise(30.0)
    ribs = shell & (frame.x.abs() > 18.0)
    labels = _put(labels, ribs & (band > 0.35), Tissue.COMPACT_BONE)
    labels = _put(labels, ribs & (band > 0.7) & (cavity > 0.5) & (wall < -4), Tissue.SPONGY_BONE)
    sternum = shell & (frame.y > 0) & (frame.x.abs() < 17.0) & (frame.z > 25.0)
    labels = _put(labels, sternum, Tissue.COMPACT_BONE)
    return _put(labels, sternum & (frame.x.abs() < 14.0) & (cavity > 0.5), Tissue.SPONGY_BONE)


def _spine_and_pelvis(frame: Frame, labels: Tensor, wall: Tensor) -> Tensor:
    """Vertebrae, discs, cord, muscles of the back, iliac wings and hips."""
    back = -62.0 + 6.0 * torch.cos(frame.z / 70.0)
    erector = frame.pair((30.0, -86.0, 0.0), (25.0, 17.0, 400.0))
    psoas = frame.pair((33.0, -58.0, -120.0), (17.0, 17.0, 90.0))
    flesh = torch.minimum(erector, psoas)
    labels = _put(labels, (flesh < 0) & (wall < 3.0), Tissue.MUSCLE_B)
    body = frame.column((0.0, back), (21.0, 17.0)) + 1.2 * torch.cos(frame.z * (12.566 / 34.0))
    arch = frame.column((0.0, back - 26.0), (17.0, 15.0))
    level = torch.cos(frame.z * (6.283 / 34.0))
    process = (
        (frame.x.abs() < 4.0) & (frame.y < back - 34.0) & (frame.y > back - 56.0) & (level > -0.2)
    )
    wings = (frame.x.abs() < 42.0) & ((frame.y - back + 22.0).abs() < 5.0) & (level > 0.55)
    hard = (arch < 0) | ((process | wings) & (wall < -2.0))
    labels = _put(labels, hard, Tissue.COMPACT_BONE)
    labels = _put(labels, frame.column((0.0, back - 25.0), (10.0, 9.0)) < 0, Tissue.CSF)
    labels = _put(labels, frame.column((0.0, back - 25.0), (5.0, 4.0)) < 0, Tissue.WHITE)
    labels = _put(labels, body < 0, Tissue.COMPACT_BONE)
    labels = _put(labels, body < -2.0, Tissue.SPONGY_BONE)
    labels = _put(labels, (body < 0) & (level < -0.8), Tissue.DISC)
    ilium = frame.pair((62.0, -15.0, -175.0), (46.0, 62.0, 66.0)) + 2.0 * frame.noise(40.0)
    pelvis = (ilium.abs() < 6.0) & (wall < -3.0) & (frame.z < -110.0 + 0.2 * frame.y)
    pelvis &= (frame.x.abs() > 28.0) & (frame.y < 45.0)
    labels = _put(labels, pelvis, Tissue.COMPACT_BONE)
    return _put(labels, pelvis & (ilium.abs() < 3.5), Tissue.SPONGY_BONE)
