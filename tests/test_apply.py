"""A saved result on other images, labels and points; ITK's files, read back by SimpleITK."""

import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from pipeline_cases import OTHER_AFFINE, body, small_pipeline

import fusion_pipeline.pipeline.inferer as inferer_module
import fusion_pipeline.report.write as write_module
from fusion_pipeline.cli import main
from fusion_pipeline.data import InputError, read_points, read_transform, write_transform
from fusion_pipeline.geometry import WorldMap, rigid_matrix
from fusion_pipeline.pipeline import SavedRegistration
from fusion_pipeline.register import Evidence, Registration

LPS = np.array([-1.0, -1.0, 1.0])


def bent(d, affine, shape):
    """Three degrees, some millimetres, and a smooth deformation of up to 2 mm."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), 0)
    waves = [2 * np.sin(2 * np.pi * (index.sum(0) / 30 + axis / 5)) for axis in range(d)]
    angles = [3.0, -2.0, 1.0][: 1 if d == 2 else 3]
    matrix = rigid_matrix(angles, [2.0, -1.5, 3.0][:d], [0.0] * d)
    return WorldMap(matrix, torch.tensor(np.stack(waves), dtype=torch.float32), affine)


class BentRegister:
    """Stands for the register stage: a map that is known."""

    def __init__(self, network, **settings):
        pass

    def __call__(self, fixed, moving, *, transform="deformable", **options):
        image = fixed.image
        return Registration(
            bent(image.spatial_dims, image.affine, image.shape), Evidence("deformable")
        )


def write_patient(folder):
    """A turned CT and an MR on another grid; no shear, which SimpleITK does not read."""
    folder.mkdir()
    turned = rigid_matrix([5.0, -8.0, 12.0], [0.0] * 3, [0.0] * 3)
    grid = np.diag([-1.5, 1.2, 3.0, 1.0])
    grid[:3, 3] = [20, -18, -30]
    rng = np.random.default_rng(4)
    paths = {}
    for key, affine, shape in (
        ("ct", turned @ grid, (26, 30, 18)),
        ("mr", OTHER_AFFINE, (24, 20, 26)),
    ):
        values = body(shape, affine, rng) * (1000 if key == "ct" else 300)
        paths[key] = folder / f"{key}.nii.gz"
        values = (values - 1000 * (key == "ct")).astype(np.float32)
        nib.save(nib.Nifti1Image(values, affine), paths[key])
    return paths


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """The paths of a patient, and the folder of a case with a known map."""
    root = tmp_path_factory.mktemp("saved")
    paths = write_patient(root / "patient")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inferer_module, "Register", BentRegister)
        patch.setattr(write_module, "render_html", lambda *_: "")  # the page takes most of the time
        case = {"id": "p1", **{key: str(path) for key, path in paths.items()}}
        folder = small_pipeline().run(case, root / "out")
    return paths, folder


def sitk_points(path, points):
    """What SimpleITK makes of RAS points."""
    transform = sitk.ReadTransform(str(path))
    return np.array([transform.TransformPoint(p) for p in (points * LPS).tolist()]) * LPS


def inner_points(count=40):
    """RAS points inside the patient."""
    return np.random.default_rng(5).uniform(-10, 10, (count, 3))


class TestTransformFiles:
    @pytest.mark.parametrize("d", [2, 3])
    def test_simpleitk_maps_points_as_we_do(self, d, tmp_path):
        affine = np.diag([*[2.0] * d, 1.0])
        affine[:d, d] = -20
        world_map = bent(d, affine, (21,) * d)
        write_transform(world_map, tmp_path / "t.h5")
        transform = sitk.ReadTransform(str(tmp_path / "t.h5"))
        points = np.random.default_rng(2).uniform(-15, 15, (50, d))
        signs = LPS[-d:] if d == 3 else np.array([-1.0, -1.0])
        itk = np.array([transform.TransformPoint(p) for p in (points * signs).tolist()]) * signs
        # the rounding of the file: half of 2 mm / 1024 along each axis
        np.testing.assert_allclose(itk, world_map.points(points), atol=2e-3)
        again = read_transform(tmp_path / "t.h5")
        np.testing.assert_allclose(again.points(points), itk, atol=1e-4)

    def test_an_affine_alone_has_no_field_and_is_exact(self, tmp_path):
        matrix = rigid_matrix([4.0, 5.0, 6.0], [1.0, 2.0, 3.0], [0.0] * 3)
        still = WorldMap(matrix, torch.zeros(3, 5, 5, 5), np.eye(4))
        write_transform(still, tmp_path / "t.h5")
        assert (tmp_path / "t.h5").stat().st_size < 50_000
        np.testing.assert_allclose(read_transform(tmp_path / "t.h5").moving_from_fixed, matrix)

    def test_long_fields_are_packed(self, tmp_path):
        affine = np.diag([2.0, 2.0, 2.0, 1.0])
        write_transform(bent(3, affine, (41, 41, 41)), tmp_path / "t.h5")
        assert (tmp_path / "t.h5").stat().st_size < 0.6 * 41**3 * 3 * 8

    def test_rigid_transforms_of_others_are_read(self, tmp_path):
        euler = sitk.Euler3DTransform((1.0, 2.0, 3.0), 0.1, -0.2, 0.05, (4.0, 5.0, 6.0))
        sitk.WriteTransform(euler, str(tmp_path / "r.tfm"))
        points = inner_points(5)
        expected = np.array([euler.TransformPoint(p) for p in (points * LPS).tolist()]) * LPS
        found = read_transform(tmp_path / "r.tfm").points(points)
        np.testing.assert_allclose(found, expected, atol=1e-6)

    def test_what_is_no_such_transform_is_refused(self, tmp_path):
        spline = sitk.BSplineTransformInitializer(sitk.Image([9, 9, 9], sitk.sitkUInt8), [3, 3, 3])
        sitk.WriteTransform(spline, str(tmp_path / "b.h5"))
        with pytest.raises(InputError, match="at most one displacement field"):
            read_transform(tmp_path / "b.h5")
        with pytest.raises(InputError, match="no such file"):
            read_transform(tmp_path / "none.h5")


class TestARun:
    def test_simpleitk_resamples_what_the_run_registered(self, result):
        paths, folder = result
        fixed, moving = (sitk.ReadImage(str(paths[k]), sitk.sitkFloat32) for k in ("ct", "mr"))
        transform = sitk.ReadTransform(str(folder / "mr_transform.h5"))
        resampled = sitk.Resample(moving, fixed, transform, sitk.sitkLinear, 0.0)
        ours = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "mr_registered.nii.gz")))
        difference = np.abs(sitk.GetArrayFromImage(resampled) - ours)
        # at the edge of the moving image half a voxel decides between value and fill
        assert np.quantile(difference, 0.98) < 0.01 * ours.max()

    def test_the_inverse_is_the_way_back(self, result):
        _, folder = result
        points = inner_points()
        there = sitk_points(folder / "mr_transform.h5", points)
        assert np.linalg.norm(there - points, axis=1).min() > 1
        back = sitk_points(folder / "mr_transform_inverse.h5", there)
        assert np.linalg.norm(back - points, axis=1).max() < 0.05


class TestSavedRegistration:
    def test_points_come_back_exactly(self, result):
        saved = SavedRegistration.load(result[1])
        points = inner_points()
        there = saved.points(points, inverse=True)
        np.testing.assert_allclose(saved.points(there), points, atol=1e-3)
        np.testing.assert_allclose(
            there, sitk_points(result[1] / "mr_transform.h5", points), atol=1e-3
        )

    def test_a_key_that_is_none_and_a_folder_that_is_none(self, result, tmp_path):
        with pytest.raises(InputError, match=r"expected the key of a moving image \(mr\)"):
            SavedRegistration.load(result[1], "pet")
        with pytest.raises(InputError, match="got none"):
            SavedRegistration.load(tmp_path)
        (tmp_path / "report.json").write_text("{}")
        with pytest.raises(InputError, match="run the case again"):
            SavedRegistration.load(tmp_path)


class TestCommand:
    def test_the_moving_image_again_is_the_registered_one(self, result, tmp_path):
        paths, folder = result
        given = ["--result", str(folder), "--images", str(paths["mr"]), "--output", str(tmp_path)]
        assert main(["apply", *given]) == 0
        again = nib.load(tmp_path / "mr_warped.nii.gz")
        before = nib.load(folder / "mr_registered.nii.gz")
        np.testing.assert_array_equal(again.affine, before.affine)
        np.testing.assert_allclose(again.get_fdata(), before.get_fdata(), atol=0.5)

    def test_labels_are_simpleitks_by_the_nearest_voxel(self, result, tmp_path):
        paths, folder = result
        mr = nib.load(paths["mr"])
        labels = tmp_path / "organ.nii.gz"
        nib.save(nib.Nifti1Image((mr.get_fdata() > 150).astype(np.uint8), mr.affine), labels)
        given = ["--result", str(folder), "--labels", str(labels), "--output", str(tmp_path)]
        assert main(["apply", *given]) == 0
        ours = sitk.ReadImage(str(tmp_path / "organ_warped.nii.gz"))
        fixed, moving = sitk.ReadImage(str(paths["ct"])), sitk.ReadImage(str(labels))
        transform = sitk.ReadTransform(str(folder / "mr_transform.h5"))
        theirs = sitk.Resample(moving, fixed, transform, sitk.sitkNearestNeighbor, 0)
        a, b = (sitk.GetArrayFromImage(x) > 0 for x in (ours, theirs))
        assert a.sum() > 500
        assert (a != b).sum() <= 0.001 * a.size

    def test_the_reference_goes_to_the_grid_of_the_moving_image(self, result, tmp_path):
        paths, folder = result
        given = ["--result", str(folder), "--images", str(paths["ct"]), "--output", str(tmp_path)]
        assert main(["apply", *given, "--inverse", "--onto", str(paths["mr"])]) == 0
        warped, mr = nib.load(tmp_path / "ct_warped.nii.gz"), nib.load(paths["mr"])
        np.testing.assert_allclose(warped.affine, mr.affine, atol=1e-5)
        inside = mr.get_fdata() > 150
        values = warped.get_fdata()
        assert values[0, 0, 0] == -1000
        moving = sitk.ReadImage(str(paths["ct"]), sitk.sitkFloat32)
        grid = sitk.ReadImage(str(paths["mr"]))
        transform = sitk.ReadTransform(str(folder / "mr_transform_inverse.h5"))
        theirs = sitk.Resample(moving, grid, transform, sitk.sitkLinear, -1000.0)
        difference = np.abs(sitk.GetArrayFromImage(theirs).T - values)[inside]
        assert np.quantile(difference, 0.98) < 5  # HU

    @pytest.mark.parametrize("system", ["RAS", "LPS"])
    def test_markups_of_3d_slicer_keep_all_else(self, result, tmp_path, system):
        signs = LPS if system == "LPS" else np.ones(3)
        points = inner_points(3)
        control = [
            {"id": str(n), "label": f"F-{n}", "position": (p * signs).tolist()}
            for n, p in enumerate(points)
        ]
        markup = {"type": "Fiducial", "coordinateSystem": system, "controlPoints": control}
        (tmp_path / "f.mrk.json").write_text(json.dumps({"markups": [markup]}))
        rows = [
            f"v{n},{','.join(map(str, p * signs))},0,0,0,1,1,1,0,F-{n},a; b,"
            for n, p in enumerate(points)
        ]
        head = ["# Markups fiducial file version = 4.11", f"# CoordinateSystem = {system}"]
        (tmp_path / "g.fcsv").write_text("\n".join([*head, *rows]) + "\n")
        given = [str(tmp_path / "f.mrk.json"), str(tmp_path / "g.fcsv")]
        command = ["apply", "--result", str(result[1]), "--output", str(tmp_path / "out")]
        assert main([*command, "--inverse", "--points", *given]) == 0
        expected = sitk_points(result[1] / "mr_transform.h5", points)
        for name in ("f_warped.mrk.json", "g_warped.fcsv"):
            found = read_points(tmp_path / "out" / name).points
            np.testing.assert_allclose(found, expected, atol=2e-3)
        fresh = json.loads((tmp_path / "out" / "f_warped.mrk.json").read_text())
        assert [c["label"] for c in fresh["markups"][0]["controlPoints"]] == ["F-0", "F-1", "F-2"]
        assert "F-2,a; b," in (tmp_path / "out" / "g_warped.fcsv").read_text()

    def test_a_csv(self, result, tmp_path):
        points = inner_points(4)
        np.savetxt(tmp_path / "p.csv", points, delimiter=",", header="x,y,z", comments="")
        command = ["apply", "--result", str(result[1]), "--output", str(tmp_path)]
        assert main([*command, "--points", str(tmp_path / "p.csv")]) == 0
        warped = read_points(tmp_path / "p_warped.csv").points
        there = sitk_points(result[1] / "mr_transform.h5", warped)
        np.testing.assert_allclose(there, points, atol=2e-3)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "got none"),
            (["--points", "a.txt"], "expected .csv or .fcsv or .mrk.json, got .txt"),
            (["--points", "a/p.csv", "b/p.csv"], "'p' twice"),
            (["--images", "none.nii.gz"], "no such file"),
        ],
    )
    def test_what_cannot_be_applied_is_one_line(self, result, tmp_path, capsys, arguments, message):
        command = ["apply", "--result", str(result[1]), "--output", str(tmp_path / "out")]
        assert main([*command, *arguments]) == 2
        said = capsys.readouterr().err.strip()
        assert message in said
        assert "\n" not in said
