"""What a user decides about DICOM output."""

from dataclasses import dataclass
from typing import Literal, get_args

from fusion_pipeline.data import InputError

IdentityOption = Literal["copy", "remove"]
IDENTITY_OPTIONS: tuple[IdentityOption, ...] = get_args(IdentityOption)
_LONGEST = 64  # characters of DICOM's LO, and of a group of PN


@dataclass(frozen=True)
class DicomExport:
    """Whose the DICOM objects are.

    Attributes:
        identity: ``copy``: patient and study of the input's DICOM headers, and references to its
            instances; ``remove``: neither, and new UIDs everywhere.
        patient_id: of input without an identity; empty: PatientID stays empty.
        patient_name: the same, as DICOM writes names: ``Family^Given``.
    """

    identity: IdentityOption = "copy"
    patient_id: str = ""
    patient_name: str = ""

    def __post_init__(self) -> None:
        """Refuse what is no such option."""
        if self.identity not in IDENTITY_OPTIONS:
            names = " or ".join(IDENTITY_OPTIONS)
            raise InputError(f"dicom_identity: expected {names}, got {self.identity!r}")
        for name in ("patient_id", "patient_name"):
            value = getattr(self, name)
            if len(value) > _LONGEST or "\\" in value or not value.isprintable():
                raise InputError(
                    f"{name}: expected at most {_LONGEST} printable characters without a backslash,"
                    f" got {value!r}; shorten it"
                )


__all__ = ["IDENTITY_OPTIONS", "DicomExport", "IdentityOption"]
