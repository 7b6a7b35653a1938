import gzip
import logging
import os

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from data_phantoms import SHAPE, oblique, ramp, save_nifti
from PIL import Image as PillowImage

from fusion_pipeline.data import (
    InputError,
    read_displacement,
    read_image,
    read_labels,
    read_landmarks,
    recolour,
    spatial_dims_of,
)
from fusion_pipeline.geometry import apply_affine


def save_itk(path, array=None, affine=None):
    """Write through SimpleITK a (i, j, k) array at a RAS affine."""
    array = ramp() if array is None else array
    affine = oblique() if affine is None else affine
    lps = np.diag([-1, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    sitk.WriteImage(image, str(path))
    return path


# --- NIfTI ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_nifti_keeps_grid_values_and_the_exact_affine(tmp_path, name):
    path = save_nifti(tmp_path / name, ramp() / 2 - 1000)
    image, warnings = read_image(path, "ct")
    np.testing.assert_array_equal(image.array[0].numpy(), ramp() / 2 - 1000)
    np.testing.assert_array_equal(image.affine, nib.load(path).affine)
    assert image.affine.dtype == np.float64
    assert image.array.dtype == torch.float32
    assert (image.units, image.key, image.path, warnings) == ("HU", "ct", str(path), [])


def test_nifti_agrees_with_simpleitk_about_the_world(tmp_path):
    path = save_nifti(tmp_path / "a.nii.gz")
    image, _ = read_image(path, "mr")
    witness = sitk.ReadImage(str(path))
    index = (7, 3, 5)
    point_lps = np.array(witness.TransformIndexToPhysicalPoint(index))
    np.testing.assert_allclose(
        apply_affine(image.affine, index), point_lps * [-1, -1, 1], atol=1e-4
    )
    assert image.array[(0, *index)] == witness.GetPixel(index)


def test_scaled_and_big_endian_integers_are_read_in_full(tmp_path):
    stored = ramp().astype(">i2")
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    header.set_data_shape(SHAPE)
    header.set_data_offset(352)
    header.set_sform(oblique(), 1)
    header.set_slope_inter(0.5, -7)
    (tmp_path / "a.nii").write_bytes(header.binaryblock + bytes(4) + stored.tobytes(order="F"))
    read, _ = read_image(tmp_path / "a.nii", "mr")
    np.testing.assert_array_equal(read.array[0].numpy(), ramp() * 0.5 - 7)


def test_trailing_axes_of_one_are_dropped(tmp_path):
    path = save_nifti(tmp_path / "a.nii.gz", ramp()[..., None])
    assert read_image(path, "mr")[0].shape == SHAPE


def test_a_2d_nifti_has_a_plane_affine(tmp_path):
    affine = np.diag([-2.0, -3.0, 1.0, 1.0])
    affine[:2, 3] = 5, 6
    path = save_nifti(tmp_path / "a.nii.gz", ramp()[..., 4], affine)
    image, _ = read_image(path, "mr")
    np.testing.assert_array_equal(image.affine, [[-2, 0, 5], [0, -3, 6], [0, 0, 1]])
    assert image.array.shape == (1, 11, 14)
    assert spatial_dims_of(path) == 2


def test_a_2d_nifti_out_of_the_plane_is_refused(tmp_path):
    tilted = oblique(angles=(90.0, 0, 0))
    with pytest.raises(InputError, match="expected a 2D image in the world's x-y plane"):
        read_image(save_nifti(tmp_path / "a.nii.gz", ramp()[..., 4], tilted), "mr")


def test_sform_wins_over_a_qform_that_disagrees(tmp_path):
    path = tmp_path / "a.nii.gz"
    image = nib.Nifti1Image(ramp(), None)
    image.header.set_sform(oblique(), 1)
    image.header.set_qform(oblique(origin=(0, 0, 0)), 1)
    nib.save(nib.Nifti1Image(ramp(), None, image.header), path)
    read, warnings = read_image(path, "mr")
    np.testing.assert_allclose(read.affine, oblique(), atol=1e-5)
    assert len(warnings) == 1
    assert "sform and qform disagree by up to 38.8 mm; the sform is used." in warnings[0]


def test_the_qform_counts_where_there_is_no_sform(tmp_path):
    read, warnings = read_image(save_nifti(tmp_path / "a.nii", sform_code=0), "mr")
    np.testing.assert_allclose(read.affine, oblique(), atol=1e-5)
    assert warnings == []


def test_a_broken_qform_beside_an_sform_does_not_matter(tmp_path):
    path = save_nifti(tmp_path / "a.nii.gz", quatern_b=np.float32(7.0))
    assert read_image(path, "mr")[1] == []


def test_no_orientation_at_all_is_told(tmp_path):
    path = save_nifti(tmp_path / "a.nii.gz", sform_code=0, qform_code=0)
    assert "neither sform nor qform" in read_image(path, "mr")[1][0]


@pytest.mark.parametrize(
    ("code", "factor", "spacing", "told"),
    [
        (1, 0.001, 1.0, "given in meters were converted to mm"),
        (3, 1000.0, 1.0, "given in microns were converted to mm"),
        (3, 1.0, 1.0, "the lengths are taken as mm"),
    ],
)
def test_other_units_of_length(tmp_path, code, factor, spacing, told):
    affine = np.diag([factor, factor, factor, 1]) @ oblique((1.0, 1.5, 3.0))
    read, warnings = read_image(
        save_nifti(tmp_path / "a.nii", affine=affine, xyzt_units=code), "mr"
    )
    np.testing.assert_allclose(read.spacing, [1.0, 1.5, 3.0], rtol=1e-5)
    assert told in warnings[0]


def test_an_unknown_code_of_units_is_mm(tmp_path):
    read, _ = read_image(save_nifti(tmp_path / "a.nii", xyzt_units=7), "mr")
    np.testing.assert_allclose(read.spacing, [1.0, 1.5, 3.0], rtol=1e-5)


def test_a_sheared_affine_is_kept_and_told(tmp_path):
    affine = oblique() @ np.array([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    path = save_nifti(tmp_path / "a.nii.gz", affine=affine, qform_code=0)
    read, warnings = read_image(path, "mr")
    np.testing.assert_array_equal(read.affine, affine.astype(np.float32))
    assert "the affine is sheared (two axes meet at 82.4 degrees)" in warnings[0]


def test_some_nan_become_the_value_of_the_outside(tmp_path):
    array = ramp() / 2 - 1000
    array[0, 0, :2] = np.nan, np.inf
    path = save_nifti(tmp_path / "a.nii.gz", array)
    image, warnings = read_image(path, "ct", case_id="p1")
    assert image.array[0, 0, 0, :2].tolist() == [-1000.0, -1000.0]
    assert warnings[-1].endswith("2 NaN or infinite voxels were set to -1000.")
    assert warnings[-1].startswith("case 'p1', ct (")
    assert read_image(path, "mr")[0].array[0, 0, 0, :2].tolist() == [0.0, 0.0]


def test_few_slices_are_told(tmp_path):
    assert (
        "only 3 slices" in read_image(save_nifti(tmp_path / "a.nii", ramp()[..., :3]), "mr")[1][0]
    )


def test_missing_pet_units_are_told_and_our_own_note_is_read(tmp_path):
    path = save_nifti(tmp_path / "a.nii.gz")
    image, warnings = read_image(path, "pet")
    assert (image.units, "PET units are not in the file" in warnings[0]) == ("a.u.", True)
    noted = save_nifti(tmp_path / "b.nii.gz", descrip=b"units=SUV")
    image, warnings = read_image(noted, "pet")
    assert (image.units, warnings) == ("SUV", [])


def test_a_ct_without_air_is_told(tmp_path):
    image, warnings = read_image(save_nifti(tmp_path / "a.nii"), "ct")
    assert image.fill_value == 0  # its air, as far as one can tell
    assert "values from 0 to 3470 do not look like HU (air is -1000," in warnings[0]


def bad_affine(row, column, value):
    affine = oblique()
    affine[row, column] = value
    return affine


REFUSED = {
    "NaN affine": ({"affine": bad_affine(0, 3, np.nan)}, "a finite affine, got NaN or infinity"),
    "singular affine": ({"affine": np.diag([1.0, 0, 2, 1])}, "an affine that can be inverted"),
    "flat affine": (
        {"affine": np.array([[1, 2, 0, 0], [1, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])},
        "an affine that can be inverted",
    ),
    "complex": ({"array": ramp().astype(np.complex64)}, "real value per voxel, got complex64"),
    "RGB": (
        {"array": np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])},
        "one real value per voxel, got RGB voxels",
    ),
    "4D": ({"array": np.stack([ramp()] * 2, -1)}, "got 4 axes, shape 11x14x9x2"),
    "1D": ({"array": ramp()[:, 0, 0]}, "got 1 axes"),
    "one slice": ({"array": ramp()[..., :1]}, "a 2D image in the world's x-y plane"),
    "NaN only": ({"array": np.full(SHAPE, np.nan, np.float32)}, "only NaN or infinite voxels"),
    "constant": ({"array": np.full(SHAPE, 7.0, np.float32)}, "the constant value 7 everywhere"),
    "constant and NaN": (
        {"array": np.where(ramp() > 99, np.nan, 7).astype(np.float32)},
        "the constant value 7 everywhere",
    ),
}


@pytest.mark.parametrize(("given", "message"), REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_unusable_nifti_is_refused_in_one_line(tmp_path, given, message):
    path = save_nifti(tmp_path / "x.nii.gz", qform_code=0, **given)
    with pytest.raises(InputError, match=message) as caught:
        read_image(path, "mr", case_id="p1")
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"case 'p1', mr ({path}): expected ")
    assert "; " in line


@pytest.mark.parametrize("third", [None, 2.0])
def test_a_mask_given_as_an_image_is_noticed(tmp_path, third):
    array = (ramp() > ramp().mean()).astype(np.float32)
    if third is not None:
        array[0, 0, 0] = third
    array[-1, -1, -1] = np.nan
    _, messages = read_image(save_nifti(tmp_path / "x.nii.gz", array=array), "mr")
    said = [m for m in messages if "two values only (0 and 1), like a mask" in m]
    assert len(said) == (third is None)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"no such file; check the path"):
        read_image(tmp_path / "none.nii.gz", "ct")
    with pytest.raises(InputError, match=r"no such file; check the path"):
        read_image("", "ct")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.6])
