"""Mutated headers: each file is read or refused in one line, within seconds and megabytes.

    python benchmarks/fuzz_headers.py --cases 10000

Small DICOM series and files, NIfTI, NRRD and MetaImage files are written, and each case changes one
of them: elements and fields get odd values, bytes are changed, cut out, doubled or cut off. What is
read must have finite numbers; whatever else than a refusal is raised, takes over 10 CPU seconds or
over 2 GB is listed with its seed, and the exit code is 1. ``--first SEED --cases 1 --keep`` makes
one anew.
"""

import argparse
import faulthandler
import logging
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk
from numpy.random import Generator
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from fusion_pipeline.data import InputError, check_case_headers, read_image
from fusion_pipeline.data.datalist import case_from_paths

LIMIT_S = 10.0
LIMIT_GB = 2.0
SHAPE = (9, 11, 6)
SOP = "1.2.840.10008.5.1.4.1.1."
ODD_TEXTS = ("", "0", "-1", "nan", "inf", "1e40", "65535", "2147483647", "x", "1\\2", "9" * 40)
ODD_NUMBERS = (0, 1, -1, 7, 255, 32767, -32768, 65535, 2**31 - 1, -(2**31), 2**63 - 1)
FORMATS = ("ct", "pet", "nm", "enhanced", "nifti", "nrrd", "mha")


def values(rng: Generator) -> np.ndarray:
    """A small image with air, ``(x, y, z)``."""
    made = rng.normal(40, 20, SHAPE)
    made[:2] = -1000
    return made.round().astype(np.int16)


def header(modality: str, sop: str) -> Dataset:
    """A whole DICOM header but for the geometry."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = SOP + sop, generate_uid()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.Modality, ds.SeriesInstanceUID, ds.PatientID = modality, "1.2.3", "P1"
    ds.ImageType, ds.AcquisitionNumber = ["ORIGINAL", "PRIMARY", "AXIAL"], 1
    ds.SeriesDate = ds.AcquisitionDate = "20200101"
    ds.SeriesTime = ds.AcquisitionTime = "110000"
    ds.PixelSpacing, ds.SliceThickness = [1.5, 2.0], 3.0
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation = 15, 1
    ds.Rows, ds.Columns = SHAPE[1], SHAPE[0]
    ds.RescaleSlope, ds.RescaleIntercept = "1", "0"
    return ds


def inject(ds: Dataset) -> None:
    """What SUV needs."""
    info, nuclide = Dataset(), Dataset()
    nuclide.CodeValue, nuclide.CodingSchemeDesignator = "C-111A1", "SRT"
    info.RadionuclideCodeSequence, info.Radiopharmaceutical = [nuclide], "FDG"
    info.RadionuclideTotalDose, info.RadionuclideHalfLife = "350000000", "6586.2"
    info.RadiopharmaceuticalStartTime = "100000"
    ds.RadiopharmaceuticalInformationSequence = [info]
    ds.PatientWeight, ds.Units, ds.DecayCorrection = "70", "BQML", "START"
    ds.CorrectedImage = ["ATTN", "DECY"]


def series(folder: Path, rng: Generator, modality: str, sop: str) -> Path:
    """A series of classic slices."""
    folder.mkdir()
    for k, pixels in enumerate(values(rng).T):
        ds = header(modality, sop)
        ds.InstanceNumber, ds.ImageOrientationPatient = k + 1, [1, 0, 0, 0, 1, 0]
        ds.ImagePositionPatient = [0, 0, 3 * k]
        if modality == "PT":
            inject(ds)
        ds.PixelData = pixels.tobytes()
        ds.save_as(folder / f"{k}.dcm", enforce_file_format=True)
    return folder


def many_frames(path: Path, rng: Generator, kind: str) -> Path:
    """A nuclear medicine file, or an enhanced MR."""
    ds = header(*(("NM", "20") if kind == "nm" else ("MR", "4.1")))
    ds.NumberOfFrames, ds.SpacingBetweenSlices = SHAPE[2], 3.0
    place, measures = Dataset(), Dataset()
    place.ImageOrientationPatient, place.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 0]
    measures.PixelSpacing = [1.5, 2.0]
    if kind == "nm":
        ds.ImageType = ["ORIGINAL", "PRIMARY", "RECON TOMO"]
        ds.DetectorInformationSequence = [place]
        ds.SliceVector, ds.TimeSlotVector = [*range(1, SHAPE[2] + 1)], [1] * SHAPE[2]
    else:
        shared = Dataset()
        shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [place], [measures]
        ds.SharedFunctionalGroupsSequence = [shared]
        ds.PerFrameFunctionalGroupsSequence = []
        for k in range(SHAPE[2]):
            frame, position, content = Dataset(), Dataset(), Dataset()
            position.ImagePositionPatient = [0, 0, 3 * k]
            content.DimensionIndexValues = [1, k + 1]
            frame.PlanePositionSequence, frame.FrameContentSequence = [position], [content]
            ds.PerFrameFunctionalGroupsSequence.append(frame)
    ds.PixelData = values(rng).T.tobytes()
    ds.save_as(path, enforce_file_format=True)
    return path


def itk_file(path: Path, rng: Generator) -> Path:
    """An NRRD or MetaImage file."""
    image = sitk.GetImageFromArray(values(rng).T)
    image.SetSpacing((1.5, 2.0, 3.0))
    sitk.WriteImage(image, str(path), useCompression=bool(rng.random() < 0.4))
    return path


def write(folder: Path, kind: str, rng: Generator) -> Path:
    """A right file or series of a format."""
    if kind in ("ct", "pet"):
        modality, sop = {"ct": ("CT", "2"), "pet": ("PT", "128")}[kind]
        return series(folder / kind, rng, modality, sop)
    if kind in ("nm", "enhanced"):
        return many_frames(folder / f"{kind}.dcm", rng, kind)
    if kind == "nifti":
        path = folder / f"a.nii{'.gz' if rng.random() < 0.3 else ''}"
        nib.save(nib.Nifti1Image(values(rng), np.diag([1.5, 2.0, 3.0, 1.0])), path)
        return path
    return itk_file(folder / f"a.{kind}", rng)


# --- mutations --------------------------------------------------------------------------------


def mutate(path: Path, kind: str, rng: Generator) -> None:
    """Change a file, or one or all files of a series."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    chosen = files if rng.random() < 0.4 else [files[rng.integers(len(files))]]
    state = int(rng.integers(2**31))
    by_field = rng.random() < 0.7
    for file in chosen:  # all in the same way
        own = np.random.default_rng(state)
        if by_field and kind in ("ct", "pet", "nm", "enhanced"):
            change_elements(file, own)
        elif by_field and kind == "nifti" and file.suffix == ".nii":
            change_nifti(file, own)
        else:
            change_bytes(file, own)


