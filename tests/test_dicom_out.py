"""DICOM objects of a result: valid by dciodvfy, and read back by pydicom, highdicom, SimpleITK."""

import shutil
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from dicom_patient import FRAME, GRIDS, SHAPES, STUDY, write_dicom_patient
from pipeline_cases import small_pipeline
from scipy.ndimage import map_coordinates
from test_apply import BentRegister, write_patient

import fusion_pipeline.pipeline.inferer as inferer_module
from fusion_pipeline.cli import main
from fusion_pipeline.data import InputError, read_image
from fusion_pipeline.dicom import DicomExport, check_dicom_export, write_dicom
from fusion_pipeline.dicom.registration import registration_object
from fusion_pipeline.dicom.study import SeriesOf, Study
from fusion_pipeline.geometry import WorldMap, apply_affine, rigid_matrix

LPS = np.array([-1.0, -1.0, 1.0])


def with_error(result):
    """The same with an estimated error on the working lattice, which a stand-in has not."""
    found = {}
    for key, one in result.registrations.items():
        error = one.map.ddf_mm.square().sum(0).sqrt()
        found[key] = replace(one, evidence=replace(one.evidence, error_map_mm=error))
    return replace(result, registrations=found)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A DICOM patient and a NIfTI patient, and their objects."""
    root = tmp_path_factory.mktemp("dicom")
    paths = write_dicom_patient(root / "patient")
    nifti = write_patient(root / "nifti")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inferer_module, "Register", BentRegister)
        pipeline = small_pipeline()
        result = with_error(pipeline({"id": "p1", **{k: str(p) for k, p in paths.items()}}))
        other = pipeline({"id": "p2", **{k: str(p) for k, p in nifti.items()}})
    write_dicom(result, root / "copy", DicomExport())
    write_dicom(result, root / "removed", DicomExport("remove"))
    write_dicom(other, root / "nifti_out", DicomExport(patient_id="X1"))
    return SimpleNamespace(root=root, paths=paths, result=result, other=other, copy=root / "copy")


def one_of_each(folder):
    """The first slice of each series, and all single files."""
    return [f for f in sorted(folder.rglob("*.dcm")) if f.parent == folder or f.stem == "0001"]


def itk_series(folder):
    """A series by SimpleITK."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def corners(image):
    """The corners of a SimpleITK image, RAS mm."""
    ends = [(0, n - 1) for n in image.GetSize()]
    index = np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(-1, 3)
    return np.array([image.TransformIndexToPhysicalPoint(i) for i in index.tolist()]) * LPS


def expected_corners(key="ct"):
    """Those of a grid of the patient, RAS mm."""
    ends = [(0, n - 1) for n in SHAPES[key]]
    index = np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(-1, 3)
    return apply_affine(GRIDS[key], index)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (dicom3tools) is missing")
@pytest.mark.parametrize("name", ["copy", "removed", "nifti_out"])
def test_each_object_is_valid(out, name):
    files = one_of_each(out.root / name)
    assert len(files) >= 6
    for file in files:
        said = subprocess.run(["dciodvfy", "-new", file], capture_output=True, text=True).stderr
        assert not [line for line in said.splitlines() if line.startswith("Error")], file