def test_truncated_nifti(tmp_path, name, kept):
    path = save_nifti(tmp_path / name, np.random.default_rng(0).normal(size=SHAPE))
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(InputError, match=r"cannot be read .*may be truncated or of another format"):
        read_image(path, "ct")


@pytest.mark.parametrize(
    "name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha", "a.png", "a.nhdr", "a.mhd"]
)
def test_text_under_the_name_of_an_image(tmp_path, name):
    (tmp_path / name).write_text("this is no image\n" * 50)
    with pytest.raises(InputError, match="got one that cannot be read"):
        read_image(tmp_path / name, "ct")


def test_gzipped_text(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(b"this is no image\n" * 50))
    with pytest.raises(InputError, match="got one that cannot be read"):
        read_image(tmp_path / "a.nii.gz", "ct")


def test_another_format_under_the_name_of_nifti(tmp_path):
    path = tmp_path / "a.mgz"
    nib.save(nib.MGHImage(ramp(), oblique()), path)
    with pytest.raises(InputError, match=r"expected NIfTI, NRRD, .*got a file named a.mgz"):
        read_image(path, "mr")
    renamed = path.rename(tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match="expected a NIfTI file"):
        read_image(renamed, "mr")


def test_a_header_with_a_negative_size(tmp_path):
    path = save_nifti(tmp_path / "a.nii")
    data = bytearray(path.read_bytes())
    data[44:46] = np.array(-3, "<i2").tobytes()
    path.write_bytes(data)
    with pytest.raises(InputError, match="got the shape 11x-3x9"):
        read_image(path, "mr")


