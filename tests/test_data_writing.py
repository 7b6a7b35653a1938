import os

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from data_phantoms import SHAPE, oblique, ramp, save_nifti
from PIL import Image as PillowImage

from fusion_pipeline.data import (
    Image,
    InputError,
    check_output_folder,
    read_displacement,
    read_image,
    read_labels,
    write_displacement,
    write_image,
    write_labels,
    write_weights,
    written_whole,
)
from fusion_pipeline.geometry import apply_affine

FLIPPED = np.diag([-1.0, 1.0, 1.0, 1.0])
GRIDS = {
    "oblique": oblique(),
    "left-handed": oblique() @ FLIPPED,
    "LPS": np.diag([-1.0, -1.5, 3.0, 1.0]) + np.pad([[7.0], [-9.0], [11.0]], ((0, 1), (3, 0))),
    "permuted": oblique()[:, [2, 0, 1, 3]],
}
PLANE = np.diag([-1.0, -1.0, 1.0])


def image_of(array, affine, key="mr", **attributes):
    return Image(torch.as_tensor(array, dtype=torch.float32)[None], affine, key, **attributes)


def smooth_field(shape, seed=0):
    """A field in RAS mm, other in each channel and along each axis: affine, so exactly linear."""
    generator = np.random.default_rng(seed)
    matrix = generator.normal(size=(len(shape), len(shape))) * 0.05
    indices = np.stack(np.indices(shape)).astype(np.float64)
    field = np.tensordot(matrix, indices, axes=1) + generator.normal(
        size=(len(shape), *[1] * len(shape))
    )
    return torch.as_tensor(field, dtype=torch.float32)


# --- images -----------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", GRIDS.values(), ids=GRIDS.keys())
def test_the_written_affine_is_the_reference_files_own(tmp_path, affine):
    reference, _ = read_image(save_nifti(tmp_path / "ref.nii.gz", affine=affine), "mr")
    write_image(reference, tmp_path / "out.nii.gz")
    written = nib.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(written.affine, nib.load(tmp_path / "ref.nii.gz").affine)
    np.testing.assert_array_equal(written.affine, affine.astype(np.float32))
    assert (int(written.header["sform_code"]), int(written.header["qform_code"])) == (1, 1)
    np.testing.assert_allclose(written.get_qform(), written.affine, atol=2e-5)
    assert written.get_data_dtype() == np.float32
    assert written.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_array_equal(written.get_fdata(), ramp())


@pytest.mark.parametrize("affine", GRIDS.values(), ids=GRIDS.keys())
def test_simpleitk_sees_the_same_world(tmp_path, affine):
    write_image(image_of(ramp(), affine), tmp_path / "a.nii.gz")
    witness = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    index = (7, 3, 5)
    lps = np.array(witness.TransformIndexToPhysicalPoint(index))
    np.testing.assert_allclose(lps * [-1, -1, 1], apply_affine(affine, index), atol=1e-4)


