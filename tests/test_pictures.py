"""2D input: pictures through the packaged 2D bundle, as its user runs it."""

import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.bundle import create_workflow
from PIL import Image as Picture
from pipeline_cases import preprocessing

from fusion_pipeline.cli import main
from fusion_pipeline.data import InputError, case_from_paths, load_case, read_image
from fusion_pipeline.data.palettes import palette
from fusion_pipeline.pipeline import FusionPipeline, bundle_for
from fusion_pipeline.synthesis import synthetic_patient
from fusion_pipeline.training import MultimodalData


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


@pytest.mark.slow
def test_png_input_gives_png_images_and_nifti_fields(done):
    assert {path.name for path in done.iterdir()} == {
        *(f"{key}_registered.png" for key in ("mr", "pet")),
        *(f"{key}_displacement.nii.gz" for key in ("mr", "pet")),
        *(f"{key}_transform{way}.h5" for key in ("mr", "pet") for way in ("", "_inverse")),
        *(f"{key}_harmonized.png" for key in ("ct", "mr", "pet")),
        *(f"{key}_harmonization.json" for key in ("ct", "mr", "pet")),
        *("fused.png", "fused_colour.png", "weights.nii.gz", "report.json", "report.html"),
    }


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_fused_image_lies_on_the_references_pixels(patient, done):
    folder, entry = patient
    assert pixels(done / "fused.png").shape == pixels(folder / entry["ct"]).shape
    weights = sitk.GetArrayFromImage(sitk.ReadImage(str(done / "weights.nii.gz")))
    assert np.allclose(weights.sum(0), 1.0, atol=1e-5)  # the CT sees all of it


@pytest.mark.slow
def test_uptake_comes_in_colour(patient, tmp_path):
    """Beside a grey fused image; a PET that is coloured by a common map is read back as uptake."""
    folder, entry = patient
    grey = pixels(folder / entry["pet"])
    Picture.fromarray(palette("hot_iron")[grey].astype(np.uint8)).save(tmp_path / "pet.png")
    words = [*given(patient, "mr"), "--pet", str(tmp_path / "pet.png"), "--output", str(tmp_path)]
    options = ["--refine-steps", "0", "--fuse-steps", "0", "--colour-map", "jet"]
    assert main(["run", *words, *options]) == 0
    assert pixels(tmp_path / "case" / "fused.png").ndim == 2
    colour = pixels(tmp_path / "case" / "fused_colour.png").astype(float)
    assert colour.shape[2] == 3
    assert np.ptp(colour, axis=2).max() > 50
    report = json.loads((tmp_path / "case" / "report.json").read_text())
    assert any("the colours are those of hot_iron" in text for text in report["warnings"])


