"""The datalist: which files make a case; every name checked, no pixel read."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from fusion_pipeline.data.decathlon import from_decathlon, is_decathlon
from fusion_pipeline.data.image import (
    TRANSFORMS,
    InputError,
    TransformKind,
)
from fusion_pipeline.data.pictures import PICTURE_SUFFIXES
from fusion_pipeline.data.refusals import one_line, refusal
from fusion_pipeline.data.sources import InMemory, Source, is_in_memory
from fusion_pipeline.modalities import KEY_WORDS, other_kind

_IMAGE_KEY = re.compile(rf"({'|'.join(KEY_WORDS)})(_[A-Za-z0-9-]+)*")
# `initial_transform` first: its name ends on another one's
_EXTRAS = ("initial_transform", "label", "landmarks", "displacement", "transform", "mask")
_OF_CASE = ("id", "reference", "target", "patient")
_OF_MOVING = ("displacement", "transform", "initial_transform")
FEWEST_IMAGES = 2  # of a case that is registered or fused
_BAD_IN_ID = re.compile(r'[/\\:*?"<>|\x00-\x1f\x7f]')
_OF_COHORT = (
    "summary.csv",
    "summary.html",
    "scores.csv",
    "study.html",
    "summary.json",
    "summary.md",
    "summary.tex",
    "thumbnails",
)  # files that stand beside the cases' folders
_DEFAULT_TRANSFORM: TransformKind = "deformable"


@dataclass(frozen=True)
class SeriesFiles:
    """The files of one image of a case; nothing read.

    Attributes:
        image: where the image is.
        transform: how far the registration of a moving image may go.
        mask: where to look.
        label: an integer map.
        landmarks: CSV in RAS mm.
        displacement: a true field on the reference's grid.
        initial_transform: an affine at which the registration of a moving image may begin.
    """

    image: Source | InMemory
    transform: TransformKind = _DEFAULT_TRANSFORM
    mask: Source | InMemory | None = None
    label: Source | InMemory | None = None
    landmarks: Source | None = None
    displacement: Source | None = None
    initial_transform: Source | None = None


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case, paths absolute or relative to the working directory; nothing read.

    Attributes:
        id: name of the case, and of its output folder.
        reference: key of the fixed image.
        series: per image key its files, the reference first, then as the user listed them.
        target: class of the case, for the diagnostic study.
        patient: whose images they are; cases of one patient stay in one fold. Empty: the case is
            the only one of its patient.
    """

    id: str
    reference: str
    series: Mapping[str, SeriesFiles]
    target: str | int | None = None
    patient: str = ""

    @property
    def images(self) -> Mapping[str, Source | InMemory]:
        """Where each image is."""
        return {key: files.image for key, files in self.series.items()}


def read_datalist(
    path: str | Path,
    section: str = "testing",
    *,
    may_be_empty: bool = False,
    may_be_mixed: bool = False,
    transform: TransformKind = _DEFAULT_TRANSFORM,
    fewest_images: int = FEWEST_IMAGES,
) -> list[CaseFiles]:
    """Read a section of a datalist.

    Args:
        path: JSON, ours or the Decathlon's with several files in ``image``; the paths in it are
            relative to its folder.
        section: ``testing``, ``training`` or ``validation``.
        may_be_empty: the section may list nothing (``[]``); left out, it may be misspelt.
        may_be_mixed: cases of pictures may stand beside cases of volumes; each case is of one kind.
        transform: how far the registration may go where an entry does not say it for an image.
        fewest_images: that a case has; one is enough to be harmonized.

    Returns:
        The cases as listed, every key, id and option checked; whether files exist is found when
        a case is loaded, so that one bad case does not stop the others.

    Raises:
        InputError: the file or a case in it is malformed.
    """
    path = Path(path)
    place = f"datalist {path}"
    content = _json(path, place)
    if may_be_empty and isinstance(content, dict) and content.get(section) == []:
        return []
    entries = [
        from_decathlon(entry, content.get("modality"), _entry_name(entry, n, section, place))
        if is_decathlon(entry) and isinstance(content, dict)
        else entry
        for n, entry in enumerate(_section(content, section, place))
    ]
    cases = [
        _case(entry, path.parent, _entry_name(entry, n, section, place), transform, fewest_images)
        for n, entry in enumerate(entries)
    ]
    _check_ids(cases, place)
    if not may_be_mixed:
        _check_same_kind([image for case in cases for image in case.images.values()], place)
    return cases


