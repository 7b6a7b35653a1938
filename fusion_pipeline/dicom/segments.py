"""DICOM Segmentations: their segments as label maps, and the same on another series."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydicom import Dataset

import fusion_pipeline
from fusion_pipeline.data import Image
from fusion_pipeline.data.dicom import SeriesHeaders
from fusion_pipeline.data.refusals import READ_ERRORS, one_line, quiet, refusal
from fusion_pipeline.dicom.objects import check_same_patient, new_uid, read_object
from fusion_pipeline.dicom.planes import Planes
from fusion_pipeline.dicom.study import PRODUCT, save
from fusion_pipeline.geometry import lps_from_ras

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
# what highdicom copies from a source image and some series lack; DICOM lets them be empty
_COPIED = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)


@dataclass(frozen=True)
class SegmentedImage:
    """A segmentation.

    Attributes:
        object: as highdicom has it.
        header: as pydicom has it.
        path: for messages.
    """

    object: Any
    header: Dataset
    path: str

    @classmethod
    def read(cls, path: str | Path) -> "SegmentedImage":
        """Read the file, or the only segmentation of a folder.

        Raises:
            InputError: there is none, or it is fractional.
        """
        import highdicom as hd  # late: half a second that other commands save

        place = f"SEG ({path})"
        header = read_object(Path(path), (SEGMENTATION, LABEL_MAP), "a segmentation", place)
        kind = str(header.get("SegmentationType", ""))
        if kind not in ("BINARY", "LABELMAP"):
            advice = "make it binary first"
            raise refusal(place, "a binary segmentation or a label map", kind or "another", advice)
        try:
            with quiet():
                return cls(hd.seg.Segmentation.from_dataset(header), header, str(path))
        except READ_ERRORS as error:
            came = f"another ({one_line(error)})"
            raise refusal(place, "a segmentation of slices", came, "export it again") from error

    def labels(self, key: str) -> list[Image]:
        """The segments as one label map (1 and up in their order), or as masks if they overlap.

        Args:
            key: of the image that they are drawn on.

        Raises:
            InputError: the frames are no even stack.
        """
        import highdicom as hd

        try:
            with quiet():
                try:
                    volume = self.object.get_volume(combine_segments=True, relabel=True)
                    return [self._image(volume.array, volume.affine, key)]
                except RuntimeError:  # they overlap; the object's own tables stay locked then
                    fresh = hd.seg.Segmentation.from_dataset(self.header)
                    volume = fresh.get_volume(combine_segments=False)
        except READ_ERRORS as error:
            place = f"SEG ({self.path})"
            came = f"others ({one_line(error)})"
            raise refusal(place, "frames in an even stack", came, "export it again") from error
        arrays = np.moveaxis(volume.array, -1, 0)
        return [self._image(array, volume.affine, key) for array in arrays]

    def _image(self, array: npt.NDArray[Any], lps_affine: npt.NDArray[Any], key: str) -> Image:
        """A label map ``(slices, rows, columns)`` in the world."""
        values = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None]
        return Image(values, lps_from_ras(3) @ lps_affine, key, "labels", self.path)

    def write(self, labels: list[Image], series: SeriesHeaders, path: str | Path) -> None:
        """Write the segments on the slices of another series, as a new object.

        Args:
            labels: as `labels` gives them, on the grid of the series.
            series: what they go to.
            path: of the file.

        Raises:
            InputError: the series is of another patient, or its rows and columns are sheared.
        """
        import highdicom as hd

        place = f"SEG ({self.path})"
        check_same_patient(self.object, series.headers[0], place)
        planes = Planes.of(series.affine, series.shape, place)
        with quiet():
            ds = hd.seg.Segmentation(
                source_images=[_completed(one) for one in series.headers],
                pixel_array=self._pixels(labels, planes.frames),
                segmentation_type="BINARY",
                segment_descriptions=self._descriptions(),
                series_instance_uid=new_uid(),
                series_number=int(self.object.get("SeriesNumber") or 0) + 1,
                sop_instance_uid=new_uid(),
                instance_number=1,
                manufacturer=PRODUCT,
                manufacturer_model_name=PRODUCT,
                software_versions=fusion_pipeline.__version__,
                device_serial_number=fusion_pipeline.__version__,
                content_description=f"segments propagated by {PRODUCT}",
                content_label=str(self.object.get("ContentLabel") or "SEG"),
                series_description=f"{self.object.get('SeriesDescription') or 'SEG'} warped"[:64],
            )
        save(ds, Path(path))

    def _pixels(
        self, labels: list[Image], frames: Callable[[torch.Tensor], npt.NDArray[np.float32]]
    ) -> npt.NDArray[Any]:
        """``(slices, rows, columns)`` of labels, or with a last axis of overlapping segments."""
        if len(labels) == 1:
            return np.rint(frames(labels[0].array[0])).astype(np.uint16)
        return np.stack([frames(one.array[0]) > 0.5 for one in labels], -1).astype(np.uint8)

    def _descriptions(self) -> list[Any]:
        """The segments' own descriptions, counted from 1."""
        found = []
        for n, number in enumerate(self.object.segment_numbers):
            description = self.object.get_segment_description(number)
            description.SegmentNumber = n + 1
            found.append(description)
        return found


def _completed(header: Dataset) -> Dataset:
    """A header with the attributes that highdicom copies, empty where it lacks them."""
    ds = Dataset()
    ds.update({tag: element for tag, element in header.items() if tag.group < 0x7FE0})
    for name in _COPIED:
        if name not in ds:
            setattr(ds, name, "")
    return ds


__all__ = ["SegmentedImage"]