def change_elements(file: Path, rng: Generator) -> None:
    """Give some DICOM elements odd values, or take them away."""
    ds = pydicom.dcmread(file)
    for _ in range(rng.integers(1, 4)):
        target = ds
        element = list(target)[rng.integers(len(target))]
        while element.VR == "SQ" and element.value and len(element.value[0]) and rng.random() < 0.8:
            target = element.value[rng.integers(len(element.value))]
            if not len(target):
                break
            element = list(target)[rng.integers(len(target))]
        if element.keyword == "PixelData" or element.tag not in target:
            continue
        if rng.random() < 0.25:
            del target[element.tag]
            continue
        target[element.tag] = odd_element(element, rng)
    ds.save_as(file, enforce_file_format=False)


def odd_element(element: DataElement, rng: Generator) -> DataElement:
    """The element with another value of its type; texts may be none of its type."""
    tag, vr = element.tag, element.VR
    if vr == "SQ":
        return DataElement(tag, vr, [] if rng.random() < 0.5 else [Dataset()])
    if vr in ("US", "SS", "UL", "SL"):
        top = {"US": 2**16, "SS": 2**15, "UL": 2**32, "SL": 2**31}[vr]
        return DataElement(tag, vr, int(rng.choice(ODD_NUMBERS)) % top)
    if vr in ("FD", "FL"):
        return DataElement(tag, vr, float(rng.choice([0, -1, np.nan, np.inf, 1e30])))
    if vr in ("OB", "OW"):
        return DataElement(tag, vr, bytes(int(rng.integers(4)) * 2))
    text = "\\".join([str(rng.choice(ODD_TEXTS))] * int(rng.choice([1, 1, 1, 2, 6])))
    return DataElement(tag, vr, text, already_converted=True)


