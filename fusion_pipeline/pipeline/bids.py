"""The results of a run named and laid out as a BIDS derivative, beside the folders of the cases."""

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fusion_pipeline import __version__
from fusion_pipeline.data import InputError, check_output_folder, written_whole
from fusion_pipeline.modalities import modality_of
from fusion_pipeline.pipeline.folder import REPORT

Report = Mapping[str, Any]
Entry = tuple[str, tuple[str, dict[str, Any]]]  # file below the root; its source, its sidecar
_VERSION = "1.10.0"  # of BIDS, https://bids-specification.readthedocs.io
_FOLDERS = {"ct": "ct", "mr": "anat", "pet": "pet", "spect": "spect"}
# suffixes of MR contrasts that the name of an image key tells; BIDS has none for an unknown one
_CONTRASTS = {"t1": "T1w", "t2": "T2w", "flair": "FLAIR", "pd": "PDw", "t2star": "T2starw"}


def bids_label(text: str) -> str:
    """A name without what BIDS allows in no label.

    >>> bids_label("mr_t1")
    'mrT1'
    """
    first, *others = re.split("[^A-Za-z0-9]+", text)
    return first + "".join(one[:1].upper() + one[1:] for one in others)


def check_bids_labels(ids: Iterable[str]) -> None:
    """Refuse cases whose names would be one label.

    Raises:
        InputError: two are, or one has neither letter nor digit.
    """
    owners: dict[str, str] = {}
    for case_id in ids:
        label = bids_label(case_id).casefold()
        if not label:
            raise InputError(f"case {case_id!r}: expected letters or digits for BIDS; rename it")
        if label in owners:
            raise InputError(
                f"cases {owners[label]!r} and {case_id!r}: expected different names by their "
                "letters and digits, as BIDS has no others; rename one"
            )
        owners[label] = case_id


def write_bids(case_folder: Path | str, root: Path | str) -> Path:
    """Lay the results of one case out below ``root``, as links where the file system allows it.

    Convention:
        - ``space-`` is the reference: every image lies on its grid
        - ``from-mr_to-ct_mode-image`` brings the MR's voxels to the CT: it maps points of the CT to
          points of the MR, LPS mm, as ITK resamples

    Args:
        case_folder: what a run left: ``<output>/<id>``.
        root: of the derivative data set; made if needed.

    Returns:
        ``<root>/sub-<label>``; what an earlier call left there is replaced.

    Raises:
        InputError: the folder has no report.
    """
    folder, root = Path(case_folder), check_output_folder(Path(root))
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        subject = f"sub-{bids_label(report['id'])}"
        names = dict(_named(report, subject))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"result {folder}: expected the folder of a case with {REPORT}, got none that can be "
            "read; name <output>/<id> of a run"
        ) from error
    shutil.rmtree(root / subject, ignore_errors=True)
    for target, (source, about) in names.items():
        path = root / target
        path.parent.mkdir(parents=True, exist_ok=True)
        _link(folder / source, path)
        if about:
            sidecar = path.with_name(path.name.partition(".")[0] + ".json")
            sidecar.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    _link(folder / "report.html", root / f"{subject}.html")
    _describe(root)
    return root / subject


def _named(report: Report, subject: str) -> Iterator[Entry]:
    """Each file below the root: its source, and what its sidecar says."""
    yield from _images(report, subject)
    yield from _maps(report, subject)
    yield from _fused(report, subject)
    yield f"{subject}/{subject}_desc-report.json", (REPORT, {})


def _images(report: Report, subject: str) -> Iterator[Entry]:
    """Registered and harmonized images, and the curves of the latter."""
    about = _on_grid(report)
    space = f"_space-{bids_label(report['reference'])}" if about else ""
    for role in ("registered", "harmonized"):
        for key, name in report["files"].get(role, {}).items():
            folder, acquisition, suffix = _image_words(key)
            stem = f"{subject}/{folder}/{subject}{acquisition}{space}_desc-{role}_{suffix}"
            yield stem + _ending(name), (name, {**about, "Description": f"{key}, {role}"})
    for key, name in report["files"].get("harmonization", {}).items():
        yield f"{subject}/xfm/{subject}_desc-{bids_label(key)}_harmonization.json", (name, {})


def _maps(report: Report, subject: str) -> Iterator[Entry]:
    """Transforms there and back, and the field."""
    fixed = bids_label(report["reference"])
    for key in report["files"].get("transform", ()):
        moving = bids_label(key)
        for role, before, after, described in (
            ("transform", moving, fixed, ""),
            ("transform_inverse", fixed, moving, ""),
            ("displacement", moving, fixed, "_desc-field"),
        ):
            name = report["files"][role][key]
            stem = f"{subject}/xfm/{subject}_from-{before}_to-{after}_mode-image{described}_xfm"
            yield stem + _ending(name), (name, {})


def _fused(report: Report, subject: str) -> Iterator[Entry]:
    """The fused image in grey and colour, and the weights."""
    files, about = report["files"], _on_grid(report)
    if "fused" not in files:
        return
    stem = f"{subject}/fused/{subject}_space-{bids_label(report['reference'])}"
    yield f"{stem}_fused{_ending(files['fused'])}", (files["fused"], about)
    if "fused_colour" in files:
        name = files["fused_colour"]
        yield f"{stem}_desc-colour_fused{_ending(name)}", (name, about)
    name = files["weights"]
    labels = {**about, "LabelMap": report["modalities"]}
    yield f"{stem}_desc-weights_probseg{_ending(name)}", (name, labels)


def _on_grid(report: Report) -> dict[str, Any]:
    """What the sidecar of each image says."""
    if report.get("only") == "harmonize":  # each may lie on its own grid
        return {}
    return {"SpatialReference": f"the image {report['reference']} of the case"}


def _image_words(key: str) -> tuple[str, str, str]:
    """Folder, entity and suffix of an image: ``mr_t1`` is ``anat``, nothing, ``T1w``."""
    modality, rest = modality_of(key), key.partition("_")[2]
    suffix = _CONTRASTS.get(rest.lower(), modality)
    named = suffix != modality or not rest
    word = key.partition("_")[0]
    kind = "" if word == modality else f"_acq-{word}{bids_label('_' + rest)}"  # cbct
    return _FOLDERS[modality], kind or ("" if named else f"_acq-{bids_label(rest)}"), suffix


def _ending(name: str) -> str:
    """``.nii.gz`` of a name."""
    return name[name.index(".") :]


def _link(source: Path, target: Path) -> None:
    """A hard link, or a copy where the file system has none; it takes the place of an old one."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _describe(root: Path) -> None:
    """``dataset_description.json``."""
    about = {
        "Name": "Registered, harmonized and fused images",
        "BIDSVersion": _VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "fusion_pipeline", "Version": __version__}],
    }
    with written_whole(root / "dataset_description.json") as aside:
        aside.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


__all__ = ["bids_label", "check_bids_labels", "write_bids"]