def test_cifti_is_refused(tmp_path):
    axes = nib.cifti2.SeriesAxis(0, 1, 5), nib.cifti2.ScalarAxis(["a", "b"])
    nib.save(nib.Cifti2Image(np.zeros((5, 2)), axes), tmp_path / "a.dscalar.nii")
    with pytest.raises(InputError, match="expected a NIfTI file, got Cifti2Image; convert it"):
        read_image(tmp_path / "a.dscalar.nii", "mr")


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = save_nifti(tmp_path / "a.nii.gz")

    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", denied)
    monkeypatch.setattr(nib, "load", denied)
    with pytest.raises(InputError, match=r"cannot be read .*Permission denied"):
        read_image(path, "mr")


def test_a_header_that_promises_more_than_memory(tmp_path):
    path = save_nifti(tmp_path / "a.nii")
    data = bytearray(path.read_bytes())
    data[42:48] = np.array([32000, 32000, 32000], "<i2").tobytes()
    path.write_bytes(data)
    with pytest.raises(InputError, match="more memory than is free"):
        read_image(path, "mr")


def test_libraries_stay_silent(tmp_path, capfd, recwarn):
    path = save_nifti(tmp_path / "a.nii", pixdim=[0, -1, 1.5, 3, 1, 1, 1, 1])
    level = logging.getLogger("nibabel.global").level
    read_image(path, "mr")
    for name in ("a.mha", "b.nrrd", "c.png"):
        (tmp_path / name).write_text("no image")
        with pytest.raises(InputError):
            read_image(tmp_path / name, "mr")
    assert logging.getLogger("nibabel.global").level == level
    out, err = capfd.readouterr()
    assert (out, err, len(recwarn)) == ("", "", 0)


