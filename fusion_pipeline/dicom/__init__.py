"""DICOM objects of a result: derived series, secondary captures, registrations, maps."""

from fusion_pipeline.dicom.export import check_dicom_export, write_dicom
from fusion_pipeline.dicom.options import IDENTITY_OPTIONS, DicomExport, IdentityOption

__all__ = ["IDENTITY_OPTIONS", "DicomExport", "IdentityOption", "check_dicom_export", "write_dicom"]
