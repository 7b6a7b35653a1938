"""A head: scalp, skull with diploe, folded brain, cerebellum, eyes, sinuses, neck."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fusion_pipeline.geometry import identity_points, sample
from fusion_pipeline.synthesis.frame import Frame, Tissue, blend
from fusion_pipeline.synthesis.noise import gaussian_blur


def head_labels(frame: Frame) -> Tensor:
    """Draw a head about 155 mm wide and 195 mm long; the middle of the brain lies at 0.

    Args:
        frame: the lattice.

    Returns:
        ``(*S)`` int64 of `Tissue`.
    """
    head = _Head.of(frame)
    _soft_parts(head)
    _neck(head.part((-70, -110, -300), (70, 60, -50)))
    _face(head.part((-75, -15, -300), (75, 110, -35)))
    _skull(head)
    _skull_base(head.part((-80, -50, -85), (80, 30, -30)))
    _air(head.part((-100, -40, -300), (100, 120, 5)))
    _orbits(head.part((-55, 15, -55), (55, 85, -8)))
    _cerebrum(head.part((-75, -95, -80), (75, 95, 80)))
    _hindbrain(head.part((-60, -95, -75), (60, 25, -10)))
    _deep_brain(head.part((-48, -68, -35), (48, 50, 32)))
    _canal(head.part((-25, -75, -300), (25, 0, -40)))
    return head.labels.long()


@dataclass(frozen=True)
class _Head:
    """The label map that is being drawn, and shapes that several parts need, in mm.

    Attributes:
        frame: the lattice.
        labels: ``(*S)`` uint8, drawn in place.
        skin: signed distance to the outer surface of head and neck.
        outer: to the skull's outer table, open below.
        inner: to its inner table; with ``base`` the room of the brain.
        base: height above the skull base, negative below it.
    """

    frame: Frame
    labels: Tensor
    skin: Tensor
    outer: Tensor
    inner: Tensor
    base: Tensor

    def part(self, low: Sequence[float], high: Sequence[float]) -> "_Head":
        """A box of the patient, as views: most parts of a head are small."""
        frame, box = self.frame.part(low, high)
        shapes = (self.labels, self.skin, self.outer, self.inner, self.base)
        return _Head(frame, *[shape[box] for shape in shapes])

    @classmethod
    def of(cls, frame: Frame) -> "_Head":
        """Draw the surfaces."""
        egg = copy.copy(frame)
        egg.x = frame.x * (1.0 + 0.0011 * frame.y)  # the forehead is narrower than the occiput
        outer = egg.ellipsoid((0.0, 0.0, 0.0), (71.0, 90.0, 76.0)) + 0.8 * frame.noise(60.0)
        thick = (5.8 + 1.0 * frame.noise(50.0)).clamp(3.8, 8.0)
        face = frame.ellipsoid((0.0, 38.0, -70.0), (62.0, 58.0, 66.0))
        nose = frame.ellipsoid((0.0, 96.0, -56.0), (12.0, 17.0, 17.0))
        bridge = frame.ellipsoid((0.0, 88.0, -40.0), (9.0, 12.0, 22.0))
        neck = frame.column((0.0, -22.0 - 0.12 * (frame.z + 80.0)), (58.0, 60.0))
        neck = torch.maximum(neck, frame.z + 40.0)
        scalp = outer - 6.0
        skin = blend(blend(scalp, face, 20.0), neck, 18.0)
        skin = blend(blend(skin, nose, 8.0), bridge, 8.0)
        skin = skin + 0.8 * frame.noise(35.0)
        base = frame.z - _floor(frame) - 1.2 * frame.noise(18.0)
        labels = torch.zeros(frame.shape, dtype=torch.uint8)
        return cls(frame, labels, skin, outer, outer + thick, base)


def _floor(frame: Frame) -> Tensor:
    """Height of the skull base: roofs of the orbits, middle fossae, saddle, posterior fossa."""
    side = frame.x.abs()
    front = -31.0 + 7.0 * torch.exp(-(((side - 30.0) / 15.0) ** 2)) + 0.12 * (frame.y - 50.0)
    middle = -37.0 - 12.0 * torch.exp(-(((side - 36.0) / 15.0) ** 2))
    back = -68.0 + 0.008 * side**2 + 0.006 * (frame.y + 36.0) ** 2
    ridge = torch.sigmoid((frame.y + 16.0 + 0.25 * side) / 4.0)
    edge = torch.sigmoid((frame.y - 24.0 - 0.1 * side) / 3.0)
    return torch.lerp(torch.lerp(back, middle, ridge), front, edge)


def _put(labels: Tensor, where: Tensor, tissue: Tissue) -> None:
    labels.masked_fill_(where, int(tissue))


def _soft_parts(head: _Head) -> None:
    """Ears, skin, fat and the muscles under it."""
    frame, labels = head.frame, head.labels
    ear = frame.pair((74.0, -16.0, -34.0), (8.0, 14.0, 27.0)) + 1.5 * frame.noise(12.0)
    _put(labels, (head.skin < 0) | (ear < 0), Tissue.SKIN)
    below = (-(frame.z + 20.0) / 40.0).clamp(0, 1)
    fat = 2.0 + (1.5 + 4.0 * below) * (1 + 0.4 * frame.noise(40.0)).clamp_min(0.2)
    _put(labels, head.skin < -2.0, Tissue.FAT)
    _put(labels, head.skin < -2.0 - fat, Tissue.MUSCLE)
    nose = frame.ellipsoid((0.0, 98.0, -56.0), (10.0, 16.0, 16.0))
    _put(labels, (nose < 0) & (head.skin < -2.5), Tissue.MUSCLE_C)  # cartilage
    temporal = frame.pair((66.0, 22.0, -14.0), (13.0, 34.0, 34.0))
    _put(labels, (temporal < 0) & (head.skin < -3.5), Tissue.MUSCLE_B)
    _put(labels, (frame.noise(16.0).abs() < 0.13) & (head.skin < -4.0) & (below > 0.5), Tissue.FAT)


def _neck(head: _Head) -> None:
    """Muscles of the neck, vessels, vertebrae."""
    frame, labels = head.frame, head.labels
    low = frame.z < -68.0
    lean = -30.0 - 0.1 * (frame.z + 70.0)
    for centre, radii, tissue in (
        ((17.0, -62.0, -115.0), (13.0, 15.0, 60.0), Tissue.MUSCLE_B),
        ((36.0, -50.0, -115.0), (12.0, 20.0, 60.0), Tissue.MUSCLE_C),
        ((48.0, -12.0, -115.0), (8.0, 16.0, 60.0), Tissue.MUSCLE_B),
    ):
        muscle = frame.pair(centre, radii) + 1.2 * frame.noise(20.0)
        _put(labels, low & (muscle < 1.5) & (muscle > 0) & (labels > Tissue.FAT), Tissue.FAT)
        _put(labels, low & (muscle < 0) & (labels > Tissue.SKIN), tissue)
    for x, y, radius in ((27.0, -2.0, 3.5), (32.0, -10.0, 5.0)):
        vessel = frame.tube((x, y, -52.0), (x + 2.0, y - 8.0, -240.0), radius)
        _put(labels, (vessel < 1.5) & low, Tissue.FAT)
        _put(labels, (vessel < 0) & low, Tissue.BLOOD)
    body = frame.column((0.0, lean + 16.0), (11.0, 9.0))
    arch = frame.column((0.0, lean), (17.0, 14.0))
    level = torch.cos((frame.z + 72.0) * (6.283 / 17.0))
    spine = (frame.x.abs() < 4.0) & (frame.y < lean - 8.0) & (frame.y > lean - 34.0) & (level > 0.3)
    wings = (frame.x.abs() < 30.0) & ((frame.y - lean - 8.0).abs() < 4.5) & (level > 0.2)
    hard = low & ((arch < 0) | (body < 0) | spine | wings)
    _put(labels, hard, Tissue.COMPACT_BONE)
    _put(labels, low & (torch.minimum(body, arch) < -1.8), Tissue.SPONGY_BONE)
    _put(labels, low & (body < 0) & (level < -0.85), Tissue.DISC)


def _face(head: _Head) -> None:
    """Jaws, teeth, cheekbones, tongue, masseters, fat of the cheek."""
    frame, labels = head.frame, head.labels
    deep = head.skin < -5.0
    cheek = frame.pair((40.0, 52.0, -72.0), (13.0, 18.0, 20.0)) + 1.5 * frame.noise(15.0)
    _put(labels, deep & (cheek < 0), Tissue.FAT)
    masseter = frame.pair((56.0, 22.0, -78.0), (9.0, 18.0, 30.0))
    _put(labels, deep & (masseter < 0), Tissue.MUSCLE_C)
    pterygoid = frame.pair((32.0, 18.0, -72.0), (11.0, 15.0, 22.0))
    _put(labels, deep & (pterygoid < 0), Tissue.MUSCLE_B)
    tongue = frame.ellipsoid((0.0, 42.0, -94.0), (25.0, 34.0, 20.0))
    _put(labels, deep & (tongue < 1.8), Tissue.FAT)
    _put(labels, deep & (tongue < 0), Tissue.MUSCLE)
    arc = frame.column((0.0, 30.0), (40.0, 52.0))
    palate = ((frame.z + 74.0).abs() < 2.0) & (arc < 0) & (frame.y > 22.0)
    upper = (arc.abs() < 5.0) & (frame.y > 38.0) & ((frame.z + 77.0).abs() < 8.0)
    jaw = (arc.abs() < 6.0) & (frame.y > 24.0) & ((frame.z + 110.0).abs() < 13.0)
    ramus = frame.tube((50.0, 22.0, -112.0), (50.0, 6.0, -52.0), 5.5)
    cheekbone = frame.tube((46.0, 60.0, -46.0), (64.0, 6.0, -44.0), 3.5)
    corner = frame.tube((36.0, 68.0, -52.0), (54.0, 52.0, -46.0), 6.0)
    hard = palate | upper | jaw | (torch.minimum(torch.minimum(ramus, cheekbone), corner) < 0)
    _put(labels, deep & hard, Tissue.COMPACT_BONE)
    core = (jaw & (arc.abs() < 3.5)) | (ramus < -2.5) | (corner < -2.5)
    _put(labels, deep & core, Tissue.SPONGY_BONE)
    crown = (arc.abs() < 4.0) & (frame.y > 36.0) & ((frame.z + 91.0).abs() < 6.5)
    gap = torch.cos(torch.atan2(frame.x, frame.y - 30.0) * 32.0) > -0.7
    _put(labels, deep & crown & gap, Tissue.COMPACT_BONE)


def _skull(head: _Head) -> None:
    """The vault: two tables with diploe between."""
    labels = head.labels
    above = head.base > -5.0
    shell = (head.outer < 0) & (head.inner > 0) & above
    _put(labels, shell, Tissue.COMPACT_BONE)
    diploe = shell & (head.outer < -1.7) & (head.inner > 1.7) & (head.base > 4.0)
    _put(labels, diploe, Tissue.SPONGY_BONE)


def _skull_base(head: _Head) -> None:
    """The floor of the brain's room, the clivus, the petrous bones with their air cells."""
    frame, labels = head.frame, head.labels
    floor = (head.base < 0) & (head.base > -4.5) & (head.outer < 0)
    _put(labels, floor, Tissue.COMPACT_BONE)
    clivus = frame.ellipsoid((0.0, -4.0, -52.0), (13.0, 9.0, 16.0))
    _put(labels, clivus < 0, Tissue.COMPACT_BONE)
    _put(labels, clivus < -2.0, Tissue.SPONGY_BONE)
    petrous = torch.minimum(
        frame.tube((16.0, 2.0, -46.0), (56.0, -18.0, -46.0), 8.0),
        frame.pair((54.0, -20.0, -58.0), (13.0, 14.0, 18.0)),
    )
    petrous = petrous + 1.5 * frame.noise(12.0)
    _put(labels, (petrous < 0) & (head.outer < 3.0), Tissue.COMPACT_BONE)
    cells = (frame.pair((56.0, -22.0, -58.0), (10.0, 11.0, 15.0)) < 0) & (frame.noise(5.0) > 0)
    _put(labels, cells & (head.outer < 0), Tissue.CAVITY)


