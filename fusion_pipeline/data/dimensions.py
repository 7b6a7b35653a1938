"""What the slices of a DICOM series may differ in besides their place: echo, time point, gate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydicom import Dataset
from pydicom.datadict import keyword_for_tag
from pydicom.multival import MultiValue

MISSING = "none"  # the value of a slice whose header does not say it
# How far slices of one volume may differ:
# "same": not at all; "counts": only if each slice has its own value; "blocks": in blocks along the
# stack (stations of a long scan), or from each slice to the next; "free": at will, as long as no
# two slices lie at one position.
Rule = Literal["same", "counts", "blocks", "free"]


@dataclass(frozen=True)
class Dimension:
    """Something that slices may differ in.

    Attributes:
        name: what a selector calls it, as in ``folder::echo=90``.
        keywords: DICOM elements that say it; the first with a value counts.
        rule: how far slices of one volume may differ in it.
        private: creator, group and element of private elements that say it where no other does.
    """

    name: str
    keywords: tuple[str, ...]
    rule: Rule
    private: tuple[tuple[str, int, int], ...] = ()


CONTRAST = "contrast"
# words of ImageType that name another image of the same slice: Dixon, complex parts, diffusion maps
_CONTRASTS = frozenset(
    (
        *("W", "F", "IP", "OP", "WATER", "FAT", "IN_PHASE", "OUT_PHASE", "OPP_PHASE"),
        *("M", "P", "R", "I", "MAGNITUDE", "PHASE", "REAL", "IMAGINARY", "PHASE MAP"),
        *("M_FFE", "P_FFE", "R_FFE", "I_FFE", "M_SE", "P_SE", "R_SE", "I_SE"),
        *("ADC", "FA", "TRACEW", "T1 MAP", "T2 MAP", "T2_STAR MAP", "DIFFUSION"),
    )
)
DIMENSIONS = (
    Dimension("echo", ("EchoTime", "EffectiveEchoTime", "EchoNumbers"), "same"),
    Dimension(
        "bvalue",
        ("DiffusionBValue",),
        "same",
        (
            ("SIEMENS MR HEADER", 0x0019, 0x0C),
            ("GEMS_PARM_01", 0x0043, 0x39),
            ("Philips Imaging DD 001", 0x2001, 0x03),
        ),
    ),
    Dimension("direction", ("DiffusionGradientOrientation",), "blocks"),
    Dimension("acquisition", ("AcquisitionNumber", "FrameAcquisitionNumber"), "blocks"),
    Dimension(
        "time",
        ("TemporalPositionIdentifier", "TemporalPositionIndex", "TemporalPositionTimeOffset"),
        "blocks",
    ),
    Dimension("type", ("ImageType", "FrameType"), "blocks"),
    Dimension(CONTRAST, (), "same"),
    # GE: magnitude, phase, real or imaginary part, as 0 to 3
    Dimension("component", ("ComplexImageComponent",), "blocks", (("GEMS_PARM_01", 0x0043, 0x2F),)),
    Dimension("sequence", ("ScanningSequence",), "same"),
    Dimension("kernel", ("ConvolutionKernel",), "blocks"),
    Dimension("inversion", ("InversionTime", "InversionTimes"), "blocks"),
    Dimension("flip", ("FlipAngle",), "blocks"),
    Dimension("kvp", ("KVP",), "blocks"),
    Dimension("stack", ("StackID",), "blocks"),
    Dimension(
        "gate",
        (
            "TriggerTime",
            "NominalCardiacTriggerDelayTime",
            "NominalRespiratoryTriggerDelayTime",
            "NominalPercentageOfCardiacPhase",
            "NominalPercentageOfRespiratoryPhase",
        ),
        "free",
    ),
    Dimension("description", ("SeriesDescription",), "free"),
    Dimension("comment", ("ImageComments",), "free"),
    Dimension("reference", ("FrameReferenceTime",), "free"),
    Dimension("clock", ("AcquisitionTime",), "free"),
)
_GE_FLAG = 100_000  # s/mm2: GE adds 1e9 to some b-values, and none is as large as this
# of a classic file that is one slice
NUMBER = "number"
# one value per frame in a nuclear medicine file (DICOM PS3.3 C.8.4.8); SliceVector is the place
_VECTORS = {
    "window": "EnergyWindowVector",
    "detector": "DetectorVector",
    "phase": "PhaseVector",
    "rotation": "RotationVector",
    "interval": "RRIntervalVector",
    "gate": "TimeSlotVector",
    "view": "AngularViewVector",
    "time": "TimeSliceVector",
}
_PLACE = (
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "ImagePositionVolume",
    "ImageOrientationVolume",
    "InStackPositionNumber",
    "SliceLocation",
    "SliceVector",
)
# sequences within functional groups that hold a dimension
_INNER = ("DiffusionGradientDirectionSequence",)
_BY_KEYWORD = {keyword: one.name for one in DIMENSIONS for keyword in one.keywords}
_RULES: Mapping[str, Rule] = {one.name: one.rule for one in DIMENSIONS}
# marks of labels that a file itself declares as a dimension of its frames
_DECLARED: Mapping[str, Rule] = {"*": "same", "+": "counts"}


def rule_of(name: str) -> Rule:
    """How far slices of one volume may differ in a label.

    >>> rule_of("echo"), rule_of("acquisition"), rule_of("gate*"), rule_of("gate+")
    ('same', 'blocks', 'same', 'counts')
    """
    return _DECLARED.get(name[-1], _RULES.get(name, "free"))


def spoken(name: str) -> str:
    """The label as a selector writes it.

    >>> spoken("gate*")
    'gate'
    """
    return name.rstrip("".join(_DECLARED))


def labels_of(header: Dataset, count: int, *, nuclear: bool) -> list[Mapping[str, str]]:
    """What each frame of a file says of itself besides its place.

    Args:
        header: of the file.
        count: of its frames.
        nuclear: it is a nuclear medicine file, whose vectors tell its frames apart.

    Returns:
        Per frame the values by label name.
    """
    shared = {one.name: _said(header, one) for one in DIMENSIONS}
    shared[CONTRAST] = _contrast(header.get("ImageType"))
    if count == 1 and "PerFrameFunctionalGroupsSequence" not in header:
        shared[NUMBER] = _text(header.get("InstanceNumber"))
        return [shared]
    if nuclear:
        vectors = {name: header.get(keyword) for name, keyword in _VECTORS.items()}
        whole = {name: v for name, v in vectors.items() if _length(v) == count}
        common = {name: text for name, text in shared.items() if name not in whole}
        return [
            {**common, **{f"{name}*": _text(v[n]) for name, v in whole.items()}}
            for n in range(count)
        ]
    return _functional_labels(header, count, shared)


def _functional_labels(
    header: Dataset, count: int, shared: Mapping[str, str]
) -> list[Mapping[str, str]]:
    """The same of an enhanced file: from functional groups and declared dimensions."""
    common = _elements((header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0])
    frames = header.get("PerFrameFunctionalGroupsSequence") or []
    declared = [
        _keyword(item.get("DimensionIndexPointer"), n)
        for n, item in enumerate(header.get("DimensionIndexSequence") or [])
    ]
    made: list[Mapping[str, str]] = []
    for n in range(count):
        own = {**common, **(_elements(frames[n]) if n < len(frames) else {})}
        labels = dict(shared)
        for keyword, value in own.items():
            if keyword in _BY_KEYWORD and _text(value) != MISSING:
                labels[_BY_KEYWORD[keyword]] = _text(value)
        if "FrameType" in own:
            labels[CONTRAST] = _contrast(own["FrameType"])
        indices = own.get("DimensionIndexValues")
        indices = [indices] if isinstance(indices, int) else list(indices or [])
        for keyword, index in zip(declared, indices, strict=False):
            if keyword not in _PLACE:
                name = _BY_KEYWORD.get(keyword, keyword)
                value = _text(own[keyword]) if keyword in own else str(index)
                labels.pop(name, None)
                labels[f"{name}+"] = value
        made.append(labels)
    return made


def _elements(group: Dataset) -> dict[str, Any]:
    """All elements in the items of a frame's functional groups, by keyword; inner ones last."""
    items = [macro.value[0] for macro in group if macro.VR == "SQ" and macro.value]
    inner = [
        element.value[0]
        for item in items
        for element in item
        if element.keyword in _INNER and element.value
    ]
    return {
        element.keyword: element.value
        for item in [*inner, *items]
        for element in item
        if element.keyword
    }


