"""DICOM series whose slices differ, for the tests of what is one volume and what is not."""

import numpy as np
from data_phantoms import dicom_slice, put_pixels, save, series_pixels
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword

NUCLEAR = "1.2.840.10008.5.1.4.1.1.20"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"


def slices(folder, edit=None, *, n=9, step=3.0, up=0.0, plus=0, name="a", **elements):
    """A series of ``n`` slices; ``edit(ds, k)`` changes slice k, ``plus`` is added to pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, pixels in enumerate(series_pixels(n) + plus):
        ds = dicom_slice((5, -7, step * k + up), pixels, InstanceNumber=k + 1, **elements)
        if edit:
            edit(ds, k)
        save(ds, folder / f"{name}{k:02}.dcm")
    return folder


def put(**elements):
    """An edit that sets the same elements in each slice."""

    def edit(ds, _):
        for name, value in elements.items():
            setattr(ds, name, value)

    return edit


def nuclear(frames=9, *, gates=1, **elements):
    """A nuclear medicine file: ``gates`` stacks of ``frames`` slices, one behind the other."""
    pixels = np.concatenate([series_pixels(frames) + 1000 * g for g in range(gates)])
    ds = dicom_slice((0, 0, 0), pixels, SOPClassUID=NUCLEAR, Modality="NM")
    del ds.ImagePositionPatient, ds.ImageOrientationPatient
    place = Dataset()
    place.ImageOrientationPatient, place.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [5, -7, 0]
    ds.DetectorInformationSequence = [place]
    ds.NumberOfFrames, ds.SpacingBetweenSlices = len(pixels), 3.0
    ds.ImageType = ["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"]
    for name, value in elements.items():
        setattr(ds, name, value)
    return ds


def enhanced(frames, *, dimensions=("InStackPositionNumber",)):
    """An enhanced MR; each frame is ``(height in mm, index values, pixels)``."""
    pixels = np.stack([frame[2] for frame in frames])
    ds = dicom_slice((0, 0, 0), pixels, SOPClassUID=ENHANCED_MR, Modality="MR")
    del ds.ImagePositionPatient, ds.ImageOrientationPatient, ds.PixelSpacing
    put_pixels(ds, pixels)
    ds.NumberOfFrames = len(frames)
    orientation, measures, group = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing = [1.5, 1.0]
    group.PlaneOrientationSequence, group.PixelMeasuresSequence = [orientation], [measures]
    ds.SharedFunctionalGroupsSequence = [group]
    ds.DimensionIndexSequence = [_dimension(keyword) for keyword in dimensions]
    ds.PerFrameFunctionalGroupsSequence = [_frame(*frame[:2]) for frame in frames]
    return ds


def _dimension(keyword):
    """A dimension along an element."""
    item = Dataset()
    item.DimensionIndexPointer = tag_for_keyword(keyword)
    return item


def _frame(height, indices):
    """The functional groups of one frame."""
    position, content, frame = Dataset(), Dataset(), Dataset()
    position.ImagePositionPatient = [5, -7, height]
    content.DimensionIndexValues = list(indices)
    frame.PlanePositionSequence, frame.FrameContentSequence = [position], [content]
    return frame