class TestRegisteredSeries:
    @pytest.mark.parametrize("key", ["mr", "pet"])
    def test_simpleitk_reads_it_on_the_reference(self, out, key):
        image = itk_series(out.copy / f"{key}_registered")
        np.testing.assert_allclose(corners(image), expected_corners(), atol=0.01)
        first = pydicom.dcmread(out.copy / f"{key}_registered" / "0001.dcm")
        step = float(first.get("RescaleSlope", 1))
        values = sitk.GetArrayFromImage(image).T
        found = out.result.registered_images[key].array[0].numpy()
        assert np.abs(values - found).max() <= 0.5 * step + 1e-5 * found.max()

    def test_the_own_reader_gets_the_suv_back(self, out):
        image, messages = read_image(str(out.copy / "pet_registered"), "pet")
        assert image.units == "SUV"
        assert not messages
        found = out.result.registered_images["pet"]
        assert found.units == "SUV"
        np.testing.assert_allclose(image.array, found.array, atol=found.array.max().item() / 6e4)

    def test_the_step_of_the_source_is_kept(self, out):
        first = pydicom.dcmread(out.copy / "mr_registered" / "0001.dcm")
        assert "RescaleSlope" not in first  # as in the source
        assert first.EchoTime == 12.5

    def test_it_is_derived_and_names_what_it_was_made_from(self, out):
        uids = {
            pydicom.dcmread(f, stop_before_pixels=True).SOPInstanceUID: n
            for n, f in enumerate(sorted(out.paths["mr"].iterdir()))
        }
        grid = out.result.fusion.fused
        for number in (1, 9, 18):
            ds = pydicom.dcmread(out.copy / "mr_registered" / f"{number:04}.dcm")
            assert ds.ImageType[:2] == ["DERIVED", "SECONDARY"]
            assert ds.DerivationDescription == "mr registered to ct (deformable)"
            named = {uids[one.ReferencedSOPInstanceUID] for one in ds.SourceImageSequence}
            slab = np.stack(np.meshgrid(np.arange(26), np.arange(30), [number - 1]), -1)
            there = out.result.registrations["mr"].map.points(apply_affine(grid.affine, slab))
            k = apply_affine(np.linalg.inv(GRIDS["mr"]), there)[..., 2]
            used = set(range(max(0, int(np.floor(k.min()))), min(25, int(np.ceil(k.max()))) + 1))
            assert used <= named
            assert len(named) <= len(used) + 3
            listed = ds.ReferencedSeriesSequence[0].ReferencedInstanceSequence
            assert len(listed) == len(named)

    def test_patient_and_frame_are_the_references(self, out):
        for file in one_of_each(out.copy):
            ds = pydicom.dcmread(file)
            assert (str(ds.PatientName), ds.PatientID) == ("Grün^Ada", "P-17")
            assert ds.StudyInstanceUID == STUDY
            assert ds.FrameOfReferenceUID == f"{FRAME}.0"

    def test_equal_exports_have_equal_uids(self, out):
        case = out.result.case
        made = [("abc", DicomExport()), ("abc", DicomExport()), ("abc", DicomExport("remove"))]
        uids = [Study(case, options, digest).uid("a", "1") for digest, options in made]
        assert uids[0] == uids[1] != uids[2]
        assert Study(case, DicomExport(), "").uid("a") != Study(case, DicomExport(), "").uid("a")


class TestFused:
    def test_colour_frames(self, out):
        ds = pydicom.dcmread(out.copy / "fused.dcm")
        expected = out.result.fusion.colour.colour.numpy().transpose(3, 2, 1, 0)
        assert ds.pixel_array.shape == expected.shape
        assert np.abs(ds.pixel_array - expected).max() <= 0.5
        image = sitk.ReadImage(str(out.copy / "fused.dcm"))
        np.testing.assert_allclose(corners(image), expected_corners(), atol=0.01)

    def test_grey_without_uptake(self, out):
        ds = pydicom.dcmread(out.root / "nifti_out" / "fused.dcm")
        expected = out.other.fusion.fused.array[0].numpy().transpose(2, 1, 0)
        normal = np.cross(
            *np.reshape(
                ds.SharedFunctionalGroupsSequence[0]
                .PlaneOrientationSequence[0]
                .ImageOrientationPatient,
                (2, 3),
            )
        )
        axis = out.other.fusion.fused.affine[:3, 2] * LPS
        expected = expected[::-1] if axis @ normal < 0 else expected
        assert np.abs(ds.pixel_array / 65535 - expected).max() <= 0.51 / 65535


class TestRegistrations:
    def test_a_deformable_object_maps_as_we_do(self, out):
        ds = pydicom.dcmread(out.copy / "mr_registration.dcm")
        item = ds.DeformableRegistrationSequence[0]
        assert item.SourceFrameOfReferenceUID == f"{FRAME}.1"
        assert len(item.ReferencedImageSequence) == SHAPES["mr"][2]
        world_map = out.result.registrations["mr"].map
        points = np.random.default_rng(1).uniform(-10, 10, (40, 3))
        found = through_dicom(item, points * LPS) * LPS
        np.testing.assert_allclose(found, world_map.points(points), atol=0.01)

    def test_a_rigid_object_brings_moving_points_over(self, out):
        matrix = rigid_matrix([4.0, 5.0, 6.0], [1.0, 2.0, 3.0], [0.0] * 3)
        still = WorldMap(matrix, torch.zeros(3, 2, 2, 2), np.eye(4))
        study = Study(out.result.case, DicomExport(), "")
        ds = registration_object(still, "mr", study, SeriesOf("r", 1, "REG", "mr"), "rigid")
        fixed, moving = ds.RegistrationSequence
        assert (fixed.FrameOfReferenceUID, moving.FrameOfReferenceUID) == (
            FRAME + ".0",
            FRAME + ".1",
        )
        item = moving.MatrixRegistrationSequence[0].MatrixSequence[0]
        assert item.FrameOfReferenceTransformationMatrixType == "RIGID"
        given = np.reshape(item.FrameOfReferenceTransformationMatrix, (4, 4)).astype(float)
        points = np.random.default_rng(1).uniform(-50, 50, (9, 3))
        back = apply_affine(given, still.points(points) * LPS) * LPS
        np.testing.assert_allclose(back, points, atol=1e-4)

    def test_a_sheared_lattice_gets_right_angles(self, out):
        affine = np.diag([2.0, 2.0, 2.0, 1.0])
        affine[0, 2], affine[:3, 3] = 0.2, -20
        index = np.stack(np.meshgrid(*[np.arange(21)] * 3, indexing="ij"), 0)
        waves = [2 * np.sin(index.sum(0) / 12 + axis) for axis in range(3)]
        bent = WorldMap(np.eye(4), torch.tensor(np.stack(waves), dtype=torch.float32), affine)
        study = Study(out.result.case, DicomExport(), "")
        ds = registration_object(bent, "mr", study, SeriesOf("r", 1, "REG", "mr"), "bent")
        points = np.random.default_rng(1).uniform(-10, 10, (40, 3))
        found = through_dicom(ds.DeformableRegistrationSequence[0], points * LPS) * LPS
        # linear between other nodes: bounded by the waves' curvature
        np.testing.assert_allclose(found, bent.points(points), atol=0.05)


