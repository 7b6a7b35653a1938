"""Real files of ../shared; skipped where that folder is absent."""

import nibabel as nib
import numpy as np
import pytest
import torch
from data_phantoms import OPEN

from fusion_pipeline.data import InputError, case_from_paths, load_case, read_image
from fusion_pipeline.geometry import apply_affine, resample

pytestmark = pytest.mark.skipif(not OPEN.is_dir(), reason="shared/data/open is absent")

ODD, DICOM, SARCOMA = OPEN / "odd_nifti", OPEN / "dicom", OPEN / "3d_sarcoma_ct_mr_pet" / "sts008"


@pytest.mark.parametrize("order", ["AIL", "ARS", "PSR"])
def test_every_storage_order_is_the_same_image_in_the_world(order):
    ras, _ = read_image(ODD / "orient_RAS_same-image.nii.gz", "mr")
    other, warnings = read_image(ODD / f"orient_{order}_same-image.nii.gz", "mr")
    assert warnings == []
    points = np.stack(np.indices(ras.shape), -1).reshape(-1, 3)
    in_other = apply_affine(np.linalg.inv(other.affine) @ ras.affine, points)
    index = np.rint(in_other).astype(int)
    assert np.abs(in_other - index).max() < 1e-3
    np.testing.assert_array_equal(
        other.array[0].numpy()[tuple(index.T)], ras.array[0].numpy().ravel()
    )
    other_from_ras = torch.from_numpy(np.linalg.inv(other.affine) @ ras.affine)
    resampled = resample(other.array[None], other_from_ras, ras.shape)[0]
    torch.testing.assert_close(resampled, ras.array, atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("4d_20timepoints.nii.gz", "got 4 axes, shape 17x21x3x20"),
        ("minc1.mnc", "expected NIfTI, NRRD, MetaImage"),
        ("rgb_dtype.nii.gz", "got RGB voxels"),
        ("truncated_gzip_of_orient_RAS_same-image.nii.gz", "expected a whole NIfTI file"),
    ],
)
def test_odd_files_refused(name, message):
    with pytest.raises(InputError, match=message):
        read_image(ODD / name, "mr")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("bigendian_int16_LAS.nii.gz", (33, 41, 25)),
        ("flair.nrrd", (124, 160, 140)),
        ("metaimage_mri.mha", (64, 64, 37)),
        ("tiny_7x5x3.nii.gz", (7, 5, 3)),
    ],
)
def test_odd_files_read(name, shape, capfd):
    image, _ = read_image(ODD / name, "mr")
    assert image.shape == shape
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("folder", "name", "key"),
    [
        ("sts008_ct_image", "sts008_ct", "ct"),
        ("sts008_mr-t1_image", "sts008_mr-t1_space-ct", "mr"),
        ("sts008_pet_image", "sts008_pet-suv_space-ct", "pet"),
    ],
)
def test_dicom_equals_the_nifti_of_the_same_patient(folder, name, key, capfd):
    image, warnings = read_image(DICOM / folder, key)
    witness = nib.load(SARCOMA / f"{name}.nii.gz")
    np.testing.assert_allclose(image.affine, witness.affine, atol=1e-4)
    np.testing.assert_allclose(image.array[0].numpy(), witness.get_fdata(), atol=1e-6, rtol=1e-6)
    assert warnings == []
    assert image.units == {"ct": "HU", "mr": "a.u.", "pet": "SUV"}[key]
    assert capfd.readouterr() == ("", "")


def test_a_whole_dicom_case_loads():
    files = case_from_paths(
        "sts008",
        {
            "pet": DICOM / "sts008_pet_image",
            "ct": DICOM / "sts008_ct_image",
            "mr_t1": DICOM / "sts008_mr-t1_image",
        },
    )
    case = load_case(files)
    assert (list(case.images), case.warnings) == (["ct", "pet", "mr_t1"], ())


@pytest.mark.parametrize(
    ("name", "key", "message"),
    [
        ("sts008_ct_rtstruct", "ct", "got only RTSTRUCT"),
        ("single_files", "ct", "expected one series, got 3 series"),
        ("single_files/emri_small.dcm", "mr", "none of it in Enhanced MR Image Storage"),
        ("single_files/693_J2KR.dcm", "ct", "got a single slice"),
    ],
)
def test_dicom_refused(name, key, message):
    with pytest.raises(InputError, match=message):
        read_image(DICOM / name, key)


def test_enhanced_ct():
    image, warnings = read_image(DICOM / "single_files" / "eCT_Supplemental.dcm", "ct")
    assert image.shape == (512, 512, 2)
    assert any("RescaleType US" in text for text in warnings)  # a map of blood flow
    assert any("only 2 slices" in text for text in warnings)


def test_oblique_mr_series():
    image, _ = read_image(DICOM / "mr_t1_oblique_12slices", "mr")
    np.testing.assert_allclose(np.sort(image.spacing), [0.6667, 0.6667, 0.7], atol=1e-3)


def test_harvard_pictures():
    pictures = sorted((OPEN / "2d_harvard_brain").rglob("*.png"))
    grey = next(p for p in pictures if p.stem.endswith("_ct"))
    colour = next(p for p in pictures if p.stem.endswith("_pet"))
    assert read_image(grey, "ct")[0].colour is None
    image, _ = read_image(colour, "pet")
    assert image.colour.shape == (3, *image.shape) == (3, 256, 256)