# --- NRRD and MetaImage -----------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".mha", ".mhd"])
def test_itk_formats_say_what_nifti_says(tmp_path, suffix):
    path = save_itk(tmp_path / f"a{suffix}")
    image, warnings = read_image(path, "mr_t1")
    np.testing.assert_array_equal(image.array[0].numpy(), ramp())
    np.testing.assert_allclose(image.affine, oblique(), atol=1e-9)
    assert warnings == []
    assert spatial_dims_of(path) == 3


@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".mha", ".mhd"])
def test_a_name_may_be_in_capitals(tmp_path, suffix):
    path = save_itk(tmp_path / f"a{suffix}")
    capitals = path.rename(path.with_suffix(suffix.upper()))
    np.testing.assert_array_equal(read_image(capitals, "mr")[0].array[0].numpy(), ramp())
    assert spatial_dims_of(capitals) == 3


@pytest.mark.parametrize("suffix", [".nhdr", ".mhd"])
def test_a_header_without_its_voxels_says_so(tmp_path, suffix):
    path = save_itk(tmp_path / f"a{suffix}")
    for beside in set(tmp_path.iterdir()) - {path}:
        beside.unlink()
    with pytest.raises(InputError) as caught:
        read_image(path, "mr")
    assert "0x" not in str(caught.value)
    assert "no such file" in str(caught.value) or "data file 1 of 1" in str(caught.value)


@pytest.mark.parametrize("size", [100.0, 0.001])
def test_voxels_of_no_clinical_size_are_refused(tmp_path, size):
    path = save_nifti(tmp_path / "a.nii.gz", affine=np.diag([size, 1.0, 1.0, 1.0]))
    with pytest.raises(InputError, match=r"voxels of 0.01 to 50 mm, got voxels of .* x 1 x 1 mm"):
        read_image(path, "mr")


