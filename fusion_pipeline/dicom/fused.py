"""The fused image as one multi-frame secondary capture with its geometry, in colour or in grey."""

import numpy as np
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
)
from pydicom.valuerep import format_number_as_ds

from fusion_pipeline.data import Image
from fusion_pipeline.dicom.planes import Planes
from fusion_pipeline.dicom.series import Stored
from fusion_pipeline.dicom.study import SeriesOf, Study, add_references, as_source

_LEVELS = 65535  # of 16 bits


def fused_object(
    fused: Image, colour: Image | None, planes: Planes, study: Study, series: SeriesOf
) -> Dataset:
    """The fused image: true colour where there is uptake to colour, else 16 bits of grey.

    Args:
        fused: in 0..1, on the reference's native grid.
        colour: with ``colour`` ``(3, *S)`` 0..255 on the same grid; None without PET or SPECT.
        planes: the grid.
        study: what all objects share.
        series: of modality OT.
    """
    if colour is None or colour.colour is None:
        ds = study.dataset(MultiFrameGrayscaleWordSecondaryCaptureImageStorage, series)
        levels = np.rint(planes.frames(fused.array[0]).clip(0, 1) * _LEVELS)
        Stored(levels.astype(np.uint16), 1.0, 0.0).describe(ds, slice(None))
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, 0, "US"
        ds.PresentationLUTShape = "IDENTITY"
    else:
        ds = study.dataset(MultiFrameTrueColorSecondaryCaptureImageStorage, series)
        channels = [planes.frames(channel) for channel in colour.colour]
        pixels = np.rint(np.stack(channels, -1).clip(0, 255)).astype(np.uint8)
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 3, "RGB"
        ds.PlanarConfiguration = 0
        ds.Rows, ds.Columns = pixels.shape[1:3]
        ds.BitsAllocated = ds.BitsStored = 8
        ds.HighBit, ds.PixelRepresentation = 7, 0
        data = pixels.tobytes()
        ds.PixelData = data + b"\0" * (len(data) % 2)
    ds.ImageType = ["DERIVED", "SECONDARY"]
    ds.DerivationDescription = series.description
    ds.ConversionType, ds.BurnedInAnnotation = "WSD", "NO"
    ds.LossyImageCompression = "00"
    ds.PatientOrientation = None
    _add_frames(ds, planes)
    sources = [one for key in study.headers if study.has_sources(key) for one in study.headers[key]]
    if sources:
        ds.SourceImageSequence = Items([as_source(one) for one in sources])
        add_references(ds, sources)
    return ds


def _add_frames(ds: Dataset, planes: Planes) -> None:
    """Where each frame lies, by functional groups."""
    ds.NumberOfFrames = len(planes.positions)
    ds.FrameIncrementPointer = tag_for_keyword("PerFrameFunctionalGroupsSequence")
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = [format_number_as_ds(float(v)) for v in planes.spacing]
    measures.SliceThickness = format_number_as_ds(planes.step)
    measures.SpacingBetweenSlices = measures.SliceThickness
    orientation.ImageOrientationPatient = [
        format_number_as_ds(v) for v in planes.orientation.tolist()
    ]
    shared.PixelMeasuresSequence = Items([measures])
    shared.PlaneOrientationSequence = Items([orientation])
    ds.SharedFunctionalGroupsSequence = Items([shared])
    frames = []
    for place in planes.positions.tolist():
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = [format_number_as_ds(v) for v in place]
        frame.PlanePositionSequence = Items([position])
        frames.append(frame)
    ds.PerFrameFunctionalGroupsSequence = Items(frames)


__all__ = ["fused_object"]