def through_dicom(item, points):
    """DICOM PS3.3 C.20.3.1.1 word by word: ``post @ (pre @ x + d(x))``, LPS mm."""
    pre, post = (
        np.reshape(one[0].FrameOfReferenceTransformationMatrix, (4, 4)).astype(float)
        for one in (
            item.PreDeformationMatrixRegistrationSequence,
            item.PostDeformationMatrixRegistrationSequence,
        )
    )
    grid = item.DeformableRegistrationGridSequence[0]
    row, column = np.reshape(grid.ImageOrientationPatient, (2, 3)).astype(float)
    axes = np.stack([row, column, np.cross(row, column)], 1) * grid.GridResolution
    index = (points - np.array(grid.ImagePositionPatient, float)) @ np.linalg.inv(axes).T
    x, y, z = grid.GridDimensions
    vectors = np.frombuffer(grid.VectorGridData, "<f4").reshape(z, y, x, 3)
    shift = [map_coordinates(vectors[..., c], index.T[::-1], order=1) for c in range(3)]
    return apply_affine(post, apply_affine(pre, points) + np.stack(shift, -1))


class TestMaps:
    def test_weights(self, out):
        for key, weights in zip(out.result.modalities, out.result.fusion.weights, strict=True):
            image = hd.imread(out.copy / f"weights_{key}.dcm")
            expected = weights.numpy().transpose(2, 1, 0)
            assert np.abs(real_world(image) - expected).max() <= 1e-5
            plane = image.SharedFunctionalGroupsSequence[0]
            turn = plane.PlaneOrientationSequence[0].ImageOrientationPatient
            spacing = np.linalg.norm(GRIDS["ct"][:3, :3], axis=0)
            axes = (GRIDS["ct"][:3, :2] / spacing[:2]).T * LPS
            np.testing.assert_allclose(turn, axes.ravel(), atol=1e-6)
            given = plane.PixelMeasuresSequence[0].PixelSpacing
            np.testing.assert_allclose(given, spacing[[1, 0]], atol=1e-6)

    def test_the_estimated_error_is_in_mm(self, out):
        image = hd.imread(out.copy / "mr_error.dcm")
        shared = image.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
        assert shared.MeasurementUnitsCodeSequence[0].CodeValue == "mm"
        error = out.result.registrations["mr"].evidence.error_map_mm
        # the lattice of the stand-in is the reference's grid in canonical axes
        lattice = out.result.case.fixed
        expected = lattice.with_array(error[None]).in_axes_of(GRIDS["ct"]).array[0].numpy()
        assert np.abs(real_world(image) - expected.transpose(2, 1, 0)).max() < 1e-3


def real_world(image):
    """The values of all frames, put where their positions say (highdicom has its own order)."""
    frames = image.get_frames(apply_real_world_transform=True)
    positions = [
        frame.PlanePositionSequence[0].ImagePositionPatient
        for frame in image.PerFrameFunctionalGroupsSequence
    ]
    index = apply_affine(np.linalg.inv(GRIDS["ct"]), np.array(positions, float) * LPS)
    spacing = np.linalg.norm(GRIDS["ct"][:3, :3], axis=0)
    assert np.abs((index - np.rint(index)) * spacing).max() < 0.01  # mm
    assert not np.rint(index[:, :2]).any()
    return frames[np.argsort(index[:, 2])]


