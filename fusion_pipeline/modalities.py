"""Which images are read: the names of their keys, and what to do with images of another kind."""

import re
from typing import Literal

Modality = Literal["ct", "mr", "pet", "spect"]
MODALITIES: tuple[Modality, ...] = ("ct", "mr", "pet", "spect")
# first words of image keys; a cone-beam CT is read as a CT whose units have to show themselves
KEY_WORDS: dict[str, Modality] = {
    "ct": "ct",
    "cbct": "ct",
    "mr": "mr",
    "pet": "pet",
    "spect": "spect",
}
_LEAVE_OUT = "no network here was trained or tested on it; leave it out"
_CONTOURS = "register the images, then bring contours over with `fusion-pipeline apply --labels`"
_DOSE = "register the images, then bring the dose over with `fusion-pipeline apply --images`"
# kinds of image that users try, by the word of their key or DICOM's Modality in small letters
OTHER_KINDS: dict[str, tuple[str, str]] = {
    "us": ("ultrasound", _LEAVE_OUT),
    "ivus": ("ultrasound", _LEAVE_OUT),
    "oct": ("optical coherence tomography", _LEAVE_OUT),
    "op": ("a photograph", _LEAVE_OUT),
    "es": ("endoscopy", _LEAVE_OUT),
    "sm": ("microscopy", _LEAVE_OUT),
    "xa": ("a projection of X-rays", _LEAVE_OUT),
    "xr": ("a projection of X-rays", _LEAVE_OUT),
    "cr": ("a projection of X-rays", _LEAVE_OUT),
    "dx": ("a projection of X-rays", _LEAVE_OUT),
    "rf": ("a projection of X-rays", _LEAVE_OUT),
    "mg": ("a mammogram", _LEAVE_OUT),
    "seg": ("a segmentation", _CONTOURS),
    "rtstruct": ("contours", _CONTOURS),
    "rtdose": ("a dose", _DOSE),
}


def modality_of(key: str) -> Modality:
    """The modality that an image key names: ``mr_t1`` → ``mr``, ``cbct`` → ``ct``.

    Raises:
        ValueError: the key does not begin with a modality that is read.
    """
    word = key.partition("_")[0]
    if word not in KEY_WORDS:
        raise ValueError(
            f"expected a key of {', '.join(KEY_WORDS)} (mr_t1 and the like), got {key!r}"
        )
    return KEY_WORDS[word]


def other_kind(key: str) -> tuple[str, str] | None:
    """What a key names that is not read, and what to do; None for any other word.

    Args:
        key: of an entry, an option, or DICOM's Modality: ``us``, ``us_b``, ``US``.

    >>> other_kind("us_b")[0]
    'ultrasound'
    >>> other_kind("mr_t1") is None
    True
    """
    return OTHER_KINDS.get(re.split("[_-]", key.lower())[0])


__all__ = ["KEY_WORDS", "MODALITIES", "OTHER_KINDS", "Modality", "modality_of", "other_kind"]
