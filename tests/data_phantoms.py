"""Files for the data tests: anisotropic, oblique, of different length along each axis."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from fusion_pipeline.data import Case, Series
from fusion_pipeline.geometry import rigid_matrix

OPEN = Path(__file__).resolve().parents[2] / "shared" / "data" / "open"
SHAPE = (11, 14, 9)
SPACING = (1.0, 1.5, 3.0)


def oblique(spacing=SPACING, angles=(8.0, -11.0, 17.0), origin=(-20.0, 31.0, 12.0)):
    """An oblique, anisotropic RAS affine."""
    scaled = np.diag([*spacing, 1.0])
    scaled[:3, 3] = origin
    return rigid_matrix(angles, (0, 0, 0), (0, 0, 0)) @ scaled


def ramp(shape=SHAPE):
    """Another slope along each axis."""
    i, j, k = np.indices(shape)
    return (i + 20.0 * j + 400.0 * k).astype(np.float32)


def save_nifti(path, array=None, affine=None, **header):
    """A NIfTI file; keywords set header fields."""
    image = nib.Nifti1Image(ramp() if array is None else array, None)
    affine = oblique() if affine is None else affine
    image.header.set_sform(affine, header.pop("sform_code", 1))
    if np.isfinite(affine).all() and np.linalg.norm(affine[:3, :3], axis=0).all():
        image.header.set_qform(affine, header.pop("qform_code", 1))
    for name, value in header.items():
        image.header[name] = value
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), None, image.header), path)
    return path


def dicom_slice(position, pixels, *, orientation=(1, 0, 0, 0, 1, 0), series="1.2.3", **elements):
    """One classic slice as a data set; keywords are DICOM elements."""
    ds = pydicom.Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = elements.pop("SOPClassUID", CTImageStorage)
    ds.SOPInstanceUID = generate_uid()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.SeriesInstanceUID = series
    ds.Modality = "CT"
    ds.SeriesDescription = "thorax"
    ds.ImageOrientationPatient = [float(v) for v in orientation]
    ds.ImagePositionPatient = [float(v) for v in position]
    ds.PixelSpacing = [1.5, 1.0]
    put_pixels(ds, pixels)
    for name, value in elements.items():
        if value is None and name in ds:
            delattr(ds, name)
        elif value is not None:
            setattr(ds, name, value)
    return ds


def put_pixels(ds, pixels):
    """Grey 16-bit pixels ``(rows, columns)`` or ``(frames, rows, columns)``."""
    ds.Rows, ds.Columns = pixels.shape[-2:]
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation = 15, 1
    ds.PixelData = pixels.astype("<i2").tobytes()


def series_pixels(n=9):
    """Stored pixels ``(slices, rows, columns)``, other along each axis."""
    return np.ascontiguousarray(ramp((11, 14, n)).T).astype(np.int16)


def save_series(folder, heights=None, *, shift=0.0, **elements):
    """A series along z; ``heights`` in mm, ``shift`` in mm of x per slice (a tilt)."""
    folder.mkdir(parents=True, exist_ok=True)
    heights = [3.0 * n for n in range(9)] if heights is None else heights
    pixels = series_pixels(len(heights))
    for n, height in enumerate(heights):
        ds = dicom_slice((5 + shift * n, -7, height), pixels[n], **elements)
        save(ds, folder / f"{(n * 5) % 97:02d}-{len(list(folder.iterdir()))}.dcm")
    return folder


def save(ds, path):
    """Write a data set as a file."""
    ds.save_as(path, enforce_file_format=True)
    return path


def case_of(case_id, reference, images, transforms=None, **truth):
    """A case in memory: images by key, and labels, landmarks, displacements or masks by key."""
    names = {"labels": "labels", "landmarks": "landmarks", "displacements": "displacement"}
    names["masks"] = "mask"
    series = {}
    for key, image in images.items():
        extras = {names[role]: given[key] for role, given in truth.items() if key in given}
        kind = (transforms or {}).get(key, "deformable")
        series[key] = Series(image, transform=kind, **extras)
    return Case(case_id, reference, series)