def _air(head: _Head) -> None:
    """Nose and its sinuses, throat, ear canals."""
    frame, labels = head.frame, head.labels
    septa = frame.noise(8.0)
    rooms = {
        "maxilla": frame.pair((29.0, 46.0, -60.0), (14.0, 19.0, 16.0)) + 1.2 * frame.noise(14.0),
        "frontal": frame.pair((10.0, 78.0, -12.0), (12.0, 5.0, 13.0)) + 1.2 * frame.noise(10.0),
        "sphenoid": frame.pair((9.0, 14.0, -44.0), (9.0, 12.0, 9.0)) + 1.0 * frame.noise(12.0),
    }
    for room in rooms.values():
        _put(labels, (room < 1.8) & (head.skin < -4.0), Tissue.COMPACT_BONE)
    for room in rooms.values():
        _put(labels, (room < 0) & (head.skin < -5.0), Tissue.CAVITY)
    cells = (frame.x.abs() < 13.0) & (frame.y > 24.0) & (frame.y < 70.0) & (head.skin < -6.0)
    cells &= (frame.z > -48.0) & (frame.z < -26.0)
    _put(labels, cells, Tissue.CAVITY)
    _put(labels, cells & ((septa.abs() < 0.25) | (frame.x.abs() > 11.5)), Tissue.COMPACT_BONE)
    nose = (frame.x.abs() < 14.0) & (frame.y > 18.0) & (frame.y < 92.0) & (head.skin < -3.0)
    nose &= (frame.z > -72.0) & (frame.z < -47.0) & (frame.z < -47.0 - 0.3 * (frame.y - 70.0))
    shells = frame.pair((7.0, 48.0, -63.0), (4.8, 27.0, 7.0)).minimum(
        frame.pair((6.5, 46.0, -51.5), (4.0, 23.0, 4.0))
    )
    _put(labels, nose, Tissue.CAVITY)
    _put(labels, nose & (shells + 0.8 * septa < 0), Tissue.MUCOSA)
    _put(labels, nose & (frame.x.abs() > 12.0), Tissue.MUCOSA)
    _put(labels, nose & ((frame.x + septa).abs() < 1.3), Tissue.COMPACT_BONE)
    # the soft palate and the root of the tongue narrow the throat
    narrow = torch.exp(-(((frame.z + 80.0) / 7.0) ** 2)) + torch.exp(
        -(((frame.z + 108) / 9.0) ** 2)
    )
    throat = frame.column((0.0, 6.0), (9.0, 5.0)) + 4.0 * narrow + 1.2 * frame.noise(16.0)
    low = (frame.z < -52.0) & (frame.y < 20.0)
    _put(labels, low & (throat < 3.0), Tissue.MUCOSA)
    _put(labels, low & (throat < 0), Tissue.CAVITY)
    canal = frame.tube((52.0, -12.0, -46.0), (90.0, -16.0, -44.0), 3.2)
    _put(labels, canal < 0, Tissue.CAVITY)