def case_from_paths(
    id: str,  # noqa: A002 - the datalist's own word
    paths: Mapping[str, Any],
    reference: str | None = None,
    transforms: Mapping[str, str] | None = None,
    masks: Mapping[str, str | Path] | None = None,
    initial_transforms: Mapping[str, str | Path] | None = None,
    *,
    fewest_images: int = FEWEST_IMAGES,
) -> CaseFiles:
    """A case from paths given one by one, as on the command line; checked like a datalist's.

    Args:
        id: name of the case.
        paths: per image key, in the order wanted; relative to the working directory.
        reference: key of the fixed image; default the first of ct, cbct, mr*, pet, spect.
        transforms: per moving key, ``none``, ``rigid``, ``affine`` or ``deformable`` (default).
        masks: per key, an integer image: where to look.
        initial_transforms: per moving key, a file with an affine at which its registration begins.
        fewest_images: that the case has; one is enough to be harmonized.

    Raises:
        InputError: a key, the id or an option is not acceptable.
    """
    entry: dict[str, Any] = {"id": id, **paths}
    if reference is not None:
        entry["reference"] = reference
    entry.update({f"{key}_transform": kind for key, kind in (transforms or {}).items()})
    entry.update({f"{key}_mask": path for key, path in (masks or {}).items()})
    starts = (initial_transforms or {}).items()
    entry.update({f"{key}_initial_transform": path for key, path in starts})
    return case_from_entry(entry, fewest_images=fewest_images)


def case_from_entry(
    entry: Mapping[str, object], *, fewest_images: int = FEWEST_IMAGES
) -> CaseFiles:
    """A case from a datalist's entry in Python; checked like one in a file.

    Args:
        entry: as in a datalist; paths may be `Path`, and count from the working directory. In place
            of a path an image, mask or label map may be in memory (see `sources.as_meta_tensor`).
            Without an id the case is called ``case``.
        fewest_images: that it has; one is enough to be harmonized.

    Raises:
        InputError: a key, the id or an option is not acceptable.
    """
    plain = {key: str(x) if isinstance(x, PathLike) else x for key, x in entry.items()}
    plain.setdefault("id", "case")
    return _case(plain, Path(), f"case {plain['id']!r}", fewest_images=fewest_images)


def default_reference(keys: Sequence[str]) -> str:
    """The first of ct, cbct, mr*, pet, spect present.

    >>> default_reference(["pet", "mr_t2", "mr_t1"])
    'mr_t2'
    """
    words = list(KEY_WORDS)
    return min(keys, key=lambda key: words.index(key.partition("_")[0]))


