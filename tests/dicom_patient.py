"""A patient as whole DICOM series, CT, MR and PET, for the tests of DICOM output."""

import numpy as np
from data_phantoms import dicom_slice, save
from pipeline_cases import body
from pydicom import Dataset
from pydicom.uid import MRImageStorage, PositronEmissionTomographyImageStorage

from fusion_pipeline.geometry import lps_from_ras, rigid_matrix

STUDY, FRAME = "1.2.840.99999.17.1", "1.2.840.99999.17.2"
PATIENT = {
    "PatientName": "Grün^Ada",
    "PatientID": "P-17",
    "PatientBirthDate": "19610203",
    "PatientSex": "F",
    "PatientWeight": 70.0,
    "StudyInstanceUID": STUDY,
    "StudyDate": "20240102",
    "StudyTime": "101500",
    "StudyID": "S1",
    "AccessionNumber": "A1",
    "ReferringPhysicianName": "Rot^R",
    "SpecificCharacterSet": "ISO_IR 192",
    "Manufacturer": "Maker",
    "SeriesDate": "20240102",
    "SeriesTime": "103000",
    "AcquisitionDate": "20240102",
    "AcquisitionTime": "103000",
    "PatientPosition": "HFS",
}
_CT = {"KVP": 120, "RescaleSlope": 1, "RescaleIntercept": -1024, "RescaleType": "HU"}
_MR = {
    "SOPClassUID": MRImageStorage,
    "Modality": "MR",
    "ScanningSequence": "SE",
    "SequenceVariant": "SK",
    "EchoTime": 12.5,
    "EchoTrainLength": 1,
}
_PET = {
    "SOPClassUID": PositronEmissionTomographyImageStorage,
    "Modality": "PT",
    "Units": "BQML",
    "SeriesType": ["STATIC", "IMAGE"],
    "CountsSource": "EMISSION",
    "CorrectedImage": ["ATTN", "DECY", "SCAT"],
    "DecayCorrection": "START",
    "FrameReferenceTime": 1000,
    "DecayFactor": 1.05,
    "RescaleIntercept": 0,
}
# an affine in RAS mm of (columns, rows, slices), and its shape
TURN = rigid_matrix([5.0, -8.0, 12.0], [0.0] * 3, [0.0] * 3)
GRIDS = {
    "ct": TURN @ np.array([[-1.5, 0, 0, 20], [0, -1.2, 0, 18], [0, 0, 3, -30], [0, 0, 0, 1.0]]),
    "mr": np.array([[-2.0, 0, 0, 24], [0, -2.0, 0, 20], [0, 0, 2.5, -32], [0, 0, 0, 1]]),
    "pet": np.array([[-2.5, 0, 0, 26], [0, -2.2, 0, 22], [0, 0, 3, -34], [0, 0, 0, 1]]),
}
SHAPES = {"ct": (26, 30, 18), "mr": (24, 20, 26), "pet": (20, 22, 22)}


def _injection():
    """400 MBq of F-18 an hour before the scan."""
    info, code = Dataset(), Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "C-111A1", "SRT", "^18^Fluorine"
    info.RadionuclideCodeSequence = [code]
    info.RadionuclideTotalDose, info.RadionuclideHalfLife = 4e8, 6586.2
    info.RadiopharmaceuticalStartTime = "093000"
    info.RadiopharmaceuticalStartDateTime = "20240102093000"
    return info


def write_dicom_patient(folder, keys=("ct", "mr", "pet"), **elements):
    """A folder for each key."""
    rng = np.random.default_rng(4)
    paths = {}
    for number, key in enumerate(keys):
        affine, shape = GRIDS[key], SHAPES[key]
        values = body(shape, affine, rng)
        level = {"ct": 1000, "mr": 300, "pet": 20000}[key]
        own = dict({"ct": _CT, "mr": _MR, "pet": _PET}[key])
        if key == "pet":
            own["RadiopharmaceuticalInformationSequence"] = [_injection()]
        lps = lps_from_ras(3) @ affine
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        orientation = (lps[:3, :2] / spacing[:2]).T.ravel()
        paths[key] = folder / key
        paths[key].mkdir(parents=True)
        for k in range(shape[2]):
            pixels = values[:, :, k].T * level
            if key == "pet":  # a slope for each slice, as scanners write it
                own["RescaleSlope"] = float(f"{max(pixels.max(), 1) / 32767:.6g}")
                pixels = pixels / own["RescaleSlope"]
            cosines = [float(f"{value:.12f}") for value in orientation]
            position = [float(f"{v:.8f}") for v in lps[:3, 3] + k * lps[:3, 2]]
            ds = dicom_slice(
                position,
                np.rint(pixels + (24 if key == "ct" else 0)),
                orientation=cosines,
                series=f"1.2.840.99999.17.3.{number}",
                InstanceNumber=k + 1,
                FrameOfReferenceUID=f"{FRAME}.{number}",
                PixelSpacing=[float(spacing[1]), float(spacing[0])],
                SliceThickness=float(spacing[2]),
                **{**PATIENT, **own, **elements},
            )
            save(ds, paths[key] / f"{k:03}.dcm")
    return paths