def _orbits(head: _Head) -> None:
    """Bony orbit, its fat, the muscles and the nerve, the eye."""
    frame, labels = head.frame, head.labels
    cone = torch.minimum(
        frame.pair((30.0, 56.0, -31.0), (18.0, 20.0, 17.0)),
        frame.pair((23.0, 38.0, -32.0), (12.0, 22.0, 11.0)),
    )
    deep = frame.y < 68.0
    _put(labels, (cone < 2.2) & (cone > 0) & deep, Tissue.COMPACT_BONE)
    _put(labels, (cone < 0) & (frame.y < 74.0), Tissue.FAT)
    eye = frame.pair((31.5, 66.0, -31.0), (12.0, 12.0, 12.0))
    for stop in (
        (42.0, 64.0, -31.0),
        (20.0, 62.0, -31.0),
        (31.0, 62.0, -20.0),
        (31.0, 62.0, -42.0),
    ):
        muscle = frame.tube((17.0, 28.0, -32.0), stop, 2.2)
        _put(labels, (muscle < 0) & (cone < 0), Tissue.MUSCLE)
    nerve = frame.tube((14.0, 22.0, -32.0), (30.0, 56.0, -31.0), 2.3)
    _put(labels, (nerve < 0) & (eye > -1.0), Tissue.WHITE)
    _put(labels, eye < 0, Tissue.MUSCLE)
    _put(labels, eye < -1.3, Tissue.EYE)
    lens = frame.pair((32.0, 74.5, -31.0), (4.8, 2.4, 4.8))
    _put(labels, lens < 0, Tissue.LENS)


