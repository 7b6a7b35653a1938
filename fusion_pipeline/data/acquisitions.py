"""Which slices of a DICOM series are one acquisition: those picked, or refused with a list."""

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

import numpy as np

from fusion_pipeline.data.dimensions import MISSING, NUMBER, rule_of, spoken
from fusion_pipeline.data.frames import Frame
from fusion_pipeline.data.image import InputError
from fusion_pipeline.data.refusals import refusal

SAME_MM = 1e-3  # slices nearer than this lie at one position
ALL = "all"  # `acquisition=all`: take the slices together, whatever they say
_OVERLAP = 1.5  # slices this many steps thick overlap so far that each second one would do
_CONTIGUOUS = 0.1  # of a thickness, by which slices that touch may lie apart or overlap
_LISTED = 8  # values in a message

Selectors = Sequence[tuple[str, str]]
FileName = Callable[[Frame], str]


def pick(frames: Sequence[Frame], selectors: Selectors, place: str) -> list[Frame]:
    """The slices that the selectors name.

    Args:
        frames: of one series.
        selectors: pairs such as ``("echo", "90")``; ``("number", "1-32")`` is a range.
        place: name of the image in messages.

    Raises:
        InputError: an unknown name, or a value that no slice has.
    """
    left = list(frames)
    for name, wanted in selectors:
        label = _label(left, name, place)
        chosen = [frame for frame in left if _matches(frame.labels.get(label, MISSING), wanted)]
        if not chosen:
            values = _listed(left, label)
            raise refusal(place, f"slices of {name}={wanted}", values, "pick one of these")
        left = chosen
    return left


def check_one_acquisition(
    frames: Sequence[Frame], selectors: Selectors, name_of: FileName, place: str
) -> None:
    """Refuse slices that are several volumes: of two echoes, time points, kernels and so on.

    Args:
        frames: slices in order along their normal.
        selectors: what the user picked; a name given as ``all`` is not looked at.
        name_of: the name of a slice's file.
        place: name of the image in messages.

    Raises:
        InputError: the message lists what the slices differ in, and how to pick.
    """
    ignored = {name for name, wanted in selectors if wanted == ALL}
    labels = [name for name in _varying(frames) if spoken(name) not in ignored]
    heights = _heights(frames)
    doubled = bool((np.diff(heights) < SAME_MM).any())
    apart = _distinct(frames, [name for name in labels if _several(frames, name, doubled=doubled)])
    if apart:
        raise _several_volumes(frames, apart, place)
    if doubled:
        raise _doubled(frames, heights, labels, name_of, place)
    if NUMBER not in ignored:
        _check_numbers(frames, heights, labels, place)


def differing_labels(a: Frame, b: Frame) -> list[str]:
    """What two slices say that could pick one of them, as selectors write it."""
    names = [name for name in a.labels if rule_of(name) != "free" and name in b.labels]
    return [spoken(name) for name in names if a.labels[name] != b.labels[name]]


def _label(frames: Sequence[Frame], name: str, place: str) -> str:
    """The label that a selector means."""
    names = {label: None for frame in frames for label in frame.labels}
    for label in names:
        if spoken(label).casefold() == name.casefold():
            return label
    varying = ", ".join(dict.fromkeys(spoken(one) for one in _varying(frames))) or "nothing"
    listed = ", ".join(dict.fromkeys(spoken(one) for one in names))
    raise refusal(
        place, f"a selector of {listed}", name, f"the slices differ in {varying}; pick by that"
    )


def _matches(value: str, wanted: str) -> bool:
    """A value is the one wanted, or in the range."""
    if wanted == ALL or value.casefold() == wanted.casefold():
        return True
    try:
        if float(value) == float(wanted):
            return True
    except ValueError:
        pass
    low, dash, high = wanted.partition("-")
    if dash and low.isdecimal() and high.isdecimal() and value.isdecimal():
        return int(low) <= int(value) <= int(high)
    return False