def _contrast(image_type: Any) -> str:  # noqa: ANN401 - one word or several
    """The words of ImageType that name the contrast."""
    words = [str(word).strip().upper() for word in (image_type or [])]
    return "/".join(word for word in words if word in _CONTRASTS) or MISSING


def _keyword(pointer: Any, n: int) -> str:  # noqa: ANN401 - a tag, or nothing
    """The element that a dimension runs along."""
    return (keyword_for_tag(pointer) if pointer is not None else "") or f"dimension{n + 1}"


def _said(header: Dataset, dimension: Dimension) -> str:
    """The first of a dimension's elements that has a value, private ones last."""
    for keyword in dimension.keywords:
        text = _text(header.get(keyword))
        if text != MISSING:
            return text
    for creator, group, element in dimension.private:
        value = private_value(header, creator, group, element)
        if isinstance(value, MultiValue):  # GE: b, and other numbers of the sequence
            value = value[0] % _GE_FLAG if value else None
        if _text(value) != MISSING:
            return _text(value)
    return MISSING


def private_value(header: Dataset, creator: str, group: int, element: int) -> Any:  # noqa: ANN401
    """The value of a private element.

    Args:
        header: of the file.
        creator: as the block's first elements name it.
        group: of the element.
        element: its last two digits, as in ``(0043,xx39)``.

    Returns:
        None where that creator has not written it, or its type is unknown.
    """
    for block in range(0x10, 0x20):
        named = header.get((group, block))
        if named is None:  # blocks need not follow each other
            continue
        if str(named.value).strip() == creator:
            private = header.get((group, block << 8 | element))
            return None if private is None or isinstance(private.value, bytes) else private.value
    return None


def _text(value: Any) -> str:  # noqa: ANN401 - any DICOM value
    """A value as messages and selectors write it: ``90``, ``ORIGINAL/PRIMARY/AXIAL``."""
    if value is None or value == "":
        return MISSING
    if isinstance(value, MultiValue | list | tuple):
        return "/".join(_text(one) for one in value) or MISSING
    try:
        return f"{float(value):.7g}"  # 10 and 10.0 are the same
    except (TypeError, ValueError):
        return str(value).strip() or MISSING


def _length(vector: Any) -> int:  # noqa: ANN401 - one number or several
    """Of an element of one or several values."""
    return len(vector) if isinstance(vector, Sequence | MultiValue) else 0


__all__ = [
    "CONTRAST",
    "DIMENSIONS",
    "MISSING",
    "NUMBER",
    "Dimension",
    "Rule",
    "labels_of",
    "private_value",
    "rule_of",
    "spoken",
]