def _cerebrum(head: _Head) -> None:
    """The folded cortex and the white matter under it, the fluid around, the falx."""
    frame, labels = head.frame, head.labels
    room = torch.maximum(head.inner, -head.base)
    inside = room < 0
    depth = -room - 1.6 - 0.6 * frame.noise(40.0)
    depth = torch.minimum(depth, _cerebellum(frame) - 0.8)
    fluid = _to_fluid(frame, depth)
    _put(labels, inside, Tissue.CSF)
    _put(labels, inside & (fluid > 0), Tissue.GREY)
    _put(labels, inside & (fluid > 3.0), Tissue.WHITE)
    falx = inside & (frame.x.abs() < 1.0) & (depth < 26.0) & (frame.z > -5.0) & (fluid < 0.3)
    _put(labels, falx & (frame.ellipsoid((0.0, -2.0, 0.0), (50.0, 52.0, 34.0)) > 0), Tissue.DURA)


def _cerebellum(frame: Frame) -> Tensor:
    """Signed distance to the cerebellum."""
    return frame.pair((20.0, -54.0, -42.0), (33.0, 32.0, 22.0))


def _to_fluid(frame: Frame, depth: Tensor) -> Tensor:
    """Distance to the surface of the folded cortex in mm, negative in the fluid outside it.

    The sulci are the sheets where a random field is zero. The field is read at points drawn
    towards a sphere, so that it changes slowly along the radius and the sheets stand upright.
    """
    bend = 1.5 * frame.noise(10.0)
    rough = frame.noises(8.6, 1)
    # without its slow part, the field's zero sheets lie evenly, about 11 mm apart
    even = (rough - gaussian_blur(rough, [7.5 / s for s in frame.spacing]))[0]
    sulcus = 4.1 * _radial(frame, even / even.std().clamp_min(1e-3)).abs()
    reach = 15.0 + 4.0 * frame.noise(30.0)
    open_width = 0.4 * frame.noise(30.0)
    to_sulcus = torch.hypot(sulcus, (depth - reach).clamp_min(0)) - 0.7 - open_width
    callosum = frame.ellipsoid((0.0, -2.0, -4.0), (60.0, 46.0, 30.0))
    fissure = torch.hypot(frame.x + 0.4 * bend, (-callosum).clamp_min(0)) - 1.2
    sylvian = frame.z + 6.0 - 0.3 * frame.y + bend
    lateral = (40.0 - frame.x.abs()).clamp_min(0)
    beyond = (frame.y.abs() - 24.0).clamp_min(0)
    side = torch.sqrt(sylvian**2 + lateral**2 + beyond**2) - 1.8
    return torch.minimum(torch.minimum(depth, to_sulcus), torch.minimum(fissure, side))


