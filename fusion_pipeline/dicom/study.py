"""Patient, study and equipment of the objects that are written, and their UIDs."""

import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.sr.coding import Code
from pydicom.uid import UID, ExplicitVRLittleEndian

import fusion_pipeline
from fusion_pipeline.data import Case, Identity, Image, Source
from fusion_pipeline.data.dicom import series_headers
from fusion_pipeline.data.dicom_files import is_dicom
from fusion_pipeline.data.refusals import quiet, refusal
from fusion_pipeline.dicom.options import DicomExport

PRODUCT = "fusion_pipeline"
_PATIENT = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex")
_STUDY = ("StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber")
_OPTIONAL = (
    "IssuerOfPatientID",
    "StudyDescription",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
)
_SCANNER = ("Manufacturer", "ManufacturerModelName", "StationName", "SoftwareVersions")
_REMOVED = "PatientIdentityRemoved"
_METHOD = "only geometry, pixels and acquisition settings kept; new UIDs"
_TAG_NAMES = {
    "PatientName": "patient_name",
    "PatientID": "patient_id",
    "PatientBirthDate": "patient_birth_date",
    "PatientSex": "patient_sex",
}


@dataclass(frozen=True)
class SeriesOf:
    """What an object says of the series that it belongs to.

    Attributes:
        role: names the series within the export; its UIDs come from it.
        number: SeriesNumber.
        modality: DICOM's word.
        description: SeriesDescription.
    """

    role: str
    number: int
    modality: str
    description: str


class Study:
    """The patient and the study that objects of one export share.

    The identity is that of the reference's DICOM header, else of the first image that has one.
    Nothing is invented: what no header and no option says stays empty.

    Args:
        case: what was run.
        options: whose the objects are.
        digest: of the input and the settings: equal exports have equal UIDs; empty: new ones.

    Raises:
        InputError: a series is no longer there, or the options contradict its header.
    """

    def __init__(self, case: Case, options: DicomExport, digest: str) -> None:
        self.options = options
        self.now = datetime.now().astimezone()
        self._root = f"{digest or uuid.uuid4().hex} {options}"
        self.headers = {key: headers_of(image) for key, image in case.images.items()}
        self._donor = _donor(case, self.headers)
        check_identity(case, options, self._donor)
        self.reference = case.reference

    @property
    def removed(self) -> bool:
        """The identity is left out."""
        return self.options.identity == "remove"

    def has_sources(self, key: str) -> bool:
        """Whether instances of an image may be named."""
        return bool(self.headers[key]) and not self.removed

    def uid(self, *parts: str) -> UID:
        """A UID of this export: a UUID by name (DICOM PS3.5 B.2), equal for equal parts."""
        text = " ".join((self._root, *parts))
        return UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, text).int}")

    def frame_of_reference(self, key: str) -> str:
        """Of an image; a new one where its header has none or may not be named."""
        headers = self.headers[key]
        own = str(headers[0].get("FrameOfReferenceUID") or "") if headers else ""
        return own if own and not self.removed else self.uid("frame of reference", key)

    def dataset(self, sop_class: UID, series: SeriesOf, number: int = 1) -> Dataset:
        """A new object: patient, study, series, frame of reference, equipment and file header.

        Args:
            sop_class: what it is.
            series: what it belongs to.
            number: InstanceNumber.
        """
        ds = Dataset()
        ds.SpecificCharacterSet = "ISO_IR 192"
        ds.SOPClassUID = sop_class
        ds.SOPInstanceUID = self.uid("instance", series.role, str(number))
        self._add_identity(ds)
        ds.SeriesInstanceUID = self.uid("series", series.role)
        ds.SeriesNumber, ds.InstanceNumber = series.number, number
        ds.Modality, ds.SeriesDescription = series.modality, series.description[:64]
        ds.Laterality = ""
        ds.SeriesDate, ds.SeriesTime = self.date, self.time
        ds.ContentDate, ds.ContentTime = self.date, self.time
        ds.FrameOfReferenceUID = self.frame_of_reference(self.reference)
        ds.PositionReferenceIndicator = ""
        ds.Manufacturer = ds.ManufacturerModelName = PRODUCT
        ds.DeviceSerialNumber = ds.SoftwareVersions = fusion_pipeline.__version__
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        return ds

    @property
    def date(self) -> str:
        """Of the export, DICOM's DA."""
        return self.now.strftime("%Y%m%d")

    @property
    def time(self) -> str:
        """Of the export, DICOM's TM."""
        return self.now.strftime("%H%M%S")

    def _add_identity(self, ds: Dataset) -> None:
        """Patient and study; of type 2, so that unknown ones are empty."""
        donor = Dataset() if self.removed or self._donor is None else self._donor
        for name in (*_PATIENT, *_STUDY):
            setattr(ds, name, str(donor.get(name) or ""))
        for name in _OPTIONAL:
            if donor.get(name):
                setattr(ds, name, donor.get(name))
        ds.PatientID = self.options.patient_id or ds.PatientID
        ds.PatientName = self.options.patient_name or str(ds.PatientName)
        ds.StudyInstanceUID = str(donor.get("StudyInstanceUID") or "") or self.uid("study")
        if self.removed:
            setattr(ds, _REMOVED, "YES")
            ds.DeidentificationMethod = _METHOD
            ds.LongitudinalTemporalInformationModified = "REMOVED"

    def scanner(self, key: str) -> Items | None:
        """ContributingEquipmentSequence with the scanner of an image, where it may be named."""
        header = self.headers[key][0] if self.has_sources(key) else Dataset()
        if not header.get("Manufacturer"):
            return None
        item = Dataset()
        for name in _SCANNER:
            if header.get(name):
                setattr(item, name, header.get(name))
        item.PurposeOfReferenceCodeSequence = coded("109101", "DCM", "Acquisition Equipment")
        return Items([item])