def test_a_sheared_grid_has_an_sform_only(tmp_path):
    affine = oblique() @ np.array([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    write_image(image_of(ramp(), affine), tmp_path / "a.nii.gz")
    written = nib.load(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(written.affine, affine.astype(np.float32))
    assert int(written.header["qform_code"]) == 0


def test_units_travel_with_the_file(tmp_path):
    write_image(image_of(ramp(), oblique(), "pet", units="SUV"), tmp_path / "pet.nii.gz")
    image, warnings = read_image(tmp_path / "pet.nii.gz", "pet")
    assert (image.units, warnings) == ("SUV", [])


def test_the_same_image_gives_the_same_bytes(tmp_path):
    for name in ("a/x.nii.gz", "b/y.nii.gz"):
        write_image(image_of(ramp(), oblique()), tmp_path / name)
    assert (tmp_path / "a/x.nii.gz").read_bytes() == (tmp_path / "b/y.nii.gz").read_bytes()


def test_a_2d_image_round_trips_through_nifti(tmp_path):
    affine = np.array([[-2.0, 0, 5], [0, -3, 6], [0, 0, 1]])
    write_image(image_of(ramp()[..., 2], affine), tmp_path / "a.nii.gz")
    read, _ = read_image(tmp_path / "a.nii.gz", "mr")
    np.testing.assert_array_equal(read.affine, affine)
    np.testing.assert_array_equal(read.array[0].numpy(), ramp()[..., 2])


@pytest.mark.parametrize(
    ("top", "kind"), [(1, np.uint8), (300, np.int16), (40000, np.int32), (2**40, np.float32)]
)
def test_labels_take_the_smallest_type(tmp_path, top, kind):
    array = np.zeros(SHAPE)
    array[2, 3, 4] = top
    write_labels(image_of(array, oblique()), tmp_path / "a.nii.gz")
    assert nib.load(tmp_path / "a.nii.gz").get_data_dtype() == kind
    np.testing.assert_array_equal(
        read_labels(tmp_path / "a.nii.gz", "mr_label").array[0].numpy(), array
    )


def test_weights_are_the_last_axis(tmp_path):
    weights = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    write_weights(weights, oblique(), tmp_path / "w.nii.gz")
    written = nib.load(tmp_path / "w.nii.gz")
    assert written.shape == (*SHAPE, 2)
    np.testing.assert_array_equal(written.get_fdata(dtype=np.float32)[..., 1], weights[1].numpy())
    np.testing.assert_array_equal(written.affine, oblique().astype(np.float32))
    write_weights(weights[..., 0], PLANE, tmp_path / "flat.nii.gz")
    assert nib.load(tmp_path / "flat.nii.gz").shape == (11, 14, 1, 2)


# --- fields -----------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", GRIDS.values(), ids=GRIDS.keys())
def test_simpleitk_maps_points_as_the_ras_field_does(tmp_path, affine):
    field = smooth_field(SHAPE)
    write_displacement(field, affine, tmp_path / "f.nii.gz")
    image = sitk.ReadImage(str(tmp_path / "f.nii.gz"), sitk.sitkVectorFloat64)
    transform = sitk.DisplacementFieldTransform(image)
    flip = np.array([-1.0, -1.0, 1.0])
    for index in [(0, 0, 0), (10, 13, 8), (3, 11, 5)]:
        point = apply_affine(affine, index)
        mapped = np.array(transform.TransformPoint((point * flip).tolist())) * flip
        expected = point + field[(slice(None), *index)].numpy()
        np.testing.assert_allclose(mapped, expected, atol=1e-4)


@pytest.mark.parametrize("affine", GRIDS.values(), ids=GRIDS.keys())
def test_simpleitk_resamples_a_world_ramp_by_the_field(tmp_path, affine):
    """moving(world) = a.x + b is linear, so warped(x) = a.(x + field(x)) + b exactly."""
    slope = np.array([1.0, -2.0, 0.5])
    points = apply_affine(affine, np.stack(np.indices(SHAPE), -1))
    big = np.diag([2.0, 2.0, 2.0, 1.0])
    big[:3, 3] = -100.0
    moving = apply_affine(big, np.stack(np.indices((100, 100, 100)), -1)) @ slope
    write_image(image_of(moving, big), tmp_path / "m.nii.gz")
    write_image(image_of(ramp(), affine), tmp_path / "r.nii.gz")
    field = smooth_field(SHAPE)
    write_displacement(field, affine, tmp_path / "f.nii.gz")
    warped = sitk.Resample(
        sitk.ReadImage(str(tmp_path / "m.nii.gz")),
        sitk.ReadImage(str(tmp_path / "r.nii.gz")),
        sitk.DisplacementFieldTransform(
            sitk.ReadImage(str(tmp_path / "f.nii.gz"), sitk.sitkVectorFloat64)
        ),
        sitk.sitkLinear,
        1e6,
    )
    expected = (points + np.moveaxis(field.numpy(), 0, -1)) @ slope
    got = sitk.GetArrayFromImage(warped).T
    inside = got < 1e5  # ITK may see the outermost centres of an oblique field as outside
    assert inside.mean() > 0.9
    np.testing.assert_allclose(got[inside], expected[inside], atol=2e-3)


@pytest.mark.parametrize(
    ("shape", "affine"), [(SHAPE, oblique()), ((11, 14), PLANE)], ids=["3D", "2D"]
)
def test_the_file_is_laid_out_as_simpleitk_lays_out_its_own(tmp_path, shape, affine):
    write_displacement(smooth_field(shape), affine, tmp_path / "f.nii.gz")
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "f.nii.gz")), str(tmp_path / "itk.nii.gz"))
    ours, theirs = nib.load(tmp_path / "f.nii.gz"), nib.load(tmp_path / "itk.nii.gz")
    assert ours.shape == theirs.shape
    assert int(ours.header["intent_code"]) == int(theirs.header["intent_code"]) == 1007
    np.testing.assert_array_equal(ours.get_fdata(), theirs.get_fdata())
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-5)
    torch.testing.assert_close(read_displacement(tmp_path / "itk.nii.gz"), smooth_field(shape))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha", ".nrrd"])
@pytest.mark.parametrize(
    ("shape", "affine"), [(SHAPE, oblique()), ((11, 14), PLANE)], ids=["3D", "2D"]
)
def test_displacement_round_trip(tmp_path, shape, affine, suffix):
    write_displacement(smooth_field(shape), affine, tmp_path / "f.nii.gz")
    path = tmp_path / f"g{suffix}"
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "f.nii.gz")), str(path))
    torch.testing.assert_close(read_displacement(path), smooth_field(shape), rtol=0, atol=0)


