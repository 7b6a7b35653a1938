"""Whether the images of a case show one patient, and lie in one space where none may be moved."""

import re
import unicodedata
from itertools import combinations

from fusion_pipeline.data.image import Case, Identity, Image
from fusion_pipeline.data.refusals import refusal, where

# what anonymizers write in place of a name or number: it says nothing
_NOBODY = re.compile(
    r"(anonym\w*|anon|unknown|none|null|n/?a|no ?(name|id)|removed|deleted|patient|test|[x0?*-]+)?"
)
_SEXES = ("M", "F")  # O and others say nothing for certain


def check_one_patient(case: Case, *, same_person: bool = True) -> list[str]:
    """Refuse images of different people, and another frame of reference where nothing may move.

    What the headers do not say, and other formats than DICOM, count for nothing. Names, numbers and
    dates are compared only; the messages do not hold them.

    Args:
        case: its images say whom they show.
        same_person: False: the user said that these are different people.

    Returns:
        A sentence for each pair of images whose headers differ in a way that one person explains.

    Raises:
        InputError: different people, or ``transform`` is ``none`` and the frames of reference
            differ.
    """
    notes = []
    for a, b in combinations(case.images.values(), 2):
        if a.identity is None or b.identity is None:
            continue
        place = where(case.id, b.key, b.path)
        if same_person:
            notes += _check_person(a, b, a.identity, b.identity, place)
    for key, moving in case.moving.items():
        frames = [image.frame_of_reference for image in (case.fixed, moving)]
        series = case.series[key]
        stays = series.transform == "none" and series.initial_transform is None
        if stays and all(frames) and frames[0] != frames[1]:
            raise refusal(
                where(case.id, key, moving.path),
                f"the frame of reference of {case.reference} for --transform none",
                "another one in the DICOM header",
                "allow --transform rigid, or leave it out",
            )
    return notes


def _check_person(a: Image, b: Image, first: Identity, second: Identity, place: str) -> list[str]:
    """Refuse two images of different people; a sentence where one person has two names or IDs."""
    differ = differences(first, second)
    same_id = bool(_said(first.patient_id)) and _said(first.patient_id) == _said(second.patient_id)
    facts = [name for name in differ if name in ("birth date", "sex")]
    confirmed = _birth(first) and _birth(first) == _birth(second) and _names_agree(first, second)
    if facts or (differ and not same_id and not confirmed):
        raise refusal(
            place,
            f"an image of the patient of {a.key}",
            f"another {' and '.join(differ)} in the DICOM header",
            "check the files; images of different people need --different-people "
            "(same_person=False)",
        )
    if not differ:
        return []
    return [
        f"{place}: the DICOM headers of {a.key} and {b.key} give another {' and '.join(differ)}, "
        f"but the same {'PatientID' if same_id else 'name and birth date'}; they are taken as one "
        "patient."
    ]


def differences(first: Identity, second: Identity) -> list[str]:
    """What two headers say differently of a patient; silence and placeholders are no difference.

    >>> differences(Identity("1", "Doe^Jane"), Identity("1", "DOE^JANE^M"))
    []
    """
    differ = []
    ids = [_said(one.patient_id) for one in (first, second)]
    if all(ids) and ids[0] != ids[1]:
        differ.append("PatientID")
    names = [_words(one.patient_name) for one in (first, second)]
    if all(names) and not _names_agree(first, second):
        differ.append("name")
    births = [_birth(one) for one in (first, second)]
    if all(births) and births[0] != births[1]:
        differ.append("birth date")
    sexes = [one.patient_sex.strip().upper() for one in (first, second)]
    if all(sex in _SEXES for sex in sexes) and sexes[0] != sexes[1]:
        differ.append("sex")
    return differ


def _names_agree(first: Identity, second: Identity) -> bool:
    """All parts of the shorter name are in the longer one."""
    a, b = _words(first.patient_name), _words(second.patient_name)
    return bool(a and b) and (a <= b or b <= a)


def _words(name: str) -> frozenset[str]:
    """The parts of a name without accents, signs and case; none of what stands for nobody."""
    plain = unicodedata.normalize("NFKD", _said(name))
    letters = "".join(c for c in plain if not unicodedata.combining(c))
    return frozenset(re.findall(r"\w+", letters.replace("_", " ").casefold()))


def _said(text: str) -> str:
    """A number or name without blanks and case; empty if it stands for nobody ("anonymous")."""
    short = " ".join(text.split()).casefold()
    return "" if _NOBODY.fullmatch(short.replace("^", " ").strip()) else short


def _birth(identity: Identity) -> str:
    """A whole birth date; not the first of a century, which anonymizers write."""
    digits = re.sub(r"\D", "", identity.patient_birth_date)
    return digits if len(digits) == 8 and digits not in ("19000101", "00000000") else ""


__all__ = ["check_one_patient", "differences"]