@pytest.mark.parametrize(
    ("low", "high", "air"), [(0.0, 1.0, 0.0), (0, 255, 0), (-1000, 800, -1000)]
)
def test_a_ct_without_a_negative_value_is_told_and_padded_with_zero(tmp_path, low, high, air):
    values = (low + (high - low) * ramp() / ramp().max()).astype(np.float32)
    image, warnings = read_image(save_nifti(tmp_path / "a.nii.gz", values), "ct")
    assert image.fill_value == air
    assert [("look like HU" in w) for w in warnings] == ([True] if air == 0 else [])


def test_padding_without_a_number_does_not_make_hu_of_a_window(tmp_path):
    values = (ramp() / ramp().max()).astype(np.float32)
    values[0] = np.nan
    image, warnings = read_image(save_nifti(tmp_path / "a.nii.gz", values), "ct")
    assert image.array.min() == image.fill_value == 0
    assert any("look like HU" in w for w in warnings)


@pytest.mark.parametrize("value", [-1, 0])
def test_a_mask_that_marks_nothing_is_refused(tmp_path, value):
    path = save_nifti(tmp_path / "m.nii.gz", np.full((11, 14, 9), value, np.int16))
    with pytest.raises(InputError, match="a map that marks something with 1 or more"):
        read_labels(path, "ct_mask")


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_itk_refusals(tmp_path, suffix, capfd):
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(sitk.Image([5, 6, 7], sitk.sitkVectorUInt8, 3), str(path))
    with pytest.raises(InputError, match="expected one real value per voxel, got 3 components"):
        read_image(path, "mr")
    sitk.WriteImage(sitk.Image([5, 6, 7, 2], sitk.sitkUInt8), str(path))
    with pytest.raises(InputError, match="got 4 axes, shape 5x6x7x2"):
        read_image(path, "mr")
    save_itk(path, np.random.default_rng(0).normal(size=SHAPE))
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(InputError, match="got 8088 bytes of voxels where the header promises"):
        read_image(path, "mr")
    assert capfd.readouterr() == ("", "")
    os.write(2, b"heard again")
    assert capfd.readouterr() == ("", "heard again")


def test_complex_metaimage_is_refused(tmp_path):
    path = tmp_path / "a.nrrd"
    sitk.WriteImage(sitk.Image([5, 6, 7], sitk.sitkComplexFloat32), str(path))
    with pytest.raises(InputError, match="expected one real value per voxel"):
        read_image(path, "mr")


def test_itk_4d_with_one_volume_and_2d(tmp_path):
    stacked = sitk.JoinSeries([sitk.ReadImage(str(save_itk(tmp_path / "a.mha")))])
    sitk.WriteImage(stacked, str(tmp_path / "b.mha"))
    image, _ = read_image(tmp_path / "b.mha", "mr")
    np.testing.assert_allclose(image.affine, oblique(), atol=1e-9)
    np.testing.assert_array_equal(image.array[0].numpy(), ramp())

    flat = sitk.GetImageFromArray(ramp()[..., 2].T)
    flat.SetOrigin((4, 5))
    flat.SetSpacing((2, 3))
    sitk.WriteImage(flat, str(tmp_path / "c.mha"))
    image, _ = read_image(tmp_path / "c.mha", "mr")
    np.testing.assert_array_equal(image.affine, [[-2, 0, -4], [0, -3, -5], [0, 0, 1]])
    assert image.shape == (11, 14)
    assert spatial_dims_of(tmp_path / "c.mha") == 2


