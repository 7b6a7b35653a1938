"""DICOM RT Structure Sets: contours, and the same set on the slices of another series."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID
from pydicom.valuerep import format_number_as_ds
from skimage.measure import find_contours

from fusion_pipeline.data.dicom import SeriesHeaders
from fusion_pipeline.data.refusals import READ_ERRORS, one_line, quiet, refusal
from fusion_pipeline.dicom.objects import check_same_patient, new_uid, read_object
from fusion_pipeline.dicom.solid import Solid
from fusion_pipeline.dicom.study import PRODUCT, instance_reference, save
from fusion_pipeline.geometry import apply_affine, inverse_affine, lps_from_ras, spacing_of
from fusion_pipeline.geometry.affines import Matrix

RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_OPEN = ("POINT", "OPEN_PLANAR", "OPEN_NONPLANAR")
_MARGIN = 3  # voxels of the target around where the contours' points go
_CUT_MM = 1.0  # between the points where a slice meets a solid; outlines are straight between
_STALE = ("ApprovalStatus", "ReviewDate", "ReviewTime", "ReviewerName", "InstanceCreationDate")
PointMap = Callable[[Matrix], Matrix]


@dataclass(frozen=True)
class Contour:
    """A contour.

    Attributes:
        kind: DICOM's ContourGeometricType.
        points: ``(n, 3)`` RAS mm.
        slice: of the series that it is drawn on; None: of none.
    """

    kind: str
    points: Matrix
    slice: int | None = None


@dataclass(frozen=True)
class StructureSet:
    """An RT Structure Set.

    Attributes:
        header: the whole object.
        contours: by ROI number.
        path: for messages.
    """

    header: Dataset
    contours: dict[int, list[Contour]]
    path: str

    @classmethod
    def read(cls, path: str | Path) -> "StructureSet":
        """Read the file, or the only RT Structure Set of a folder.

        Raises:
            InputError: there is none, or its contours cannot be understood.
        """
        place = f"RTSTRUCT ({path})"
        header = read_object(Path(path), (RTSTRUCT,), "an RT Structure Set", place)
        try:
            contours = {
                int(item.ReferencedROINumber): [
                    _contour(one) for one in item.get("ContourSequence") or []
                ]
                for item in header.get("ROIContourSequence") or []
            }
        except READ_ERRORS as error:
            came = f"others ({one_line(error)})"
            raise refusal(place, "contours of points in mm", came, "export it again") from error
        kinds = {one.kind for some in contours.values() for one in some}
        odd = sorted(kinds - {*_CLOSED, *_OPEN})
        if odd or not kinds:
            came = ", ".join(odd) or "no contour"
            raise refusal(place, f"contours ({', '.join((*_CLOSED, *_OPEN))})", came, "check it")
        return cls(header, contours, str(path))

    def names(self) -> dict[int, str]:
        """ROI names by number."""
        items = self.header.get("StructureSetROISequence") or []
        return {int(item.ROINumber): str(item.get("ROIName") or "") for item in items}

    def warped(
        self, series: SeriesHeaders, from_target: PointMap, to_target: PointMap, thickness: float
    ) -> dict[int, list[Contour]]:
        """The contours on the slices of another series, cut from the solids that they enclose.

        Closed contours become closed contours in the planes of the slices; points and open
        contours are moved point by point.

        Args:
            series: of the target.
            from_target: points of the target's world to this set's, RAS mm.
            to_target: the way back.
            thickness: of a slice in mm, for a structure on one slice.
        """
        made: dict[int, list[Contour]] = {}
        for number, contours in self.contours.items():
            closed = [c for c in contours if c.kind in _CLOSED and len(c.points) > 2]
            made[number] = [
                Contour("POINT" if c.kind == "POINT" else "OPEN_NONPLANAR", to_target(c.points))
                for c in contours
                if c.kind in _OPEN
            ]
            if closed:
                solid = Solid.of([c.points for c in closed], thickness)
                reached = to_target(np.concatenate([c.points for c in closed]))
                made[number] += _cut(solid, reached, series, from_target, thickness)
        return made

    def write(
        self, contours: dict[int, list[Contour]], series: SeriesHeaders, path: str | Path
    ) -> None:
        """Write the set with other contours, on another series; unapproved, as a new object.

        Args:
            contours: by ROI number, see `warped`.
            series: what they are drawn on.
            path: of the file.

        Raises:
            InputError: the series is of another patient.
        """
        check_same_patient(self.header, series.headers[0], f"RTSTRUCT ({self.path})")
        with quiet():  # of values that are too long already
            ds = _fresh(self.header, series.headers)
        frame = str(series.headers[0].get("FrameOfReferenceUID") or "")
        for item in ds.get("StructureSetROISequence") or []:
            item.ReferencedFrameOfReferenceUID = frame
            item.ROIGenerationAlgorithm = "SEMIAUTOMATIC"
            item.ROIGenerationDescription = f"propagated by {PRODUCT}"
            item.pop("ROIVolume", None)
        for item in ds.get("ROIContourSequence") or []:
            item.pop("SourcePixelPlanesCharacteristicsSequence", None)
            item.pop("SourceSeriesSequence", None)
            found = contours.get(int(item.ReferencedROINumber), [])
            item.pop("ContourSequence", None)
            if found:
                item.ContourSequence = Items([_item(one, series.headers) for one in found])
        save(ds, Path(path))


def _contour(item: Dataset) -> Contour:
    """One contour of a file."""
    points = np.asarray(item.ContourData, dtype=np.float64).reshape(-1, 3)
    if not np.isfinite(points).all() or not len(points):
        raise ValueError("no finite points")
    return Contour(str(item.ContourGeometricType), apply_affine(lps_from_ras(3), points))


def _cut(
    solid: Solid,
    reached: Matrix,
    series: SeriesHeaders,
    from_target: PointMap,
    thickness: float,
) -> Iterator[Contour]:
    """Where the slices of a series meet a solid.

    Args:
        solid: in the source's world.
        reached: where the contours' points go in the target's world, which bounds the search.
        series: of the target.
        from_target: points of the target's world to the source's.
        thickness: the solid goes on for half of it beyond the outermost contours.
    """
    voxels = apply_affine(inverse_affine(series.affine), reached)
    margin = _MARGIN + thickness / spacing_of(series.affine)
    low = np.floor(voxels.min(0) - margin).astype(int).clip(0)
    high = np.minimum(np.ceil(voxels.max(0) + margin).astype(int), np.array(series.shape) - 1)
    if (high < low).any():
        return
    # whole parts of a pixel, so that pixels of 1.5 mm do not cut the corners of what is small
    parts = np.ceil(spacing_of(series.affine)[:2] / _CUT_MM).astype(int)
    columns, rows = (
        np.arange(low[a] * parts[a], high[a] * parts[a] + 1) / parts[a] for a in (0, 1)
    )
    for k in range(low[2], high[2] + 1):
        grid = np.stack(np.meshgrid(columns, rows, [k], indexing="ij"), -1).reshape(-1, 3)
        depth = solid.depth(from_target(apply_affine(series.affine, grid)))
        # a border outside closes what the slice's edge would cut open
        padded = np.pad(depth.reshape(len(columns), len(rows)), 1, constant_values=-1e-3)
        for loop in find_contours(padded, 0.0):
            if len(loop) > 3:
                flat = (loop[:-1] - 1) / parts + low[:2]
                index = np.column_stack([flat, np.full(len(flat), k)])
                yield Contour("CLOSED_PLANAR", apply_affine(series.affine, index), k)


def _item(contour: Contour, headers: Sequence[Dataset]) -> Dataset:
    """A contour as DICOM has it."""
    item = Dataset()
    if contour.slice is not None:
        item.ContourImageSequence = Items([instance_reference(headers[contour.slice])])
    item.ContourGeometricType = contour.kind
    item.NumberOfContourPoints = len(contour.points)
    lps = apply_affine(lps_from_ras(3), contour.points)
    item.ContourData = [format_number_as_ds(round(v, 5)) for v in lps.ravel().tolist()]
    return item


def _fresh(header: Dataset, headers: Sequence[Dataset]) -> Dataset:
    """The set as a new object in the target's study, without what a change outdates."""
    ds = copy.deepcopy(header)
    ds.remove_private_tags()
    for name in _STALE:
        ds.pop(name, None)
    now = datetime.now().astimezone()
    before = instance_reference(header)
    target = headers[0]
    ds.SOPInstanceUID, ds.SeriesInstanceUID = new_uid(), new_uid()
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    for name in ("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"):
        if name in target:
            setattr(ds, name, target.get(name))
    ds.FrameOfReferenceUID = target.get("FrameOfReferenceUID")
    ds.StructureSetDate, ds.StructureSetTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    ds.ApprovalStatus = "UNAPPROVED"
    ds.SeriesDescription = f"{ds.get('SeriesDescription') or 'RTSTRUCT'} warped"[:64]
    ds.PredecessorStructureSetSequence = Items([before])
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = target.SeriesInstanceUID
    series.ContourImageSequence = Items([instance_reference(one) for one in headers])
    study.ReferencedSOPClassUID = UID("1.2.840.10008.3.1.2.3.1")  # retired, and of type 1 here
    study.ReferencedSOPInstanceUID = ds.StudyInstanceUID
    study.RTReferencedSeriesSequence = Items([series])
    frame.FrameOfReferenceUID = ds.FrameOfReferenceUID
    frame.RTReferencedStudySequence = Items([study])
    ds.ReferencedFrameOfReferenceSequence = Items([frame])
    return ds


__all__ = ["RTSTRUCT", "Contour", "StructureSet"]
