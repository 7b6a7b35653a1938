"""2D input: pictures through the packaged 2D bundle, as its user runs it."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image as Picture

from fusion_pipeline.cli import main
from fusion_pipeline.pipeline import FusionPipeline, bundle_for, case_dataset
from fusion_pipeline.synthesis import synthetic_patient

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def patient(tmp_path_factory):
    """The folder of a synthetic patient's pictures."""
    datalist = synthetic_patient(3, spatial_dims=2).save(tmp_path_factory.mktemp("pictures"))
    entry = json.loads(datalist.read_text())["testing"][0]
    return datalist.parent, entry


def pixels(path):
    with Picture.open(path) as picture:
        return np.asarray(picture)


def given(patient, *keys):
    folder, entry = patient
    return [word for key in keys for word in (f"--{key}", str(folder / entry[key]))]


@pytest.fixture(scope="module")
def done(patient, tmp_path_factory):
    output = tmp_path_factory.mktemp("out")
    assert main(["run", *given(patient, "ct", "mr", "pet"), "--output", str(output)]) == 0
    return output / "case"


def test_png_input_gives_png_images_and_nifti_fields(done):
    assert {path.name for path in done.iterdir()} == {
        *(f"{key}_registered.png" for key in ("mr", "pet")),
        *(f"{key}_displacement.nii.gz" for key in ("mr", "pet")),
        *(f"{key}_harmonized.png" for key in ("ct", "mr", "pet")),
        *("fused.png", "weights.nii.gz", "report.json", "report.html"),
    }


def test_simpleitk_applies_the_field(patient, done):
    folder, entry = patient
    field = sitk.ReadImage(str(done / "mr_displacement.nii.gz"), sitk.sitkVectorFloat64)
    moving, fixed = (
        sitk.Cast(sitk.ReadImage(str(folder / entry[key])), sitk.sitkFloat32)
        for key in ("mr", "ct")
    )
    ours = pixels(done / "mr_registered.png").astype(float)
    warped = sitk.Resample(moving, fixed, sitk.DisplacementFieldTransform(field), sitk.sitkLinear)
    assert np.abs(sitk.GetArrayFromImage(warped) - ours)[2:-2, 2:-2].mean() < 0.5


def test_the_fused_image_lies_on_the_references_pixels(patient, done):
    folder, entry = patient
    assert pixels(done / "fused.png").shape == pixels(folder / entry["ct"]).shape
    weights = sitk.GetArrayFromImage(sitk.ReadImage(str(done / "weights.nii.gz")))
    assert np.allclose(weights.sum(0).max(), 1.0, atol=1e-5)


def test_colour_comes_back_in_colour(patient, tmp_path):
    folder, entry = patient
    grey = pixels(folder / entry["pet"])
    colour = np.stack([grey, grey // 2, 255 - grey], -1).astype(np.uint8)
    Picture.fromarray(colour).save(tmp_path / "pet.png")
    words = [*given(patient, "mr"), "--pet", str(tmp_path / "pet.png"), "--output", str(tmp_path)]
    assert main(["run", *words, "--refine-steps", "0"]) == 0
    assert pixels(tmp_path / "case" / "fused.png").shape[2:] == (3,)


def test_the_demo_in_2d(tmp_path, capsys):
    assert main(["demo", "--spatial-dims", "2", "--output", str(tmp_path)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " before" in line]
    before, after = (
        [float(line.split(",")[k].split(":")[-1].split()[0]) for line in lines] for k in (0, 1)
    )
    assert len(lines) == 2
    assert all(b < a / 2 for a, b in zip(before, after, strict=True))


def test_without_a_datalist_the_2d_bundle_runs_a_2d_patient(tmp_path):
    case = case_dataset(None, output_dir=tmp_path, spatial_dims=2)[0]
    pipeline = FusionPipeline.from_bundle(bundle_for(2), refine_steps=0)
    result = pipeline(case)
    assert result.fusion.fused.array.shape[1:] == result.case.fixed.shape
    assert torch.isfinite(result.fusion.fused.array).all()
    assert result.case.fixed.spatial_dims == 2


def test_same_pictures_same_bytes(patient, done, tmp_path):
    assert main(["run", *given(patient, "ct", "mr", "pet"), "--output", str(tmp_path)]) == 0
    for name in ("fused.png", "mr_displacement.nii.gz", "weights.nii.gz"):
        assert (tmp_path / "case" / name).read_bytes() == (done / name).read_bytes(), name