def change_nifti(file: Path, rng: Generator) -> None:
    """Give some fields of a NIfTI header odd values."""
    content = bytearray(file.read_bytes())
    fields = nib.nifti1.header_dtype.fields
    for _ in range(rng.integers(1, 4)):
        dtype, start = fields[str(rng.choice(list(fields)))][:2]
        base, _ = dtype.subdtype or (dtype, None)
        place = start + base.itemsize * int(rng.integers(dtype.itemsize // base.itemsize))
        if base.kind == "f":
            odd = rng.choice([0, -1, np.nan, np.inf, 1e30, 1e-30])
            content[place : place + base.itemsize] = np.array(odd, base).tobytes()
        else:
            content[place : place + base.itemsize] = rng.bytes(base.itemsize)
            if base.kind == "i" and rng.random() < 0.7:
                odd = np.array(int(rng.choice(ODD_NUMBERS))).astype(base)
                content[place : place + base.itemsize] = odd.tobytes()
    file.write_bytes(content)


def change_bytes(file: Path, rng: Generator) -> None:
    """Change, double, cut out or cut off bytes, mostly of the header."""
    content = bytearray(file.read_bytes())
    for _ in range(rng.integers(1, 5)):
        end = max(2, len(content) if rng.random() < 0.2 else min(len(content), 1200))
        at, length = int(rng.integers(end)), int(rng.integers(1, 9))
        match rng.integers(5):
            case 0:
                content[at : at + length] = rng.bytes(length)
            case 1:
                content[at : at + 1] = bytes([int(rng.choice([0, 9, 45, 48, 57, 255]))])
            case 2:
                del content[at : at + length]
            case 3:
                content[at:at] = content[at : at + length]
            case 4 if rng.random() < 0.3:
                del content[at:]
    file.write_bytes(content)


# --- one case ---------------------------------------------------------------------------------


def outcome(path: Path, key: str) -> str:
    """What became of a file: ``read``, ``refused``, or what is wrong."""
    try:
        check_case_headers(case_from_paths("p", {key: str(path), "mr_2": str(path)}))
        image, _ = read_image(str(path), key)
    except InputError as error:
        return "refused" if "\n" not in str(error) else f"more than one line: {error}"
    except Exception:
        return traceback.format_exc()
    whole = bool(np.isfinite(image.affine).all() and image.array.isfinite().all())
    return "read" if whole else "numbers that are not finite"


def run_case(seed: int, folder: Path) -> tuple[str, str]:
    """Write, mutate and read one case."""
    rng = np.random.default_rng(seed)
    kind = FORMATS[seed % len(FORMATS)]
    path = write(folder, kind, rng)
    mutate(path, kind, rng)
    key = {"pet": "pet", "nm": "spect", "enhanced": "mr"}.get(kind, "ct")
    start = time.process_time()  # other programs of the machine count for no case
    faulthandler.dump_traceback_later(60 * LIMIT_S, exit=True)
    said = outcome(path, key)
    faulthandler.cancel_dump_traceback_later()
    seconds = time.process_time() - start
    if said in ("read", "refused") and seconds > LIMIT_S:
        said = f"{seconds:.1f} s"
    return kind, said


def main() -> int:
    """Run the cases and list what is wrong."""
    warnings.simplefilter("ignore")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first case")
    parser.add_argument("--keep", action="store_true", help="leave the files, and say where")
    args = parser.parse_args()
    for kind in FORMATS:  # imports and first calls count for no case
        folder = Path(tempfile.mkdtemp(prefix="fuzz_"))
        outcome(write(folder, kind, np.random.default_rng()), "mr")
        shutil.rmtree(folder)
    counts, wrong = Counter(), 0
    for seed in range(args.first, args.first + args.cases):
        folder = Path(tempfile.mkdtemp(prefix=f"fuzz{seed}_"))
        before = peak_gb()
        kind, said = run_case(seed, folder)
        if peak_gb() - before > LIMIT_GB:
            said = f"{peak_gb() - before:.1f} GB more"
        counts[kind, said if said in ("read", "refused") else "wrong"] += 1
        if said not in ("read", "refused"):
            wrong += 1
            print(f"seed {seed} ({kind}): {said}", flush=True)
        if args.keep:
            print(f"seed {seed} ({kind}): {folder}: {said}")
        else:
            shutil.rmtree(folder)
    for (kind, said), number in sorted(counts.items()):
        print(f"{kind:10} {said:8} {number:6}")
    print(f"{args.cases} cases, {wrong} wrong, peak {peak_gb():.2f} GB")
    return 1 if wrong else 0


def peak_gb() -> float:
    """Peak memory of the process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    sys.exit(main())