def test_spatial_dims_of(tmp_path):
    assert spatial_dims_of("a/b.PNG") == 2
    assert spatial_dims_of(tmp_path) == 3
    (tmp_path / "a.mha").write_text("no image")
    with pytest.raises(InputError, match="expected an NRRD or MetaImage file"):
        spatial_dims_of(tmp_path / "a.mha")
    with pytest.raises(InputError, match="no such file"):
        spatial_dims_of(tmp_path / "none.nii.gz")


# --- pictures ---------------------------------------------------------------------------------


def picture(mode, dtype=np.uint8, channels=1):
    rows, columns = 7, 5
    j, i = np.indices((rows, columns))
    values = np.stack([(i + 10 * j + 3 * c) % 256 for c in range(channels)], -1).astype(dtype)
    return PillowImage.fromarray(values[..., 0] if channels == 1 else values, mode), values


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_grey_picture_axis_0_is_the_column(tmp_path):
    pil, values = picture("L")
    pil.save(tmp_path / "a.png")
    image, warnings = read_image(tmp_path / "a.png", "ct")
    np.testing.assert_array_equal(image.array[0].numpy(), values[..., 0].T)
    np.testing.assert_array_equal(image.affine, np.diag([-1, -1, 1]))
    assert (image.colour, image.units, warnings, image.fill_value) == (None, "a.u.", [], 0.0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_colour_picture_has_luma_and_colour(tmp_path):
    pil, values = picture("RGB", channels=3)
    pil.save(tmp_path / "a.png")
    image, _ = read_image(tmp_path / "a.png", "pet")
    np.testing.assert_array_equal(image.colour.numpy(), values.transpose(2, 1, 0))
    luma = values @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(image.array[0].numpy(), luma.T, rtol=1e-5)
    np.testing.assert_allclose(image.array[0].numpy(), np.asarray(pil.convert("L")).T, atol=1.0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_transparency_lies_over_black_and_grey_as_rgb_is_grey(tmp_path):
    pil, values = picture("RGB", channels=3)
    grey = PillowImage.merge("RGB", [pil.getchannel(0)] * 3)
    alpha = PillowImage.new("L", pil.size, 255)
    alpha.putpixel((4, 2), 0)
    grey.putalpha(alpha)
    grey.save(tmp_path / "a.png")
    image, _ = read_image(tmp_path / "a.png", "mr")
    expected = values[..., 0].T.astype(np.float32)
    expected[4, 2] = 0
    np.testing.assert_allclose(image.array[0].numpy(), expected, rtol=1e-6)
    assert image.colour is None


def test_palette_and_one_bit_pictures(tmp_path):
    colours = PillowImage.new("RGB", (5, 7), (10, 20, 30))
    colours.putpixel((4, 2), (200, 0, 0))
    colours.quantize(4).save(tmp_path / "p.png")
    image, _ = read_image(tmp_path / "p.png", "pet")
    assert image.colour[:, 4, 2].tolist() == [200, 0, 0]
    bits = PillowImage.new("1", (5, 7))
    bits.putpixel((4, 2), 1)
    bits.save(tmp_path / "b.png")
    image, _ = read_image(tmp_path / "b.png", "mr")
    assert image.array[0, 4, 2] == 255
    transparent = colours.quantize(4)
    transparent.save(tmp_path / "t.png", transparency=transparent.getpixel((4, 2)))
    assert read_image(tmp_path / "t.png", "pet")[0].colour[:, 4, 2].tolist() == [0, 0, 0]


def test_sixteen_bits_are_read_in_full(tmp_path):
    values = (np.arange(35).reshape(7, 5) * 1801 + 3).astype(np.uint16)
    PillowImage.fromarray(values).save(tmp_path / "a.png")
    image, _ = read_image(tmp_path / "a.png", "mr")
    np.testing.assert_array_equal(image.array[0].numpy(), values.T)
    colour = sitk.GetImageFromArray(np.stack([values, values // 2, values // 3], -1), isVector=True)
    sitk.WriteImage(colour, str(tmp_path / "c.png"))
    image, _ = read_image(tmp_path / "c.png", "pet")
    np.testing.assert_allclose(image.colour[1].numpy(), (values // 2).T / 257, rtol=1e-6)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_truncated_picture(tmp_path, capfd, kind):
    noise = np.random.default_rng(0).integers(0, 255, (70, 50)).astype(kind)
    PillowImage.fromarray(noise).save(tmp_path / "a.png")
    path = tmp_path / "a.png"
    path.write_bytes(path.read_bytes()[:-1500])
    with pytest.raises(InputError, match="expected a whole PNG picture"):
        read_image(path, "mr")
    assert capfd.readouterr() == ("", "")


def test_recolour_keeps_the_chroma():
    generator = torch.Generator().manual_seed(0)
    colour = 60 + 100 * torch.rand(3, 4, 5, generator=generator)
    luma = (colour * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0, keepdim=True)
    torch.testing.assert_close(recolour(luma, colour), colour)
    torch.testing.assert_close(recolour(luma + 9, colour), colour + 9)


# --- labels, landmarks, fields ----------------------------------------------------------------


def test_labels_are_whole_numbers_in_float(tmp_path):
    array = (ramp() // 100).astype(np.int16)
    labels = read_labels(save_nifti(tmp_path / "a.nii.gz", array), "mr_t1_label")
    np.testing.assert_array_equal(labels.array[0].numpy(), array)
    assert (labels.array.dtype, labels.units) == (torch.float32, "labels")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (ramp() / 3, "expected whole numbers"),
        (np.where(ramp() > 9, np.nan, 1), "expected whole numbers"),
        (np.zeros(SHAPE), "marks something with 1 or more, got zeros only"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_labels_refused(tmp_path, array, message):
    path = save_nifti(tmp_path / "a.nii.gz", array.astype(np.float32))
    with pytest.raises(InputError, match=message):
        read_labels(path, "ct_mask", case_id="p")


@pytest.mark.parametrize("head", ["", "x,y,z\n", "X, Y, Z\n# a comment\n\n"])
def test_landmarks(tmp_path, head):
    (tmp_path / "a.csv").write_text(head + "1,2.5,-3\n 4, 5 ,6e1\n")
    points = read_landmarks(tmp_path / "a.csv")
    np.testing.assert_array_equal(points, [[1, 2.5, -3], [4, 5, 60]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "got no point"),
        ("x,y,z\n", "got no point"),
        ("1\n2\n", "not all 2 or 3 numbers"),
        ("1,2,nan\n", "not all 2 or 3 numbers"),
        ("1,2,3\n1,2\n", "expected lines of x,y,z in RAS mm"),
        ("a,b,c\n1,2,3\n", "could not convert string to float"),
    ],
)
def test_landmarks_refused(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_landmarks(tmp_path / "a.csv")


def test_landmarks_missing_or_binary(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_landmarks(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match="expected a CSV of points"):
        read_landmarks(tmp_path / "b.csv")


def test_displacement_refused(tmp_path):
    with pytest.raises(InputError, match=r"a displacement field .* got shape 11x14x9"):
        read_displacement(save_nifti(tmp_path / "a.nii.gz"))
    with pytest.raises(InputError, match="got 1 components on 3 axes"):
        read_displacement(save_itk(tmp_path / "a.mha"))
    with pytest.raises(InputError, match="no such file"):
        read_displacement(tmp_path / "none.nii.gz")
    vectors = np.zeros((5, 6, 7, 1, 3), np.float32)
    vectors[0] = np.nan
    with pytest.raises(InputError, match="expected finite vectors"):
        read_displacement(save_nifti(tmp_path / "b.nii.gz", vectors))
    broken = save_nifti(tmp_path / "c.nii", vectors)
    broken.write_bytes(broken.read_bytes()[:-99])
    with pytest.raises(InputError, match="expected a whole NIfTI file"):
        read_displacement(broken)
