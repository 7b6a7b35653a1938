import numpy as np
import pytest
import torch
from data_phantoms import SHAPE, oblique, ramp, save_nifti
from PIL import Image as PillowImage

from fusion_pipeline.data import (
    InputError,
    NoOverlapError,
    case_from_entry,
    case_from_paths,
    load_case,
    read_datalist,
    write_displacement,
)


@pytest.fixture
def paths(tmp_path):
    """A CT and an MR of another grid that overlap."""
    ct = save_nifti(tmp_path / "ct.nii.gz", ramp() / 2 - 1000)
    mr = save_nifti(tmp_path / "mr.nii.gz", ramp((10, 12, 9)), oblique((1.5, 1.5, 2.0)))
    return {"mr": mr, "ct": ct}


def png(path, shape=(6, 5), seed=0):
    values = np.random.default_rng(seed).integers(0, 255, shape).astype(np.uint8)
    PillowImage.fromarray(values).save(path)
    return path


def test_a_case_with_everything(tmp_path, paths):
    field = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    write_displacement(field, oblique(), tmp_path / "field.nii.gz")
    save_nifti(
        tmp_path / "mask.nii.gz", (ramp((10, 12, 9)) > 9).astype(np.uint8), oblique((1.5, 1.5, 2))
    )
    x, y, z = point = (oblique() @ [3, 3, 2, 1])[:3]
    (tmp_path / "p.csv").write_text(f"{x},{y},{z}\n")
    (tmp_path / "cases.json").write_text(
        '{"testing": [{"id": "p", "mr": "mr.nii.gz", "ct": "ct.nii.gz", "mr_transform": "rigid",'
        ' "mr_displacement": "field.nii.gz", "mr_mask": "mask.nii.gz", "mr_label": "mask.nii.gz",'
        ' "mr_landmarks": "p.csv", "ct_landmarks": "p.csv", "target": 1}]}'
    )
    case = load_case(read_datalist(tmp_path / "cases.json")[0])
    assert list(case.images) == ["ct", "mr"]
    assert case.fixed.key == case.reference == "ct"
    assert case.series["mr"].transform == "rigid"
    torch.testing.assert_close(case.series["mr"].displacement, field)
    assert case.series["mr"].mask.array.unique().tolist() == [0.0, 1.0]
    assert case.series["mr"].labels.key == "mr_label"
    np.testing.assert_array_equal(case.series["mr"].landmarks, [point])
    assert (case.target, case.warnings) == (1, ())


def test_warnings_of_all_images_are_collected(tmp_path, paths):
    pet = save_nifti(tmp_path / "pet.nii.gz", ramp()[..., :4])
    case = load_case(case_from_paths("p", {**paths, "pet": pet}))
    assert [w.split(" (")[0] for w in case.warnings] == ["case 'p', pet"] * 2


@pytest.mark.parametrize("transform", ["none", "deformable"])
def test_images_that_share_no_space(tmp_path, paths, transform):
    far = save_nifti(tmp_path / "far.nii.gz", affine=oblique(origin=(-20, 31, 400)))
    files = case_from_paths("p", {**paths, "pet": far}, transforms={"pet": transform})
    with pytest.raises(
        NoOverlapError,
        match=r"case 'p', pet \(.*far.nii.gz\): expected an image that overlaps ct \(.* mm\), "
        r"got one at .* x 388\.\.419 mm \(world, RAS\); check that both are of the same patient",
    ):
        load_case(files)


def test_images_that_touch_at_a_face_share_nothing(tmp_path):
    axes = np.diag([1.0, 1.5, 3.0, 1.0])
    beside = axes.copy()
    beside[2, 3] = 3.0 * SHAPE[2]
    a = save_nifti(tmp_path / "a.nii.gz", affine=axes)
    b = save_nifti(tmp_path / "b.nii.gz", affine=beside)
    with pytest.raises(NoOverlapError):
        load_case(case_from_paths("p", {"ct": a, "mr": b}))
    beside[2, 3] -= 0.1
    save_nifti(b, affine=beside)
    assert load_case(case_from_paths("p", {"ct": a, "mr": b})).id == "p"


def test_2d_beside_3d(tmp_path, paths):
    flat = save_nifti(tmp_path / "flat.nii.gz", ramp()[..., 0], np.diag([1.0, 1.5, 3, 1]))
    with pytest.raises(InputError, match="expected 3D, as the reference ct, got 2D; give all"):
        load_case(case_from_paths("p", {**paths, "pet": flat}))


def test_pictures_of_different_size(tmp_path):
    files = case_from_paths(
        "p", {"ct": png(tmp_path / "a.png"), "mr": png(tmp_path / "b.png", (8, 9), 1)}
    )
    case = load_case(files)
    assert [image.shape for image in case.images.values()] == [(5, 6), (9, 8)]
    assert "9 x 8 pixels beside 5 x 6 of ct" in case.warnings[0]


def test_extras_must_fit_their_images(tmp_path, paths):
    def load(**extra):
        return load_case(case_from_entry({"id": "p", **paths, **extra}))

    far = save_nifti(tmp_path / "far.nii.gz", affine=oblique(origin=(0, 0, 900)))
    with pytest.raises(NoOverlapError, match=r"mr_label \(.*expected an image that overlaps mr"):
        load(mr_label=str(far))
    with pytest.raises(InputError, match=r"ct_mask \(.*expected 3D, as the reference ct, got 2D"):
        load(ct_mask=str(png(tmp_path / "m.png")))
    (tmp_path / "p.csv").write_text("1,2\n")
    (tmp_path / "q.csv").write_text("1,2,3\n4,5,6\n")
    (tmp_path / "r.csv").write_text("1,2,3\n")
    both = {"ct_landmarks": str(tmp_path / "q.csv"), "mr_landmarks": str(tmp_path / "r.csv")}
    with pytest.raises(InputError, match=r"mr_landmarks \(.*expected 2 points, .*, got 1;"):
        load(**both)
    with pytest.raises(InputError, match=r"mr_landmarks \(.*expected 3D.* got 2D"):
        load(mr_landmarks=str(tmp_path / "p.csv"))
    write_displacement(torch.zeros(3, 4, 5, 6), oblique(), tmp_path / "f.nii.gz")
    with pytest.raises(InputError, match=r"mr_displacement \(.*a field on the grid of ct"):
        load(mr_displacement=str(tmp_path / "f.nii.gz"))
    write_displacement(torch.zeros(3, *SHAPE), oblique((1, 1.5, 3.1)), tmp_path / "f.nii.gz")
    with pytest.raises(InputError, match=r"a field on the grid of ct"):
        load(mr_displacement=str(tmp_path / "f.nii.gz"))


def test_a_missing_file_names_case_key_and_file(tmp_path, paths):
    files = case_from_paths("p9", {**paths, "pet": tmp_path / "pet"})
    with pytest.raises(InputError, match=r"^case 'p9', pet \(.*/pet\): expected .*no such file"):
        load_case(files)