def _radial(frame: Frame, field: Tensor) -> Tensor:
    """Read a field of the lattice at points drawn towards a sphere of 60 mm about the brain."""
    place = torch.stack([frame.x, frame.y, frame.z], -1)
    scale = (60.0 / place.norm(dim=-1, keepdim=True).clamp_min(4.0)) ** 0.75
    points = identity_points(frame.shape) + frame.voxels_of(place * (scale - 1.0))
    return sample(field[None, None], points[None])[0, 0]


def _hindbrain(head: _Head) -> None:
    """Cerebellum with its leaves, brain stem, the cisterns around it."""
    frame, labels = head.frame, head.labels
    inside = torch.maximum(head.inner, -head.base) < 0
    cerebellum = _cerebellum(frame) + 0.6 * frame.noise(20.0)
    stem = frame.ellipsoid((0.0, -21.0, -32.0), (14.0, 13.0, 21.0)) + 1.2 * frame.noise(12.0)
    cistern = frame.ellipsoid((0.0, 0.0, -30.0), (13.0, 12.0, 7.0))
    _put(labels, inside & (cistern < 0), Tissue.CSF)
    _put(labels, inside & (stem < 3.0), Tissue.CSF)
    leaves = torch.cos((frame.z + 0.6 * frame.y + 3.0 * frame.noise(15.0)) * (6.283 / 6.0))
    _put(labels, inside & (cerebellum < 0.8), Tissue.CSF)
    _put(labels, inside & (cerebellum < -0.5), Tissue.GREY)
    white = cerebellum < -11.0 + 3.0 * leaves
    _put(labels, inside & white, Tissue.WHITE)
    _put(labels, inside & (cerebellum < -0.5) & (cerebellum > -4.0) & (leaves > 0.9), Tissue.CSF)
    _put(labels, inside & (stem < 0), Tissue.WHITE)
    fourth = frame.ellipsoid((0.0, -36.0, -38.0), (7.0, 5.0, 9.0))
    _put(labels, inside & (fourth < 0), Tissue.CSF)


