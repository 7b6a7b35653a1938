import numpy as np
import pytest
import torch

from fusion_pipeline.data import Image
from fusion_pipeline.geometry import rigid_matrix
from fusion_pipeline.networks.registration_net import RegistrationNet
from fusion_pipeline.register.aligned_pair import AlignedPair, LatticeImage
from fusion_pipeline.register.initial_alignment import unexplained
from fusion_pipeline.register.lattice import read_on_lattice, working_lattice
from fusion_pipeline.register.stage import _stiff_criterion

SIDE, SPACING = 40, 4.0
AFFINE = np.diag([SPACING, SPACING, SPACING, 1.0])


def limb(key, soft_mm=0.0, air=-1000.0):
    """A bone that stays, and around it muscles and skin that lie ``soft_mm`` further along x."""
    x, y, z = np.meshgrid(*[np.arange(SIDE) * SPACING - 78.0] * 3, indexing="ij")
    shell = np.hypot(x, y)
    # soft tissue moves with its distance from the bone
    moved = np.hypot(x - soft_mm * np.clip((shell - 12) / 25, 0, 1), y)
    texture = np.sin(z / 9.0) * np.sin(np.arctan2(y, x) * 3 + moved / 7)
    muscle, fat, cortex, marrow = (60, -100, 1200, 100) if key == "ct" else (300, 900, 30, 800)
    out = np.full(x.shape, air)
    out[moved < 66] = fat
    inner = moved < 50
    out[inner] = muscle + (20 if key == "ct" else 80) * texture[inner]
    out[shell < 14] = cortex
    out[shell < 8] = marrow
    return Image(torch.from_numpy(out.astype(np.float32))[None], AFFINE, key)


def around_bone(image):
    lattice = working_lattice(image, image)
    known = torch.ones_like(image.array)
    return read_on_lattice(image, known, lattice).bone


def test_bone_is_where_a_ct_in_hu_says_so():
    found = around_bone(limb("ct"))
    middle = found.shape[2] // 2
    assert found[0, 0, middle, middle, middle] == 1
    assert found[0, 0, 2, middle, middle] == 0
    assert 0.01 < float(found.mean()) < 0.2


def test_no_other_image_shows_bone_surely():
    assert float(around_bone(limb("mr", air=0.0)).sum()) == 0
    stored = limb("ct")
    stored = stored.with_array(stored.array + 1024, units="a.u.")
    assert float(around_bone(stored).sum()) == 0


@pytest.mark.parametrize(
    ("keys", "structure", "information"),
    [
        (("mr_t1", "mr_t2"), 0.03, 0.02),
        (("ct", "mr"), 0.03, 0.02),
        (("mr", "pet"), 0.015, 0.05),
        (("pet", "ct"), 0.10, 0.05),
    ],
)
def test_what_a_deformation_has_to_show_depends_on_both_modalities(keys, structure, information):
    flat = torch.zeros(1, SIDE, SIDE, SIDE)
    first, second = (Image(flat, AFFINE, key) for key in keys)
    criterion = _stiff_criterion((first, second))
    assert (criterion.structure, criterion.information) == (structure, information)


def test_around_the_bone_the_headers_explain_more_than_a_pose_that_follows_the_skin():
    ct, mr = limb("ct"), limb("mr", soft_mm=10.0, air=0.0)
    known = torch.ones_like(ct.array), torch.ones_like(mr.array)
    lattice = working_lattice(ct, mr)
    along = rigid_matrix([0.0, 0.0, 0.0], [10.0, 0.0, 0.0], [0.0, 0.0, 0.0])
    left = []
    net = RegistrationNet(3, channels=(4, 6, 6, 8), learned_features=3)
    reference = LatticeImage(read_on_lattice(ct, known[0], lattice), net)
    for matrix in (np.eye(4), along):
        moved = LatticeImage(read_on_lattice(mr, known[1], lattice, matrix), net)
        trial = AlignedPair(reference, moved, lattice.spacing)
        everywhere = trial.compared_region(either=True)
        regions = everywhere, everywhere * reference.arrays.bone
        left.append([unexplained([trial], region) for region in regions])
    (headers, headers_bone), (pose, pose_bone) = left
    assert pose < headers  # more skin and muscle than bone
    assert headers_bone < pose_bone
