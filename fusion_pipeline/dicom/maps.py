"""Numbers per voxel as Parametric Maps: weights, errors, uptake of unknown acquisition."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.sr.coding import Code
from torch import Tensor

import fusion_pipeline
from fusion_pipeline.data.refusals import quiet
from fusion_pipeline.dicom.planes import Planes
from fusion_pipeline.dicom.study import PRODUCT, SeriesOf, Study

_LEVELS = 65535  # of 16 bits
_PIXELS = 0x7FE0  # group of the pixel data


@dataclass(frozen=True)
class Quantity:
    """What the numbers of a map are.

    Attributes:
        label: at most 16 characters.
        explanation: a short sentence.
        unit: UCUM code, such as ``mm``, and its meaning.
    """

    label: str
    explanation: str
    unit: tuple[str, str] = ("1", "no units")


def parametric_map(
    values: Tensor,
    quantity: Quantity,
    planes: Planes,
    study: Study,
    series: SeriesOf,
    references: list[Dataset],
) -> Dataset:
    """A volume on the reference's grid, in 16-bit steps of at most 1/65535 of its range.

    Args:
        values: ``(*S)`` on the reference's native grid.
        quantity: what they are.
        planes: the grid.
        study: what all objects share.
        series: of modality OT.
        references: the slices of the reference, in the order of ``planes`` or one multi-frame file.
    """
    import highdicom as hd  # late: half a second that a run without DICOM saves

    frames = planes.frames(values)
    low, high = float(frames.min()), float(frames.max())
    slope = (high - low) / _LEVELS or 1.0
    stored: npt.NDArray[Any] = np.rint((frames.astype(np.float64) - low) / slope).astype(np.uint16)
    mapping = hd.pm.RealWorldValueMapping(
        lut_label=quantity.label[:16],
        lut_explanation=quantity.explanation[:64],
        unit=Code(quantity.unit[0], "UCUM", quantity.unit[1]),
        value_range=(0, _LEVELS),
        slope=slope,
        intercept=low,
    )
    with quiet():
        ds: Dataset = hd.pm.ParametricMap(
            source_images=_templates(planes, study, references),
            pixel_array=stored,
            series_instance_uid=study.uid("series", series.role),
            series_number=series.number,
            sop_instance_uid=study.uid("instance", series.role, "1"),
            instance_number=1,
            manufacturer=PRODUCT,
            manufacturer_model_name=PRODUCT,
            software_versions=fusion_pipeline.__version__,
            device_serial_number=fusion_pipeline.__version__,
            contains_recognizable_visual_features=False,
            real_world_value_mappings=[mapping],
            voi_lut_transformations=[
                hd.VOILUTTransformation(window_center=_LEVELS / 2, window_width=float(_LEVELS))
            ],
            content_label="MAP",
            content_description=series.description[:64],
            pixel_measures=hd.PixelMeasuresSequence(
                pixel_spacing=planes.spacing.tolist(),
                slice_thickness=planes.step,
                spacing_between_slices=planes.step,
            ),
            plane_orientation=hd.PlaneOrientationSequence("PATIENT", planes.orientation.tolist()),
            plane_positions=[
                hd.PlanePositionSequence("PATIENT", position)
                for position in planes.positions.tolist()
            ],
            series_description=series.description[:64],
        )
    _follow(ds, study, series)
    return ds


def _templates(planes: Planes, study: Study, references: list[Dataset]) -> list[Dataset]:
    """The reference's slices as the map's sources: our patient and study, their own UIDs."""
    own = SeriesOf("template", 1, "OT", "")
    if "SharedFunctionalGroupsSequence" in references[0]:
        whole = study.dataset(references[0].SOPClassUID, own)
        kept = {e.tag: e for e in references[0] if e.tag not in whole and e.tag.group < _PIXELS}
        whole.update(kept)
        for name in ("SOPInstanceUID", "SeriesInstanceUID"):
            setattr(whole, name, references[0].get(name))
        return [whole]
    templates = []
    for header, position in zip(references, planes.positions.tolist(), strict=False):
        ds = study.dataset(header.SOPClassUID, own)
        ds.SOPInstanceUID, ds.SeriesInstanceUID = header.SOPInstanceUID, header.SeriesInstanceUID
        ds.Columns, ds.Rows = planes.shape[:2]
        ds.PixelSpacing = planes.spacing.tolist()
        ds.SliceThickness = planes.step
        ds.ImageOrientationPatient = planes.orientation.tolist()
        ds.ImagePositionPatient = position
        templates.append(ds)
    return templates


def _follow(ds: Dataset, study: Study, series: SeriesOf) -> None:
    """What highdicom leaves out."""
    own = study.dataset(ds.SOPClassUID, series)
    ds.Laterality = own.Laterality
    for name in (
        "PatientIdentityRemoved",
        "DeidentificationMethod",
        "LongitudinalTemporalInformationModified",
    ):
        if name in own:
            setattr(ds, name, own.get(name))


__all__ = ["Quantity", "parametric_map"]