def _json(path: Path, place: str) -> object:
    """The file's content; a key given twice in one object is refused."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise refusal(place, "a JSON file", "no such file", "check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise refusal(place, "a JSON file", one_line(error), "check the path") from error

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        repeated = sorted({key for key in keys if keys.count(key) > 1})
        if repeated:
            name = dict(pairs).get("id")
            at = f"{place}, case {name!r}" if isinstance(name, str) else place
            raise refusal(at, "each key once", f"{', '.join(repeated)} repeated", "remove one")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once)
    except (json.JSONDecodeError, RecursionError) as error:
        came = one_line(error) if text.strip() else "an empty file"
        raise refusal(place, "valid JSON", came, "correct the file") from error


def _section(content: object, section: str, place: str) -> list[Any]:
    """The list of cases."""
    example = f'write {{"{section}": [{{"id": "case01", "ct": "ct.nii.gz", "mr": "mr.nii.gz"}}]}}'
    if not isinstance(content, dict):
        raise refusal(place, f'an object with "{section}"', type(content).__name__, example)
    if section not in content:
        came = f"the keys {', '.join(content)}" if content else "nothing in it"
        raise refusal(place, f'a list "{section}"', came, example)
    entries = content[section]
    if not isinstance(entries, list) or not entries:
        came = "an empty list" if entries == [] else type(entries).__name__
        raise refusal(place, f'a list of cases in "{section}"', came, example)
    return entries


def _entry_name(entry: object, number: int, section: str, place: str) -> str:
    """How messages call an entry of the datalist."""
    name = entry.get("id") if isinstance(entry, dict) else None
    named = isinstance(name, str) and name
    return f"{place}, " + (f"case {name!r}" if named else f"{section} entry {number + 1}")


def _case(
    entry: object,
    folder: Path,
    place: str,
    default: TransformKind = _DEFAULT_TRANSFORM,
    fewest_images: int = FEWEST_IMAGES,
) -> CaseFiles:
    """Check one entry and resolve its paths."""
    if not isinstance(entry, dict):
        raise refusal(place, "an object", type(entry).__name__, 'write {"id": ..., "ct": ...}')
    case_id = _checked_id(entry.get("id"), place)
    images, extras = _split_keys(entry, place)
    _check_images(images, extras, place, fewest_images)
    reference = _checked_reference(entry.get("reference"), list(images), place)
    for name in _OF_MOVING:
        if reference in extras[name]:
            came = f"{reference}_{name}, but {reference} is the reference"
            raise refusal(place, f"a {name} of a moving image", came, "remove it")
    order = [reference, *[key for key in images if key != reference]]
    series = {}
    for key in order:
        own = {name: given[key] for name, given in extras.items() if key in given}
        if key != reference:
            own.setdefault("transform", default)
        series[key] = _series(key, images[key], own, folder, place)
    _check_same_kind([files.image for files in series.values()], place)
    target = _checked_target(entry.get("target"), place)
    patient = _checked_patient(entry.get("patient"), place)
    return CaseFiles(case_id, reference, series, target, patient)


def _split_keys(
    entry: Mapping[str, Any], place: str
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Image keys, and per extra (label, mask, ...) what belongs to which of them."""
    images: dict[str, Any] = {}
    extras: dict[str, dict[str, Any]] = {name: {} for name in _EXTRAS}
    for key, value in entry.items():
        if key in _OF_CASE:
            continue
        base, name = _of_image(key)
        if not _IMAGE_KEY.fullmatch(base):
            other = other_kind(base)
            if other is not None:
                what, advice = other
                raise refusal(place, "images of CT, MR, PET or SPECT", f"{key!r} ({what})", advice)
            keys = f"{', '.join((*_OF_CASE, *KEY_WORDS))}, mr_t1 and the like, or " + (
                ", ".join(f"ct_{extra}" for extra in _EXTRAS)
            )
            raise refusal(place, f"keys of {keys}", f"{key!r}", "correct or remove the key")
        (extras[name] if name else images)[base] = value
    return images, extras


def _of_image(key: str) -> tuple[str, str]:
    """The image key, and which extra of it; empty where it is the image itself.

    >>> _of_image("mr_t1_initial_transform"), _of_image("mr_t1")
    (('mr_t1', 'initial_transform'), ('mr_t1', ''))
    """
    name = next((one for one in _EXTRAS if key.endswith(f"_{one}")), "")
    return (key.removesuffix(f"_{name}"), name) if name else (key, "")


def _check_images(
    images: Mapping[str, Any],
    extras: Mapping[str, Mapping[str, Any]],
    place: str,
    fewest_images: int,
) -> None:
    """Enough images, their names distinct on any file system; no extra without its image."""
    if len(images) < fewest_images:
        came = f"{len(images)} ({', '.join(images) or 'none'})"
        keys = ", ".join(KEY_WORDS)
        expected, advice = {
            1: ("an image", f"name one of the keys {keys}"),
            2: ("two or more images", f"name two of the keys {keys}"),
        }[fewest_images]
        raise refusal(place, expected, came, advice)
    folded = [key.casefold() for key in images]
    twice = [key for key in images if folded.count(key.casefold()) > 1]
    if twice:
        raise refusal(place, "each key once", f"{' and '.join(twice)}", "rename one")
    for name, given in extras.items():
        lost = [key for key in given if key not in images]
        if lost:
            came = f"{lost[0]}_{name} without {lost[0]}"
            raise refusal(place, f"a {name} of an image of the case", came, "correct the key")


