"""A saved result on RT Structure Sets and Segmentations, against SimpleITK with the ``.h5``."""

import shutil
import subprocess

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_patient import GRIDS, PATIENT, SHAPES, write_dicom_patient
from pipeline_cases import small_pipeline
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid
from skimage.draw import polygon2mask
from test_apply import BentRegister

import fusion_pipeline.pipeline.inferer as inferer_module
import fusion_pipeline.report.write as write_module
from fusion_pipeline.cli import main
from fusion_pipeline.dicom.solid import Solid
from fusion_pipeline.geometry import apply_affine

LPS = np.array([-1.0, -1.0, 1.0])


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """The folders of CT and MR, and a result folder with a map that is known."""
    root = tmp_path_factory.mktemp("contours")
    paths = write_dicom_patient(root / "patient", ("ct", "mr"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inferer_module, "Register", BentRegister)
        patch.setattr(write_module, "render_html", lambda *_: "")  # the page takes most of the time
        entry = {"id": "p1", **{key: str(path) for key, path in paths.items()}}
        result = small_pipeline()(entry)
        folder = result.save(root / "out")
    return paths, folder


def ellipse(k, radii=(9.0, 6.0), centre=(0.0, 0.0), key="mr", n=60):
    """A contour on slice k, RAS mm."""
    angle = np.arange(n) * 2 * np.pi / n
    flat = np.stack([radii[0] * np.cos(angle), radii[1] * np.sin(angle)], -1) + centre
    spacing = np.linalg.norm(GRIDS[key][:3, :3], axis=0)
    middle = np.array(SHAPES[key][:2]) / 2
    index = np.column_stack([flat / spacing[:2] + middle, np.full(n, float(k))])
    return apply_affine(GRIDS[key], index)


def contour_item(points, kind="CLOSED_PLANAR"):
    """RAS mm as DICOM has it."""
    item = Dataset()
    item.ContourGeometricType, item.NumberOfContourPoints = kind, len(points)
    item.ContourData = [f"{v:.6f}" for v in (np.asarray(points) * LPS).ravel()]
    return item


def write_rtstruct(path, rois, series, **elements):
    """ROIs ``{name: [(kind, points)]}`` drawn on a series."""
    header = pydicom.dcmread(min(series.iterdir()), stop_before_pixels=True)
    ds = Dataset()
    for name, value in {**PATIENT, **elements}.items():
        setattr(ds, name, value)
    ds.SOPClassUID, ds.SOPInstanceUID = RTStructureSetStorage, generate_uid()
    ds.Modality, ds.SeriesInstanceUID, ds.SeriesNumber = "RTSTRUCT", generate_uid(), 5
    ds.StructureSetLabel, ds.StructureSetDate, ds.StructureSetTime = "plan", "20240102", "1200"
    ds.ApprovalStatus, ds.ReviewerName = "APPROVED", "Doe^D"
    ds.ReviewDate, ds.ReviewTime = "20240102", "1200"
    ds.FrameOfReferenceUID = header.FrameOfReferenceUID
    ds.InstanceNumber = 1
    ds.StructureSetROISequence, ds.ROIContourSequence, ds.RTROIObservationsSequence = [], [], []
    for number, (name, contours) in enumerate(rois.items(), 3):
        roi, drawn, seen = Dataset(), Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ROIGenerationAlgorithm = number, name, "MANUAL"
        roi.ReferencedFrameOfReferenceUID = header.FrameOfReferenceUID
        drawn.ReferencedROINumber, drawn.ROIDisplayColor = number, [255, 0, 0]
        drawn.ContourSequence = [contour_item(points, kind) for kind, points in contours]
        seen.ObservationNumber = seen.ReferencedROINumber = number
        seen.RTROIInterpretedType, seen.ROIInterpreter = "ORGAN", ""
        ds.StructureSetROISequence.append(roi)
        ds.ROIContourSequence.append(drawn)
        ds.RTROIObservationsSequence.append(seen)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.save_as(path, enforce_file_format=True)
    return path


def contours_of(path, number):
    """``[(kind, points RAS mm)]`` of an ROI."""
    items = {int(i.ReferencedROINumber): i for i in pydicom.dcmread(path).ROIContourSequence}
    return [
        (one.ContourGeometricType, np.reshape(one.ContourData, (-1, 3)).astype(float) * LPS)
        for one in items[number].get("ContourSequence", [])
    ]


def itk_points(path, points):
    """What SimpleITK makes of RAS points."""
    transform = sitk.ReadTransform(str(path))
    return np.array([transform.TransformPoint(p) for p in (points * LPS).tolist()]) * LPS


def drawn(contours, key):
    """A label map ``(columns, rows, slices)`` of contours in the planes of a grid, even-odd."""
    mask = np.zeros(SHAPES[key], bool)
    for _, points in contours:
        index = apply_affine(np.linalg.inv(GRIDS[key]), points)
        k = round(float(index[:, 2].mean()))
        assert np.abs(index[:, 2] - k).max() < 1e-3
        mask[:, :, k] ^= polygon2mask(SHAPES[key][:2], index[:, :2])
    return mask


def itk_image(values, key):
    """A volume ``(columns, rows, slices)`` on a grid of the patient, as SimpleITK has it."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(values.T))
    lps = np.diag([-1, -1, 1, 1]) @ GRIDS[key]
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def apply(case, *arguments):
    """The command; the folder of the results."""
    return main(["apply", "--result", str(case[1]), *map(str, arguments)])


@pytest.fixture(scope="module")
def warped(case, tmp_path_factory):
    """An organ with a hole, and three points, drawn on the MR and brought to the CT."""
    folder = tmp_path_factory.mktemp("rt")
    organ = [("CLOSED_PLANAR", ellipse(k)) for k in range(8, 18)]
    organ += [("CLOSED_PLANAR", ellipse(k, (3.0, 2.5))) for k in range(10, 16)]
    marks = np.array([[1.0, 2.0, 3.0], [4.0, -5.0, 2.0], [-3.0, 1.0, -4.0]])
    rois = {"organ": organ, "marks": [("POINT", p[None]) for p in marks]}
    path = write_rtstruct(folder / "plan.dcm", rois, case[0]["mr"])
    given = ("--rtstruct", path, "--onto", case[0]["ct"], "--output", folder / "out")
    assert apply(case, *given) == 0
    return folder / "out" / "plan_warped.dcm", organ, marks


class TestStructureSets:
    def test_it_is_the_label_map_that_simpleitk_warps(self, case, warped):
        path, organ, _ = warped
        # finer than the MR's slices, so that the staircase of its voxels does not count
        transform = sitk.ReadTransform(str(case[1] / "mr_transform.h5"))
        fine = Solid.of([points for _, points in organ], 2.5)
        index = np.stack(np.meshgrid(*map(np.arange, SHAPES["ct"]), indexing="ij"), -1)
        points = apply_affine(GRIDS["ct"], index.reshape(-1, 3))
        there = np.array([transform.TransformPoint(p) for p in (points * LPS).tolist()]) * LPS
        expected = (fine.depth(there) > 0).reshape(SHAPES["ct"])
        mask = drawn(contours_of(path, 3), "ct")
        assert dice(mask, expected) > 0.99
        labels = itk_image(drawn(organ, "mr").astype(np.uint8), "mr")
        grid = itk_image(np.zeros(SHAPES["ct"], np.uint8), "ct")
        other = sitk.Resample(labels, grid, transform, sitk.sitkNearestNeighbor)
        assert dice(mask, sitk.GetArrayFromImage(other).T > 0) > 0.9

    def test_outlines_go_where_simpleitk_sends_them(self, case, warped):
        path, organ, _ = warped
        heights = np.array([points[0, 2] for _, points in organ])
        for _, points in contours_of(path, 3):
            there = itk_points(case[1] / "mr_transform.h5", points)
            # between the first and the last plane of the outer ellipse alone
            inner = (there[:, 2] > heights.min()) & (there[:, 2] < heights.max())
            centre = apply_affine(GRIDS["mr"], [12.0, 10.0, 0.0])
            size = np.abs(there[inner, :2] - centre[:2])
            outer = np.linalg.norm(size / [9.0, 6.0], axis=1)
            hole = np.linalg.norm(size / [3.0, 2.5], axis=1)
            off = np.minimum(np.abs(outer - 1) * 6, np.abs(hole - 1) * 2.5)
            clear = (there[inner, 2] > ellipse(11)[0, 2]) & (there[inner, 2] < ellipse(14)[0, 2])
            # half a pixel's chord of the smaller ellipse, and the file's rounding of the field
            assert (off[clear] < 0.25).all()

    def test_points_are_exact(self, case, warped):
        path, _, marks = warped
        found = contours_of(path, 4)
        assert {kind for kind, _ in found} == {"POINT"}
        points = np.concatenate([points for _, points in found])
        back = itk_points(case[1] / "mr_transform.h5", points)
        np.testing.assert_allclose(back, marks, atol=2e-3)

    def test_it_refers_to_the_target_and_is_not_approved(self, case, warped):
        ds = pydicom.dcmread(warped[0])
        headers = [pydicom.dcmread(f, stop_before_pixels=True) for f in case[0]["ct"].iterdir()]
        uids = {str(h.SOPInstanceUID): h for h in headers}
        assert ds.FrameOfReferenceUID == headers[0].FrameOfReferenceUID
        assert ds.ApprovalStatus == "UNAPPROVED"
        assert "ReviewerName" not in ds
        for item in ds.ROIContourSequence[0].ContourSequence:
            header = uids[item.ContourImageSequence[0].ReferencedSOPInstanceUID]
            points = np.reshape(item.ContourData, (-1, 3)).astype(float)
            row, column = np.reshape(header.ImageOrientationPatient, (2, 3)).astype(float)
            height = (points - np.array(header.ImagePositionPatient, float)) @ np.cross(row, column)
            assert np.abs(height).max() < 0.01
        assert [str(r.ROIName) for r in ds.StructureSetROISequence] == ["organ", "marks"]

    @pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (dicom3tools) missing")
    def test_it_is_as_valid_as_before(self, warped):
        before = errors_of(warped[0].parents[1] / "plan.dcm")
        assert not errors_of(warped[0]) - before

    def test_there_and_back(self, case, warped, tmp_path):
        path, organ, _ = warped
        given = ("--rtstruct", path, "--onto", case[0]["mr"], "--output", tmp_path, "--inverse")
        assert apply(case, *given) == 0
        again = contours_of(tmp_path / "plan_warped_warped.dcm", 3)
        assert dice(drawn(again, "mr"), drawn(organ, "mr")) > 0.93


def errors_of(path):
    """What dciodvfy calls an error."""
    said = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True).stderr
    return {line for line in said.splitlines() if line.startswith("Error")}


class TestSolid:
    def test_depth_of_a_turned_cylinder(self):
        heights = np.arange(6) * 2.0
        angle = np.arange(400) * 2 * np.pi / 400
        circle = np.stack([10 * np.cos(angle), 10 * np.sin(angle)], -1)
        turn = np.linalg.qr(np.array([[2.0, 1, 0], [0, 3, 1], [1, 0, 4]]))[0]
        contours = [np.column_stack([circle, np.full(400, h)]) @ turn.T for h in heights]
        solid = Solid.of(contours, 2.0)
        radius = np.array([0.0, 4.0, 9.0, 9.9, 10.2, 12.0])
        points = np.stack([radius, 0 * radius, 0 * radius + 5.3], -1) @ turn.T
        np.testing.assert_allclose(solid.depth(points[2:5]), 10 - radius[2:5], atol=0.02)
        ends = np.array([[1.0, 1, -0.9], [1, 1, -1.1], [1, 1, 10.9], [1, 1, 11.1]]) @ turn.T
        assert (solid.depth(ends) > 0).tolist() == [True, False, True, False]

    def test_missing_planes_are_empty(self):
        square = np.array([[-5.0, -5], [5, -5], [5, 5], [-5, 5]])
        contours = [np.column_stack([square, np.full(4, h)]) for h in (0.0, 2, 4, 10, 12)]
        depth = Solid.of(contours, 2.0).depth(np.array([[0.0, 0, h] for h in (2, 4.8, 7, 9.2)]))
        assert (depth > 0).tolist() == [True, True, False, True]


class TestSegmentations:
    def segment(self, number, label):
        return hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=codes.SCT.Organ,
            segmented_property_type=codes.SCT.Liver,
            algorithm_type="MANUAL",
        )

    def write(self, path, masks, series):
        """Masks ``(columns, rows, slices)`` as segments."""
        headers = [pydicom.dcmread(f) for f in sorted(series.iterdir())]
        pixels = np.stack([m.transpose(2, 1, 0) for m in masks], -1).astype(np.uint8)
        hd.seg.Segmentation(
            headers,
            pixels,
            "BINARY",
            [self.segment(n + 1, f"part {n}") for n in range(len(masks))],
            series_instance_uid=generate_uid(),
            series_number=1,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer="x",
            manufacturer_model_name="x",
            software_versions="1",
            device_serial_number="1",
        ).save_as(path)
        return path

    @pytest.mark.parametrize("overlap", [False, True])
    @pytest.mark.parametrize("inverse", [False, True])
    def test_it_is_what_simpleitk_warps(self, case, tmp_path, overlap, inverse):
        source, target = ("ct", "mr") if inverse else ("mr", "ct")
        masks = [np.zeros(SHAPES[source], bool) for _ in range(2)]
        masks[0][6:12, 6:14, 6:12] = True
        masks[1][10 if overlap else 12 : 18, 6:14, 8:14] = True
        path = self.write(tmp_path / "s.dcm", masks, case[0][source])
        way = ["--inverse"] if inverse else []
        given = ("--seg", path, "--onto", case[0][target], "--output", tmp_path / "out", *way)
        assert apply(case, *given) == 0
        seg = hd.seg.segread(tmp_path / "out" / "s_warped.dcm")
        assert [d.SegmentLabel for d in seg.SegmentSequence] == ["part 0", "part 1"]
        name = "mr_transform_inverse.h5" if inverse else "mr_transform.h5"
        transform = sitk.ReadTransform(str(case[1] / name))
        grid = itk_image(np.zeros(SHAPES[target], np.uint8), target)
        for number, mask in enumerate(masks, 1):
            volume = seg.get_volume(segment_numbers=[number], combine_segments=False)
            voxels = np.argwhere(volume.array[..., 0])
            index = apply_affine(
                np.linalg.inv(GRIDS[target]), volume.map_indices_to_reference(voxels) * LPS
            )
            found = np.zeros(SHAPES[target], bool)
            found[tuple(np.rint(index).astype(int).T)] = True
            assert np.abs(index - np.rint(index)).max() < 0.005
            expected = sitk.Resample(
                itk_image(mask.astype(np.uint8), source), grid, transform, sitk.sitkNearestNeighbor
            )
            expected = sitk.GetArrayFromImage(expected).T > 0
            assert expected.any()
            # voxels whose nearest neighbour is decided by the rounding of the file
            assert (found ^ expected).mean() < 2e-3

    def test_several_at_once(self, case, tmp_path):
        mask = np.zeros(SHAPES["mr"], bool)
        mask[8:14, 8:14, 8:14] = True
        one = self.write(tmp_path / "a.dcm", [mask], case[0]["mr"])
        two = self.write(tmp_path / "b.dcm", [mask], case[0]["mr"])
        rois = {"o": [("CLOSED_PLANAR", ellipse(k)) for k in range(9, 14)]}
        plan = write_rtstruct(tmp_path / "c.dcm", rois, case[0]["mr"])
        onto = ("--onto", case[0]["ct"], "--output", tmp_path / "out")
        assert apply(case, "--seg", one, two, "--rtstruct", plan, *onto) == 0
        names = sorted(f.name for f in (tmp_path / "out").iterdir())
        assert names == ["a_warped.dcm", "b_warped.dcm", "c_warped.dcm"]
        if shutil.which("dciodvfy"):
            assert not errors_of(tmp_path / "out" / "a_warped.dcm") - errors_of(one)


class TestRefusals:
    def refused(self, case, capsys, *arguments):
        assert apply(case, *arguments) == 2
        said = capsys.readouterr().err.strip()
        assert "\n" not in said
        return said

    def test_what_cannot_be_brought_over(self, case, tmp_path, capsys):
        ct, out = case[0]["ct"], ("--output", tmp_path / "out")
        rois = {"o": [("CLOSED_PLANAR", ellipse(k)) for k in range(9, 14)]}
        plan = write_rtstruct(tmp_path / "c.dcm", rois, case[0]["mr"])
        said = self.refused(case, capsys, "--rtstruct", plan, *out)
        assert "expected --onto SERIES" in said
        said = self.refused(case, capsys, "--rtstruct", ct / "000.dcm", "--onto", ct, *out)
        assert "expected an RT Structure Set, got none" in said
        said = self.refused(case, capsys, "--seg", plan, "--onto", ct, *out)
        assert "expected a segmentation, got none" in said
        far = {"o": [("CLOSED_PLANAR", ellipse(k) + 900.0) for k in range(9, 14)]}
        plan = write_rtstruct(tmp_path / "d.dcm", far, case[0]["mr"])
        said = self.refused(case, capsys, "--rtstruct", plan, "--onto", ct, *out)
        assert "use --inverse for contours of the reference" in said
        plan = write_rtstruct(tmp_path / "e.dcm", rois, case[0]["mr"], PatientID="Q")
        said = self.refused(case, capsys, "--rtstruct", plan, "--onto", ct, *out)
        assert "expected the patient of the series --onto, got another" in said
        odd = {"o": [("BLOB", ellipse(9))]}
        plan = write_rtstruct(tmp_path / "f.dcm", odd, case[0]["mr"])
        said = self.refused(case, capsys, "--rtstruct", plan, "--onto", ct, *out)
        assert "got BLOB" in said
        assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
