"""Half-lives of the nuclides in PET, and which nuclide a header names."""

import re
from collections.abc import Iterator

from pydicom import Dataset

# Seconds; NuDat 3 (National Nuclear Data Center, Brookhaven), rounded.
HALF_LIFE = {
    "C-11": 1221.8,
    "N-13": 597.9,
    "O-15": 122.24,
    "F-18": 6586.2,
    "Na-22": 82105000.0,
    "K-38": 457.7,
    "Sc-43": 14007.6,
    "Sc-44": 14551.2,
    "Ti-45": 11088.0,
    "Mn-51": 2772.0,
    "Mn-52": 483062.4,
    "Mn-52m": 1266.0,
    "Fe-52": 29790.0,
    "Co-55": 63108.0,
    "Cu-60": 1422.0,
    "Cu-61": 12020.4,
    "Cu-62": 580.4,
    "Cu-64": 45723.6,
    "Zn-62": 33094.8,
    "Ga-66": 33494.4,
    "Ga-68": 4062.6,
    "Ge-68": 23406000.0,
    "As-70": 3156.0,
    "As-72": 93600.0,
    "Se-73": 25740.0,
    "Br-75": 5802.0,
    "Br-76": 58320.0,
    "Br-77": 205344.0,
    "Rb-82": 75.45,
    "Y-86": 53064.0,
    "Y-90": 230580.0,
    "Zr-89": 282276.0,
    "Nb-90": 52560.0,
    "Tc-94m": 3120.0,
    "I-120": 4896.0,
    "I-124": 360806.4,
    "Tb-152": 63000.0,
}
NEAR = 0.05  # of a half-life: headers round (6588 s, 75 s for Rb-82), tables differ (Sc-44, 2 %)

# DICOM PS3.16 CID 4020 (PET radionuclides): SNOMED RT, SNOMED CT and DCM
_CODES = {
    "40565003": "C-11",
    "C-105A1": "C-11",
    "21576001": "N-13",
    "C-107A1": "N-13",
    "129504001": "O-15",
    "C-B1038": "O-15",
    "77004003": "F-18",
    "C-111A1": "F-18",
    "71633006": "Na-22",
    "C-155A1": "Na-22",
    "423764008": "K-38",
    "C-135A4": "K-38",
    "126605": "Sc-43",
    "126600": "Sc-44",
    "75696008": "Ti-45",
    "C-166A2": "Ti-45",
    "126601": "Mn-51",
    "37225000": "Mn-52",
    "C-149A1": "Mn-52",
    "126607": "Mn-52m",
    "69089000": "Fe-52",
    "C-130A1": "Fe-52",
    "425364008": "Cu-60",
    "C-127A4": "Cu-60",
    "71425003": "Cu-61",
    "C-127A1": "Cu-61",
    "422934004": "Cu-62",
    "C-127A5": "Cu-62",
    "3932008": "Cu-64",
    "C-127A2": "Cu-64",
    "65054007": "Zn-62",
    "C-141A1": "Zn-62",
    "79477007": "Ga-66",
    "C-131A1": "Ga-66",
    "35337001": "Ga-68",
    "C-131A3": "Ga-68",
    "53315004": "Ge-68",
    "C-128A2": "Ge-68",
    "126602": "As-70",
    "2705002": "As-72",
    "C-115A2": "As-72",
    "87437000": "Se-73",
    "C-116A2": "Se-73",
    "17910003": "Br-75",
    "C-113A1": "Br-75",
    "79523006": "Br-76",
    "C-113A2": "Br-76",
    "86521004": "Br-77",
    "C-113A3": "Br-77",
    "79197006": "Rb-82",
    "C-159A2": "Rb-82",
    "10738001": "Y-86",
    "C-162A3": "Y-86",
    "14691008": "Y-90",
    "C-162A7": "Y-90",
    "63360001": "Zr-89",
    "C-168A4": "Zr-89",
    "126603": "Nb-90",
    "424079002": "Tc-94m",
    "C-163AA": "Tc-94m",
    "40937006": "I-124",
    "C-114A5": "I-124",
    "126606": "Tb-152",
}
_ELEMENTS = {
    "carbon": "C",
    "nitrogen": "N",
    "oxygen": "O",
    "fluorine": "F",
    "sodium": "Na",
    "potassium": "K",
    "scandium": "Sc",
    "titanium": "Ti",
    "manganese": "Mn",
    "iron": "Fe",
    "cobalt": "Co",
    "copper": "Cu",
    "zinc": "Zn",
    "gallium": "Ga",
    "germanium": "Ge",
    "arsenic": "As",
    "selenium": "Se",
    "bromine": "Br",
    "rubidium": "Rb",
    "yttrium": "Y",
    "zirconium": "Zr",
    "niobium": "Nb",
    "technetium": "Tc",
    "iodine": "I",
    "terbium": "Tb",
}
_BY_WORD = {
    **_ELEMENTS,
    **{symbol.lower(): symbol for symbol in _ELEMENTS.values()},
}
_WORD = "|".join(sorted(_BY_WORD, key=len, reverse=True))
_MASS_FIRST = re.compile(rf"(?<![a-z0-9])\^?(\d{{2,3}}m?)\^?[\s-]*({_WORD})(?![a-z])")
_MASS_LAST = re.compile(rf"(?<![a-z])({_WORD})[\s\[^-]*(\d{{2,3}}m?)(?![0-9])")
# tracers that are made with fluorine-18 only
_FLUORINE = re.compile(
    r"\bfdg\b|fluoro-?d?-?(?:deoxy|glucose)|fludeoxyglucose|fluciclovine|florbeta"
)


def nuclide_of(info: Dataset) -> str:
    """The nuclide that a radiopharmaceutical item names, as ``F-18``; empty where it names none.

    Args:
        info: of the Radiopharmaceutical Information Sequence.
    """
    for item in info.get("RadionuclideCodeSequence") or []:
        code = str(item.get("CodeValue") or "").strip().upper()
        named = _CODES.get(code) or in_words(str(item.get("CodeMeaning") or ""))
        if named:
            return named
    for text in _names(info):
        named = in_words(text)
        if named:
            return named
    return ""


def _names(info: Dataset) -> Iterator[str]:
    """What a header calls the tracer."""
    yield str(info.get("Radiopharmaceutical") or "")
    for item in info.get("RadiopharmaceuticalCodeSequence") or []:
        yield str(item.get("CodeMeaning") or "")


def in_words(text: str) -> str:
    """A nuclide in a text.

    >>> [in_words(text) for text in ("^18^Fluorine", "Ga-68 PSMA", "[11C]choline", "FDG", "water")]
    ['F-18', 'Ga-68', 'C-11', 'F-18', '']
    """
    low = text.strip().lower()
    for pattern, mass, element in ((_MASS_FIRST, 1, 2), (_MASS_LAST, 2, 1)):
        match = pattern.search(low)
        name = f"{_BY_WORD[match[element]]}-{match[mass]}" if match else ""
        if name in HALF_LIFE:
            return name
    return "F-18" if _FLUORINE.search(low) else ""


def of_half_life(seconds: float) -> str:
    """The nuclide of a half-life, empty where none is near.

    >>> of_half_life(6588), of_half_life(109.77)
    ('F-18', '')
    """
    gaps = {name: abs(seconds / known - 1) for name, known in HALF_LIFE.items()}
    best = min(gaps, key=lambda name: gaps[name])
    return best if gaps[best] <= NEAR else ""


__all__ = ["HALF_LIFE", "NEAR", "in_words", "nuclide_of", "of_half_life"]
