import nibabel as nib
import numpy as np
import pytest
import torch

from fusion_pipeline.data import Image

# oblique, so that no axis lies on a world axis
AFFINE = np.array(
    [[2.0, 0.1, 0.0, 5.0], [-0.1, 3.0, 0.2, 6.0], [0.0, -0.1, 1.5, 7.0], [0.0, 0.0, 0.0, 1.0]]
)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "PSR", "SAL", "IRP"])
def test_canonical_axes_undo_how_a_volume_is_stored(codes):
    values = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    stored = nib.Nifti1Image(values, AFFINE)
    wanted = nib.orientations.axcodes2ornt(codes)
    turned = stored.as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(AFFINE), wanted)
    )
    array = torch.from_numpy(turned.get_fdata(dtype=np.float32).copy())[None]
    image = Image(array, turned.affine, "mr").in_canonical_axes()
    np.testing.assert_array_equal(image.array[0], values)
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-6)


def test_canonical_axes_of_a_colour_picture():
    array = torch.arange(20.0).reshape(1, 4, 5)
    picture = Image(
        array, np.diag([-1.0, -1.0, 1.0]), "pet", colour=torch.cat([array, -array, 2 * array])
    )
    turned = picture.in_canonical_axes()
    torch.testing.assert_close(turned.array, array.flip(1, 2))
    torch.testing.assert_close(turned.colour[1], -turned.array[0])
    np.testing.assert_allclose(turned.affine, [[1, 0, -3], [0, 1, -4], [0, 0, 1]])