def _checked_id(name: object, place: str) -> str:
    """An id that can name a folder."""
    advice = "use letters, digits, - and _"
    if not isinstance(name, str) or not name:
        came = "none" if name is None else repr(name)
        raise refusal(place, "an id (text)", came, advice)
    if name.casefold() in _OF_COHORT:
        raise refusal(place, "an id that is no file of the output folder", repr(name), "rename it")
    folder_like = not _BAD_IN_ID.search(name) and name == name.strip() and len(name) <= 128
    if not folder_like or name.startswith((".", "-", "~")) or name.endswith("."):
        raise refusal(place, "an id that can name a folder", repr(name), advice)
    return name


def _checked_reference(reference: object, keys: Sequence[str], place: str) -> str:
    """The key of the fixed image."""
    if reference is None:
        return default_reference(keys)
    if reference not in keys:
        came = repr(reference)
        raise refusal(place, f"a reference of {', '.join(keys)}", came, "name an image of the case")
    return str(reference)


def _transform(kind: object, key: str, place: str) -> TransformKind:
    """How far the registration of a moving image may go."""
    if kind is None:
        return _DEFAULT_TRANSFORM
    if kind not in TRANSFORMS:
        expected = f"{key}_transform of {', '.join(TRANSFORMS)}"
        raise refusal(place, expected, repr(kind), "name one of these")
    return kind


def _checked_target(target: object, place: str) -> str | int | None:
    """The class of the case."""
    if target is None or (isinstance(target, str | int) and not isinstance(target, bool)):
        return target
    raise refusal(place, "a target that is a word or a whole number", repr(target), "correct it")


def _checked_patient(patient: object, place: str) -> str:
    """Whose images they are; empty where nothing is said."""
    if patient is None:
        return ""
    if isinstance(patient, str | int) and not isinstance(patient, bool) and str(patient).strip():
        return str(patient).strip()
    raise refusal(place, "a patient that is a word or a whole number", repr(patient), "correct it")


def _series(
    key: str, image: object, extras: Mapping[str, object], folder: Path, place: str
) -> SeriesFiles:
    """The files of one image, resolved."""

    def source(name: str) -> Source | InMemory | None:
        return _resolved(extras[name], f"{key}_{name}", folder, place) if name in extras else None

    def file(name: str) -> Source | None:
        given = source(name)
        if isinstance(given, InMemory):
            raise refusal(place, f"a path for {key}_{name}", str(given), "give the file")
        return given

    return SeriesFiles(
        image=_resolved(image, key, folder, place),
        transform=_transform(extras.get("transform"), key, place),
        mask=source("mask"),
        label=source("label"),
        landmarks=file("landmarks"),
        displacement=file("displacement"),
        initial_transform=file("initial_transform"),
    )


def _resolved(value: object, name: str, folder: Path, place: str) -> Source | InMemory:
    """A path against the datalist's folder, or an image in memory as it is."""
    if is_in_memory(value):
        return InMemory(value)
    if not isinstance(value, str) or not value.strip():
        raise refusal(place, f"a path for {name}", repr(value), "write it as text")
    source = Source.parse(value, folder)
    try:
        full = folder / Path(source.path).expanduser()
    except RuntimeError as error:  # "~name" of nobody
        raise refusal(place, f"a path for {name}", repr(value), "write it out") from error
    return replace(source, path=str(full))


def _check_ids(cases: Sequence[CaseFiles], place: str) -> None:
    """Refuse ids that would share a folder."""
    seen: dict[str, str] = {}
    for case in cases:
        if case.id.casefold() in seen:
            came = f"{seen[case.id.casefold()]!r} and {case.id!r}"
            raise refusal(place, "a different id for each case", came, "rename one")
        seen[case.id.casefold()] = case.id


def _check_same_kind(images: Sequence[Source | InMemory], place: str) -> None:
    """Refuse pictures beside volumes."""
    paths = [image.path for image in images if isinstance(image, Source)]
    pictures = [path for path in paths if path.lower().endswith(PICTURE_SUFFIXES)]
    others = [path for path in paths if path not in pictures]
    if pictures and others:
        raise refusal(
            place,
            "all images PNG (2D) or none",
            f"{pictures[0]} beside {others[0]}",
            "keep 2D pictures and volumes in different datalists",
        )


__all__ = [
    "CaseFiles",
    "InputError",
    "SeriesFiles",
    "case_from_entry",
    "case_from_paths",
    "default_reference",
    "read_datalist",
]