class TestIdentity:
    def test_removed_leaves_nothing_of_the_patient(self, out):
        files = list((out.root / "removed").rglob("*.dcm"))
        assert (out.root / "removed" / "ct" / "0001.dcm") in files  # there is no other reference
        secret = ["Grün", "P-17", "19610203", "20240102", "1.2.840.99999.17", "Maker"]
        for file in files:
            content = file.read_bytes()
            assert not [text for text in secret if text.encode() in content], file
        ds = pydicom.dcmread(out.root / "removed" / "fused.dcm")
        assert ds.PatientIdentityRemoved == "YES"

    def test_nothing_is_invented(self, out):
        for file in one_of_each(out.root / "nifti_out"):
            ds = pydicom.dcmread(file)
            assert ds.PatientID == "X1"
            empty = (ds.PatientName, ds.PatientBirthDate, ds.PatientSex, ds.StudyID, ds.StudyDate)
            assert not any(str(value or "") for value in empty)
            assert "PatientIdentityRemoved" not in ds
        frames = {
            pydicom.dcmread(f).FrameOfReferenceUID for f in one_of_each(out.root / "nifti_out")
        }
        assert len(frames) == 1

    def test_the_reference_goes_with_what_refers_to_it(self, out):
        image = itk_series(out.root / "nifti_out" / "ct")
        values = sitk.GetArrayFromImage(image)
        fixed = sitk.ReadImage(out.other.case.fixed.path)
        same = sitk.Resample(image, fixed, sitk.Transform(), sitk.sitkNearestNeighbor)
        assert np.abs(sitk.GetArrayFromImage(same) - sitk.GetArrayFromImage(fixed)).max() < 0.05
        assert values.shape == fixed.GetSize()[::-1]


class TestRefusals:
    def test_another_patient_by_option(self, out):
        with pytest.raises(InputError, match="expected a patient_id only where no DICOM header"):
            check_dicom_export(out.result.case, DicomExport(patient_id="Q"))
        with pytest.raises(InputError, match="--dicom-identity remove: expected no patient_name"):
            check_dicom_export(out.result.case, DicomExport("remove", patient_name="A^B"))

    def test_a_reference_of_unknown_acquisition(self, out):
        case = out.other.case
        uptake = replace(case.fixed, key="pet", units="a.u.")
        series = {"pet": replace(case.series["ct"], image=uptake), "mr": case.series["mr"]}
        with pytest.raises(InputError, match="a CT or MR as the reference of DICOM output"):
            check_dicom_export(replace(case, reference="pet", series=series), DicomExport())

    def test_a_sheared_reference(self, out):
        case = out.other.case
        affine = case.fixed.affine.copy()
        affine[:3, 1] += 0.01 * affine[:3, 0]
        sheared = replace(case.fixed, affine=affine)
        series = {**case.series, "ct": replace(case.series["ct"], image=sheared)}
        with pytest.raises(InputError, match="rows and columns at right angles for DICOM"):
            check_dicom_export(replace(case, series=series), DicomExport())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"identity": "keep"}, "expected copy or remove, got 'keep'"),
            ({"patient_id": "a\\b"}, "printable characters without a backslash"),
        ],
    )
    def test_options(self, options, message):
        with pytest.raises(InputError, match=message.replace("\\", "")):
            DicomExport(**options)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--patient-id", "A"], "expected --dicom with --patient-id, got none"),
            (["--dicom", "--dicom-identity", "keep"], "invalid choice: 'keep'"),
        ],
    )
    def test_arguments(self, out, tmp_path, capsys, arguments, message):
        paths = [f"--{key}={path}" for key, path in out.paths.items()]
        assert main(["run", *paths, "--output", str(tmp_path), *arguments]) == 2
        said = capsys.readouterr().err.strip()
        assert message in said
        assert "\n" not in said


@pytest.mark.slow
def test_the_command_writes_a_folder_and_resumes(out, tmp_path, capsys):
    paths = [f"--{key}={out.paths[key]}" for key in ("ct", "mr")]
    steps = ["--refine-steps", "0", "--fuse-steps", "0", "--transform", "rigid", "--resume"]
    command = ["run", *paths, *steps, "--id", "a", "--output", str(tmp_path)]
    folder = tmp_path / "a" / "dicom"
    assert main(command) == 0
    assert not folder.exists()
    assert main([*command, "--dicom"]) == 0  # resume must not take the run without it for done
    assert (folder / "mr_registered" / "0018.dcm").is_file()
    before = (folder / "fused.dcm").stat().st_mtime_ns
    assert main([*command, "--dicom"]) == 0
    assert (folder / "fused.dcm").stat().st_mtime_ns == before
    assert main([*command, "--dicom", "--dicom-identity", "remove"]) == 0
    assert pydicom.dcmread(folder / "fused.dcm").PatientID == ""
    assert main(command) == 0
    assert not folder.exists()
    capsys.readouterr()