def _varying(frames: Sequence[Frame]) -> list[str]:
    """Labels of more than one value, those that tell most about an image first."""
    names = {label: None for frame in frames for label in frame.labels if label != NUMBER}
    return [
        name for name in names if len({frame.labels.get(name, MISSING) for frame in frames}) > 1
    ]


def _several(frames: Sequence[Frame], name: str, *, doubled: bool) -> bool:
    """The values of a label are those of several volumes."""
    values = [frame.labels.get(name, MISSING) for frame in frames]
    groups = len(set(values))
    rule = rule_of(name)
    if doubled:  # whatever takes one slice of each position is what tells the volumes apart
        return groups < len(frames) and (rule != "free" or _separates(frames, name))
    if rule == "counts":
        return groups < len(frames)
    if rule == "blocks":
        return len([value for value, _ in groupby(values)]) > groups
    return rule == "same"


def _separates(frames: Sequence[Frame], name: str) -> bool:
    """Slices of one value of a label lie at different positions each."""
    heights = _heights(frames)
    for value in {frame.labels.get(name, MISSING) for frame in frames}:
        own = [h for h, f in zip(heights, frames, strict=True) if f.labels.get(name) == value]
        if len(own) < 2 or min(np.diff(own)) < SAME_MM:
            return False
    return True


def _distinct(frames: Sequence[Frame], names: Iterable[str]) -> list[str]:
    """Labels that part the slices in different ways: of several that part them alike, the first."""
    ways: dict[tuple[int, ...], str] = {}
    for name in names:
        numbers: dict[str, int] = {}
        values = [frame.labels.get(name, MISSING) for frame in frames]
        way = tuple(numbers.setdefault(value, len(numbers)) for value in values)
        ways.setdefault(way, name)
    return list(ways.values())


def _several_volumes(frames: Sequence[Frame], names: Sequence[str], place: str) -> InputError:
    """The refusal that lists what the slices differ in."""
    listed = "; ".join(_listed(frames, name) for name in names)
    examples = [f"{spoken(name)}={_values(frames, name)[0][0]}" for name in names]
    return refusal(
        place,
        "slices of one acquisition",
        listed,
        f"pick one with folder::{'::'.join(examples)}, or take them together with "
        f"{spoken(names[0])}={ALL}",
    )


def _values(frames: Sequence[Frame], name: str) -> list[tuple[str, int]]:
    """The values of a label and how many slices have each."""
    counts: dict[str, int] = {}
    for frame in frames:
        value = frame.labels.get(name, MISSING)
        counts[value] = counts.get(value, 0) + 1
    return sorted(counts.items(), key=lambda pair: _order(pair[0]))


def _order(value: str) -> tuple[float, str]:
    """Numbers by size, then words."""
    try:
        return float(value), value
    except ValueError:
        return np.inf, value


def _listed(frames: Sequence[Frame], name: str) -> str:
    """The values of a label in a message."""
    pairs = _values(frames, name)
    shown = ", ".join(f"{spoken(name)}={value} ({n} slices)" for value, n in pairs[:_LISTED])
    more = len(pairs) - _LISTED
    return f"{shown} and {more} more" if more > 0 else shown


def _doubled(
    frames: Sequence[Frame],
    heights: np.ndarray,
    labels: Sequence[str],
    name_of: FileName,
    place: str,
) -> InputError:
    """The refusal of two slices at one position that nothing tells apart."""
    at = int(np.argmax(np.diff(heights) < SAME_MM))
    names = [name_of(frames[at]), name_of(frames[at + 1])]
    files = " and ".join(dict.fromkeys(names)) + (" (two frames)" if names[0] == names[1] else "")
    differ = ", ".join(spoken(name) for name in labels)
    note = f", which differ in {differ}" if differ else ""
    count = int((np.diff(heights) < SAME_MM).sum())
    return refusal(
        place,
        "one slice at each position",
        f"{count} more at the same positions of {len(frames)}, such as {files}{note}",
        "give one time point, echo or reconstruction",
    )


