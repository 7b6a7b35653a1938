"""Bodies: what is in them, where it lies, on any lattice."""

import pytest
import torch

from fusion_pipeline.synthesis import Tissue, body_label_map, tissue_values
from fusion_pipeline.synthesis.anatomy import draw_body
from fusion_pipeline.synthesis.frame import Frame, blend, slab_points
from fusion_pipeline.synthesis.tissues import CONTRASTS

EXPECTED = {
    "head": {"SKIN", "FAT", "COMPACT_BONE", "CSF", "GREY", "WHITE", "CAVITY", "EYE", "DEEP_GREY"},
    "trunk": {
        "SKIN",
        "FAT",
        "MUSCLE",
        "COMPACT_BONE",
        "LUNG",
        "LIVER",
        "KIDNEY",
        "SPLEEN",
        "BLOOD",
    },
    "limb": {"SKIN", "FAT", "MUSCLE", "MUSCLE_B", "COMPACT_BONE", "BLOOD"},
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def frame(shape, extent, seed=0, bend=2.0):
    spacing = [e / n for e, n in zip(extent, shape, strict=True)]
    d = len(shape)
    points = slab_points(shape, spacing, torch.eye(3)[:, :d], (0.0, 0.0, 0.0))
    return Frame(points, spacing, seeded(seed), bend)


def drawn(kind, seed=0):
    extent = {"head": (180, 220, 210), "trunk": (320, 230, 300), "limb": (200, 200, 180)}[kind]
    box = frame((60, 72, 64), extent, seed)
    return draw_body(box, kind), box


@pytest.mark.parametrize("kind", EXPECTED)
def test_a_body_holds_its_tissues(kind):
    labels, _ = drawn(kind)
    assert labels.dtype == torch.int64
    assert {Tissue(int(v)).name for v in labels.unique()} >= EXPECTED[kind] | {"AIR"}


def test_tissues_lie_where_anatomy_has_them():
    labels, box = drawn("trunk")
    assert box.x[labels == Tissue.LIVER].mean() > 20  # on the right
    assert box.x[labels == Tissue.SPLEEN].mean() < -60
    assert box.z[labels == Tissue.LUNG].mean() > box.z[labels == Tissue.KIDNEY].mean() + 60
    labels, box = drawn("head")
    assert box.y[labels == Tissue.EYE].mean() > 40  # in front
    assert box.z[labels == Tissue.WHITE].mean() > box.z[labels == Tissue.DISC].mean() + 40


@pytest.mark.parametrize("kind", EXPECTED)
@pytest.mark.parametrize("shape", [(40, 52), (33, 47, 40), (16, 90, 24)])
def test_any_lattice_will_do(kind, shape):
    for seed in range(3):
        labels = body_label_map(shape, seeded(seed), kind)
        assert labels.shape == (1, *shape)
        assert labels.min() >= 0
        assert labels.max() < len(Tissue)


@pytest.mark.parametrize("kind", EXPECTED)
def test_bodies_differ_by_seed_and_repeat_with_it(kind):
    first = body_label_map((32, 36, 40), seeded(1), kind)
    assert torch.equal(first, body_label_map((32, 36, 40), seeded(1), kind))
    assert not torch.equal(first, body_label_map((32, 36, 40), seeded(2), kind))


def test_an_unknown_body_is_refused():
    with pytest.raises(ValueError, match="a body of head, trunk, limb, got 'tail'"):
        body_label_map((20, 24), seeded(), "tail")
    with pytest.raises(ValueError, match="a body of head, trunk, limb, got 'tail'"):
        draw_body(frame((8, 9), (10, 10)), "tail")


def test_shapes_are_signed_distances_along_the_axes():
    box = frame((41, 43, 45), (41, 43, 45), bend=0.0)
    ball = box.ellipsoid((0, 0, 0), (8, 10, 12))
    middle = (20, 21, 22)
    for axis, radius in enumerate((8, 10, 12)):
        at = [list(middle) for _ in range(3)]
        for step, place in zip((-2, 0, 3), at, strict=True):
            place[axis] += radius + step
            assert float(ball[tuple(place)]) == pytest.approx(step, abs=0.02)
    rod = box.tube((5.0, 0.0, -10.0), (5.0, 0.0, 10.0), 2.0)
    assert float(rod[25, 21, 22]) == pytest.approx(-2.0, abs=0.01)
    assert torch.allclose(rod, rod.flip(0))
    assert float(box.column((0.0, 0.0), (5.0, 5.0))[28, 21, 3]) == pytest.approx(3.0, abs=0.02)


def test_a_blend_is_a_union_away_from_the_seam():
    first, second = torch.tensor([-5.0, 9.0, 0.0]), torch.tensor([7.0, -4.0, 0.0])
    out = blend(first, second, 2.0)
    assert out[:2].tolist() == [-5.0, -4.0]
    assert out[2] == -0.5


def test_a_part_holds_the_box_and_shares_memory():
    box = frame((41, 43, 45), (82, 86, 90))
    part, slices = box.part((-10, -12, 5), (14, 30, 28))
    wanted = (
        (box.x > -10) & (box.x < 14) & (box.y > -12) & (box.y < 30) & (box.z > 5) & (box.z < 28)
    )
    assert int(wanted.sum()) == int(wanted[slices].sum())
    assert part.shape == tuple(wanted[slices].shape)
    assert wanted[slices].numel() < 0.3 * wanted.numel()
    assert part.x.data_ptr() != box.x.data_ptr() or slices[0].start == 0
    assert all(n > 0 for n in box.part((500, 500, 500), (501, 501, 501))[0].shape)


def test_vectors_become_steps_of_a_turned_lattice():
    spacing = (2.0, 3.0)
    points = slab_points((12, 14), spacing, torch.tensor([[0.0, -1], [1, 0], [0, 0]]), (0, 0, 5))
    box = Frame(points, spacing, seeded(), bend=0.0)
    steps = box.voxels_of(torch.tensor([-3.0, 4.0, 0.0]))
    torch.testing.assert_close(steps, torch.tensor([2.0, 1.0]))


def test_every_tissue_has_a_value_in_every_contrast():
    for contrast in CONTRASTS:
        assert tissue_values(contrast).shape == (len(Tissue),)
    ct = tissue_values("ct")
    assert ct[Tissue.AIR] < ct[Tissue.LUNG] < ct[Tissue.FAT] < ct[Tissue.MUSCLE] < ct[6]
    with pytest.raises(ValueError, match="contrast of ct, mr, mr_t2, pet, got 'us'"):
        tissue_values("us")