def test_simpleitk_reads_a_2d_field_as_a_2d_vector_image(tmp_path):
    field = smooth_field((11, 14))
    write_displacement(field, PLANE, tmp_path / "f.nii.gz")
    image = sitk.ReadImage(str(tmp_path / "f.nii.gz"))
    assert (image.GetDimension(), image.GetNumberOfComponentsPerPixel()) == (2, 2)
    assert image.GetSize() == (11, 14)
    assert (image.GetSpacing(), image.GetOrigin()) == ((1.0, 1.0), (0.0, 0.0))
    assert image.GetDirection() == (1.0, 0.0, 0.0, 1.0)
    vector = image.GetPixel(3, 9)  # column 3, row 9; pixels along x and y
    np.testing.assert_allclose(vector, -field[:, 3, 9].numpy())
    transform = sitk.DisplacementFieldTransform(sitk.Cast(image, sitk.sitkVectorFloat64))
    np.testing.assert_allclose(
        transform.TransformPoint((3.0, 9.0)), np.array([3, 9]) - field[:, 3, 9].numpy(), atol=1e-5
    )


# --- pictures ---------------------------------------------------------------------------------


def test_png_of_grey_levels_and_of_the_unit_range(tmp_path):
    levels = np.arange(70).reshape(5, 14).astype(np.float32)
    write_image(image_of(levels + 0.4, PLANE), tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(PillowImage.open(tmp_path / "a.png")), levels.T)
    write_image(image_of(levels / 60, PLANE), tmp_path / "b.png", unit_range=True)
    written = np.asarray(PillowImage.open(tmp_path / "b.png"))
    assert written.dtype == np.uint8
    np.testing.assert_array_equal(written, np.clip(np.rint(levels * 255 / 60), 0, 255).T)


def test_png_of_16_bits_and_of_colour_round_trip(tmp_path):
    deep = image_of(np.arange(70).reshape(5, 14) * 900, PLANE)
    write_image(deep, tmp_path / "a.png")
    torch.testing.assert_close(read_image(tmp_path / "a.png", "mr")[0].array, deep.array)
    colour = torch.arange(210).reshape(3, 5, 14).float()
    write_image(image_of(np.zeros((5, 14)), PLANE, colour=colour), tmp_path / "c.png")
    torch.testing.assert_close(read_image(tmp_path / "c.png", "mr")[0].colour, colour)
    labels = image_of(np.arange(70).reshape(5, 14), PLANE)
    write_labels(labels, tmp_path / "l.png")
    torch.testing.assert_close(read_labels(tmp_path / "l.png", "mr_label").array, labels.array)


def test_what_no_file_can_hold(tmp_path):
    with pytest.raises(ValueError, match=r"expected a 2D image for a.png, got 3D"):
        write_image(image_of(ramp(), oblique()), tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"expected a path ending in .nii or .nii.gz"):
        write_image(image_of(ramp(), oblique()), tmp_path / "a.mha")
    assert list(tmp_path.iterdir()) == []


# --- whole or not at all ----------------------------------------------------------------------


def test_nothing_is_left_of_a_write_that_fails(tmp_path, monkeypatch):
    def broken(image, stream):
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    (tmp_path / "a.nii.gz").write_bytes(b"old")
    monkeypatch.setattr(nib.Nifti1Image, "to_stream", broken)
    with pytest.raises(InputError, match=r"output .*a.nii.gz: .*\(No space left on device\)"):
        write_image(image_of(ramp(), oblique()), tmp_path / "a.nii.gz")
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"]
    assert (tmp_path / "a.nii.gz").read_bytes() == b"old"


def interrupted(path):
    with written_whole(path) as aside:
        aside.write_text("half")
        raise KeyError


def test_the_final_name_appears_only_at_the_end(tmp_path):
    path = tmp_path / "new" / "report.json"
    with written_whole(path) as aside:
        assert (aside.parent, aside.suffix, aside.name[0]) == (path.parent, ".json", ".")
        aside.write_text("{}")
        assert not path.exists()
    assert [p.name for p in path.parent.iterdir()] == ["report.json"]
    with pytest.raises(KeyError):
        interrupted(path)
    assert path.read_text() == "{}"
    assert [p.name for p in path.parent.iterdir()] == ["report.json"]


def test_written_files_have_the_usual_permissions(tmp_path):
    write_image(image_of(ramp(), oblique()), tmp_path / "a.nii.gz")
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a.nii.gz").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_check_output_folder(tmp_path):
    assert check_output_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "sub"):
        with pytest.raises(InputError, match=r"output folder .*: expected a .*folder"):
            check_output_folder(path)


def test_output_folder_without_permission(tmp_path, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", denied)
    with pytest.raises(InputError, match=r"a writable folder, got .*\(Permission denied\); choose"):
        check_output_folder(tmp_path)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_output_folder_that_is_read_only(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="a writable folder"):
        check_output_folder(tmp_path / "x")