def _deep_brain(head: _Head) -> None:
    """Corpus callosum, nuclei and ventricles."""
    frame, labels = head.frame, head.labels
    inside = torch.maximum(head.inner, -head.base) < 0
    wide = frame.number(0.85, 1.35)
    wobble = 0.8 * frame.noise(18.0)
    core = frame.ellipsoid((0.0, -4.0, 4.0), (38.0, 42.0, 24.0)) + 2.0 * frame.noise(20.0)
    _put(labels, inside & (core < 0), Tissue.WHITE)
    nuclei = (
        ((10.5, -12.0, 2.0), (8.5, 14.0, 9.0)),
        ((14.5, 18.0, 7.0), (4.5, 11.0, 9.0)),
        ((26.0, 4.0, 0.0), (5.5, 16.0, 10.0)),
        ((20.0, 1.0, -2.0), (4.5, 9.0, 7.0)),
    )
    for centre, radii in nuclei:
        _put(labels, inside & (frame.pair(centre, radii) + wobble < 0), Tissue.DEEP_GREY)
    insula = (frame.pair((36.0, 4.0, -3.0), (3.0, 22.0, 14.0)) + wobble) < 0
    _put(labels, inside & insula, Tissue.GREY)
    horn = frame.tube((9.0, 28.0, 6.0), (7.0, 4.0, 16.0), 5.5 * wide)
    body = frame.tube((7.0, 4.0, 16.0), (13.0, -26.0, 15.0), 5.0 * wide)
    atrium = frame.tube((13.0, -26.0, 15.0), (23.0, -40.0, 4.0), 6.0 * wide)
    occipital = frame.tube((23.0, -40.0, 4.0), (20.0, -58.0, 2.0), 3.5 * wide)
    temporal = frame.tube((25.0, -36.0, -4.0), (32.0, -6.0, -20.0), 2.2 * wide)
    ventricle = blend(blend(horn, body, 3.0), blend(atrium, occipital, 4.0), 3.0)
    ventricle = torch.minimum(ventricle, temporal) + wobble
    ventricle = torch.where(frame.x.abs() < 1.1, 1.0, ventricle)
    third = frame.ellipsoid((0.0, -6.0, -4.0), (2.3 * wide, 13.0, 9.0))
    plexus = frame.tube((17.0, -30.0, 11.0), (22.0, -37.0, 5.0), 2.5)
    _put(labels, inside & (torch.minimum(ventricle, third) < 0), Tissue.CSF)
    _put(labels, inside & (plexus + wobble < 0), Tissue.MUCOSA)


def _canal(head: _Head) -> None:
    """The spinal canal from the great foramen down, with the cord in it."""
    frame, labels = head.frame, head.labels
    low = (frame.z < -46.0) & (labels > Tissue.AIR)
    centre = -30.0 - 0.1 * (frame.z + 70.0).clamp_max(0)
    canal = frame.column((0.0, centre), (10.0, 9.0)) - (frame.z + 60.0).clamp(0, 8) * 0.4
    cord = frame.column((0.0, centre), (6.0, 5.0)) - (frame.z + 64.0).clamp(0, 12) * 0.25
    _put(labels, low & (canal < 0), Tissue.CSF)
    _put(labels, low & (cord < 0), Tissue.WHITE)