def headers_of(image: Image) -> list[Dataset]:
    """The headers of an image's DICOM series in the order of its slices; empty for other files.

    Raises:
        InputError: the series has gone or changed since it was read.
    """
    source = Source.parse(image.path)
    path = Path(source.path)
    with suppress(OSError):
        if image.path and (source.is_dicom_choice or path.is_dir() or is_dicom(path)):
            return series_headers(source, f"{image.key} ({image.path})").headers
    return []


def check_identity(case: Case, options: DicomExport, donor: Dataset | None) -> None:
    """Refuse a patient by option where a header names another one, or where none shall be.

    Raises:
        InputError: the options contradict the header or each other.
    """
    for name in ("patient_id", "patient_name"):
        said = getattr(options, name)
        if said and options.identity == "remove":
            advice = "leave one of both out"
            raise refusal("--dicom-identity remove", f"no {name}", repr(said), advice)
        tag = {"patient_id": "PatientID", "patient_name": "PatientName"}[name]
        own = "" if donor is None else str(donor.get(tag) or "").strip()
        if said and own and own != said:
            raise refusal(
                f"case {case.id!r}",
                f"a {name} only where no DICOM header has one",
                "a header with another",
                "leave it out",
            )


def _donor(case: Case, headers: dict[str, list[Dataset]]) -> Dataset | None:
    """The header that says who the patient is: the reference's, else the first that does."""
    for key in (case.reference, *case.moving):
        if headers[key]:
            return headers[key][0]
        identity = case.images[key].identity
        if identity is not None and (identity.patient_id or identity.study_uid):
            return _as_header(identity)
    return None


def _as_header(identity: Identity) -> Dataset:
    """What the meta of an image in memory says of its patient."""
    ds = Dataset()
    for tag, name in _TAG_NAMES.items():
        setattr(ds, tag, getattr(identity, name))
    ds.StudyInstanceUID = identity.study_uid
    return ds


def coded(value: str, scheme: str, meaning: str) -> Items:
    """A code sequence of one item."""
    code = Code(value, scheme, meaning)
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator = code.value, code.scheme_designator
    item.CodeMeaning = code.meaning
    return Items([item])


def instance_reference(header: Dataset) -> Dataset:
    """An item that names an instance."""
    item = Dataset()
    item.ReferencedSOPClassUID = header.SOPClassUID
    item.ReferencedSOPInstanceUID = header.SOPInstanceUID
    return item


def as_source(header: Dataset) -> Dataset:
    """An item of SourceImageSequence."""
    item = instance_reference(header)
    purpose = "Source image for image processing operation"
    item.PurposeOfReferenceCodeSequence = coded("121322", "DCM", purpose)
    return item


def add_references(ds: Dataset, headers: Sequence[Dataset]) -> None:
    """Common Instance Reference: the series of all instances that an object names."""
    here: dict[str, list[Dataset]] = {}
    other: dict[str, dict[str, list[Dataset]]] = {}
    for header in headers:
        series = str(header.SeriesInstanceUID)
        study = str(header.get("StudyInstanceUID") or ds.StudyInstanceUID)
        at = here if study == ds.StudyInstanceUID else other.setdefault(study, {})
        at.setdefault(series, []).append(header)
    if here:
        ds.ReferencedSeriesSequence = _series_items(here.items())
    studies = []
    for study, series_of_study in other.items():
        item = Dataset()
        item.StudyInstanceUID = study
        item.ReferencedSeriesSequence = _series_items(series_of_study.items())
        studies.append(item)
    if studies:
        ds.StudiesContainingOtherReferencedInstancesSequence = Items(studies)


def _series_items(series: Iterable[tuple[str, list[Dataset]]]) -> Items:
    """An item for each series with its instances."""
    items = []
    for uid, headers in series:
        item = Dataset()
        item.SeriesInstanceUID = uid
        item.ReferencedInstanceSequence = Items([instance_reference(one) for one in headers])
        items.append(item)
    return Items(items)


def save(ds: Dataset, path: Path) -> Path:
    """Write an object as a DICOM file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with quiet():
        ds.save_as(path, enforce_file_format=True)
    return path


__all__ = [
    "PRODUCT",
    "SeriesOf",
    "Study",
    "add_references",
    "as_source",
    "check_identity",
    "coded",
    "headers_of",
    "instance_reference",
    "save",
]
