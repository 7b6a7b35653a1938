"""The benchmark's heads that are painted from label maps."""

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from painted_heads import label_map, painted_head

WHITE, GREY, CSF, SKIN, BONE, OTHER, UNNAMED = 2, 42, 24, 511, 515, 507, 499
AFFINE = np.array([[-1.0, 0, 0, 40], [0, 0, 1, -30], [0, -1, 0, 50], [0, 0, 0, 1]])


@pytest.fixture
def path(tmp_path):
    """Nested boxes of tissue in air, 1 mm, stored as FreeSurfer stores a head."""
    labels = np.zeros((90, 86, 84), np.int16)
    boxes = ((8, SKIN), (10, OTHER), (14, BONE), (22, CSF), (30, GREY), (35, WHITE))
    for depth, label in boxes:
        labels[depth:-depth, depth:-depth, depth:-depth] = label
    labels[43:47, 41:45, 40:44] = UNNAMED
    nib.save(nib.Nifti1Image(labels, AFFINE), tmp_path / "labels.nii.gz")
    return tmp_path / "labels.nii.gz"


def typical(image, path, label):
    """Median of an image where all of a voxel's eight labels are that one."""
    labels, _ = label_map(path)
    even = labels[tuple(slice(n - n % 2) for n in labels.shape)].numpy()
    blocks = even.reshape(*(x for n in even.shape for x in (n // 2, 2)))
    pure = (blocks == label).all(axis=(1, 3, 5))
    return float(np.median(image.array[0].numpy()[pure]))


@pytest.mark.parametrize(
    ("contrast", "rising"),
    [
        ("ct", (CSF, WHITE, GREY, BONE)),
        ("mr", (BONE, CSF, GREY, WHITE)),
        ("mr_t2", (BONE, WHITE, GREY, CSF)),
        ("pet", (CSF, WHITE, GREY)),
    ],
)
def test_tissues_have_the_order_of_their_contrast(path, contrast, rising):
    image = painted_head(path, contrast, contrast)
    values = [typical(image, path, label) for label in rising]
    assert values == sorted(values)


def test_voxels_of_two_mm_lie_where_the_labels_lie(path):
    image = painted_head(path, "ct", "ct")
    np.testing.assert_allclose(image.spacing, 2.0)
    # the head's box is cut out with a margin of 8, here the whole file; the first block's middle
    middle = AFFINE[:3, :3] @ np.full(3, 0.5) + AFFINE[:3, 3]
    np.testing.assert_allclose(image.affine[:3, 3], middle)


def test_a_head_at_the_label_maps_own_resolution(path):
    image = painted_head(path, "ct", "ct", halved=False)
    np.testing.assert_allclose(image.spacing, 1.0)
    np.testing.assert_allclose(image.affine, AFFINE)
    labels, _ = label_map(path)
    assert image.shape == labels.shape
    assert float(image.array[0][labels == UNNAMED].median()) < -300


def test_the_same_head_each_time_and_on_one_grid_in_every_contrast(path):
    first, second = (painted_head(path, "x", "mr").array for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert painted_head(path, "x", "mr_t2").array.shape == first.shape


def test_classes_that_nobody_named_are_air(path):
    assert typical(painted_head(path, "ct", "ct"), path, UNNAMED) < -300