@pytest.mark.slow
def test_the_demo_in_2d(tmp_path, capsys):
    assert main(["demo", "--spatial-dims", "2", "--output", str(tmp_path)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " before" in line]
    before, after = (
        [float(line.split(",")[k].split(":")[-1].split()[0]) for line in lines] for k in (0, 1)
    )
    assert len(lines) == 2
    assert all(b < a / 2 for a, b in zip(before, after, strict=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # MONAI warns about every config that it evaluates
@pytest.mark.parametrize("name", ["inference", "evaluate"])
def test_without_a_datalist_the_2d_bundle_runs_a_2d_patient(name, tmp_path):
    found = create_workflow(
        config_file=str(bundle_for(2) / "configs" / f"{name}.json"),
        workflow_type="inference",
        logging_file=False,
        bundle_root=str(bundle_for(2)),
        output_dir=str(tmp_path),
    )
    pipeline = FusionPipeline.from_bundle(bundle_for(2), refine_steps=0)
    result = pipeline.infer(found.dataset[0].case)
    assert result.fusion.fused.array.shape[1:] == result.case.fixed.shape
    assert torch.isfinite(result.fusion.fused.array).all()
    assert result.case.fixed.spatial_dims == 2


@pytest.mark.slow
def test_same_pictures_same_bytes(patient, done, tmp_path):
    assert main(["run", *given(patient, "ct", "mr", "pet"), "--output", str(tmp_path)]) == 0
    for name in ("fused.png", "mr_displacement.nii.gz", "weights.nii.gz"):
        assert (tmp_path / "case" / name).read_bytes() == (done / name).read_bytes(), name


@pytest.mark.slow
def test_a_small_picture_without_refinement(tmp_path):
    disc = np.hypot(*np.mgrid[-10:10, -10:10]) < 7
    for key, value in (("ct", 200), ("mr", 90)):
        Picture.fromarray((disc * value).astype(np.uint8)).save(tmp_path / f"{key}.png")
    words = ["--ct", str(tmp_path / "ct.png"), "--mr", str(tmp_path / "mr.png")]
    assert main(["run", *words, "--output", str(tmp_path), "--refine-steps", "0"]) == 0
    assert pixels(tmp_path / "case" / "fused.png").shape == (20, 20)


@pytest.mark.parametrize(("size", "warned"), [(40, True), (22, False)])
def test_pictures_of_different_sizes_are_named(size, warned, tmp_path):
    for key, side in (("ct", 20), ("mr", size)):
        disc = np.hypot(*(np.indices((side, side)) - side / 2)) < 0.35 * side
        Picture.fromarray((disc * 200).astype(np.uint8)).save(tmp_path / f"{key}.png")
    case = load_case(case_from_paths("a", {key: tmp_path / f"{key}.png" for key in ("ct", "mr")}))
    assert any("a pixel of each counts as 1 mm" in line for line in case.warnings) == warned


def test_a_2d_ct_in_hu_ends_in_air(tmp_path):
    array = np.full((30, 24), -1000.0, np.float32)
    array[8:22, 6:18] = np.linspace(-90.0, 60.0, 12)
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "ct.nii")
    image, notes = read_image(tmp_path / "ct.nii", "ct")
    assert (image.spatial_dims, image.units, image.fill_value, notes) == (2, "HU", -1000.0, [])
    Picture.fromarray((array + 1000).astype(np.uint8)).save(tmp_path / "ct.png")
    picture, notes = read_image(tmp_path / "ct.png", "ct")
    assert (picture.units, picture.fill_value, notes) == ("a.u.", 0.0, [])


def test_a_demo_of_other_dimensions_than_its_bundle_is_refused(tmp_path, capsys):
    words = ["--spatial-dims", "3", "--bundle", str(bundle_for(2)), "--output", str(tmp_path)]
    assert main(["demo", *words]) == 2
    assert "--spatial-dims: expected 2, as the bundle" in capsys.readouterr().err


def test_training_cases_of_other_dimensions_are_refused(patient, tmp_path):
    folder, entry = patient
    names = {key: str(folder / entry[key]) for key in ("ct", "mr")}
    content = {"training": [{"id": "a", **names}], "validation": []}
    (tmp_path / "cases.json").write_text(json.dumps(content))
    steps = preprocessing(3)
    data = MultimodalData([33, 33, 33], datalist=tmp_path / "cases.json", preprocessing=steps)
    with pytest.raises(InputError, match="at least one usable case, got 1 that are not"):
        data.setup()


@pytest.mark.parametrize("other", [200, 199])
def test_one_file_for_two_images_is_said(other, tmp_path):
    disc = np.hypot(*(np.indices((20, 20)) - 10)) < 7
    for key, value in (("ct", 200), ("mr", other)):
        Picture.fromarray((disc * value).astype(np.uint8)).save(tmp_path / f"{key}.png")
    case = load_case(case_from_paths("a", {key: tmp_path / f"{key}.png" for key in ("ct", "mr")}))
    assert any("voxel by voxel" in line for line in case.warnings) == (other == 200)