def _check_numbers(
    frames: Sequence[Frame], heights: np.ndarray, labels: Sequence[str], place: str
) -> None:
    """Refuse two runs of slices, one between the other, that only their numbers tell apart."""
    texts = [frame.labels.get(NUMBER, MISSING) for frame in frames]
    if len(frames) < 4 or not all(text.isdecimal() for text in texts):
        return
    numbers = np.array([int(text) for text in texts])
    if not (_repeats_between(numbers) or _runs_twice(numbers, heights, frames[0].thickness)):
        return
    ways = [n for n in labels if len(_values(frames, n)) < len(frames) and _separates(frames, n)]
    if ways:
        raise _several_volumes(frames, ways[:1], place)
    half = len(frames) // 2
    raise refusal(
        place,
        "slices of one acquisition",
        f"two that lie between each other (InstanceNumber {numbers.min()} to {numbers.max()} "
        f"runs twice through the {len(frames)} slices)",
        f"give one of them, such as folder::{NUMBER}={numbers.min()}-{half}, or take them "
        f"together with {NUMBER}={ALL}",
    )


def note_on_left_out(frames: Sequence[Frame], place: str) -> list[str]:
    """Say where slices were probably left out evenly, which makes a coarser image of the rest.

    Two signs together: the slices are as many times their thickness apart as their numbers count
    from one to the next. Gaps alone are how many MR are taken, and steps of the numbers alone are
    those of one of several echoes.

    Args:
        frames: slices in order along their normal.
        place: name of the image in messages.
    """
    texts = [frame.labels.get(NUMBER, MISSING) for frame in frames]
    thickness = frames[0].thickness
    if len(frames) < 3 or thickness <= 0 or not all(text.isdecimal() for text in texts):
        return []
    steps = np.diff([int(text) for text in texts])
    count = abs(int(steps[0]))
    if count < 2 or (steps != steps[0]).any():
        return []
    heights = _heights(frames)
    step = float(heights[-1] - heights[0]) / (len(frames) - 1)
    if abs(step / thickness - count) > _CONTIGUOUS * count:
        return []
    return [
        f"{place}: {count - 1} of {count} slices were probably left out: they are {thickness:g} mm "
        f"thick, {step:g} mm apart, and InstanceNumber counts in steps of {count}; without them "
        "the image is coarser than it was taken"
    ]


def _repeats_between(numbers: np.ndarray) -> bool:
    """Numbers occur several times, and not in blocks along the stack (stations of a long scan)."""
    most = int(np.unique(numbers, return_counts=True)[1].max())
    if most == 1:
        return False
    blocks, block = 1, set[int]()
    for number in numbers.tolist():
        if number in block:
            blocks, block = blocks + 1, set()
        block.add(number)
    return blocks > most


def _runs_twice(numbers: np.ndarray, heights: np.ndarray, thickness: float) -> bool:
    """In the order of their numbers the slices run through the stack, and through it again.

    Slices of one acquisition that were taken in two passes do so as well; theirs do not overlap.
    """
    step = (heights[-1] - heights[0]) / (len(heights) - 1)
    if thickness < _OVERLAP * step or len(set(numbers.tolist())) < len(numbers):
        return False
    steps = np.diff(heights[np.argsort(numbers)])
    return int((steps[:-1] * steps[1:] < 0).sum()) == 2 and bool(
        np.isclose(np.median(np.abs(steps)), 2 * step, rtol=0.1)
    )


def _heights(frames: Sequence[Frame]) -> np.ndarray:
    """Positions along the normal of the first slice, mm."""
    normal = np.cross(frames[0].orientation[:3], frames[0].orientation[3:])
    return np.array([float(frame.position @ normal) for frame in frames])


__all__ = [
    "SAME_MM",
    "Selectors",
    "check_one_acquisition",
    "differing_labels",
    "note_on_left_out",
    "pick",
]
