"""The folder that a run leaves: written aside, and moved to its place when it is whole."""

import json
import math
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from filelock import SoftFileLock, Timeout
from torch import Tensor

from fusion_pipeline.data import (
    Image,
    InputError,
    check_output_folder,
    write_colour,
    write_displacement,
    write_image,
    write_transform,
    write_weights,
)
from fusion_pipeline.dicom import DicomExport, write_dicom
from fusion_pipeline.pipeline.clock import Clock, announce, announce_end, peak_memory_mb
from fusion_pipeline.report import FileNames, write_report
from fusion_pipeline.result import CaseResult

REPORT = "report.json"
DICOM = "dicom"  # the folder of the DICOM objects
_BEING_REPLACED = ".report.json.replaced"  # names of ours while a folder is neither old nor new
_OURS = re.compile(
    r"(.+_(registered|displacement|harmonized)|fused|fused_colour|weights)\.(nii\.gz|png)"
    r"|report\.(json|html)|.+_harmonization\.json|.+_transform(_inverse)?\.h5|dicom"
)
_LOCK_S = 60.0  # seconds; files are moved within one file system, which takes far less
_HOST = re.sub(r"[^A-Za-z0-9-]", "-", platform.node())


@contextmanager
def deliver(target: Path) -> Iterator[Path]:
    """A hidden folder beside ``target`` to write into; its files move to ``target`` at the end.

    Nothing appears, and nothing of an earlier run is touched, when the body fails. An earlier run's
    files are replaced one by one, the report last: it always speaks of its neighbours. Of two
    processes one waits for the other, and the later one's files stay, all of them.

    Raises:
        InputError: a file of the folder that no earlier run wrote has the name of a new one, or
            another process does not finish.
    """
    with _aside(target) as aside:
        yield aside
        with _locked(target):
            if target.exists():
                _replace(aside, target)
            else:
                aside.rename(target)


def check_case_folder(target: Path, keys: Iterable[str] = (), only: str | None = None) -> Path:
    """Refuse an output folder that cannot be written, or that holds a user's files by our names.

    Args:
        target: folder of a case.
        keys: image keys of the case.
        only: the one stage that runs; None: all.

    Raises:
        InputError: a file stands in its place, it cannot be written, it holds such files, or
            results of other stages, which those of one stage would replace.
    """
    check_output_folder(target)
    earlier = _report_in(target)
    if only is not None and earlier is not None and earlier.get("only") != only:
        ran = "a whole run" if earlier.get("only") is None else f"{earlier['only']} alone"
        raise InputError(
            f"output folder {target}: expected none or an earlier run of {only} alone, got the "
            f"results of {ran}, which would be lost; choose another output folder or id"
        )
    if target.is_dir():
        roles = ("registered", "displacement", "harmonized", "transform", "transform_inverse")
        stems = {
            "fused",
            "weights",
            "report",
            DICOM,
            *(f"{k}_{role}" for k in keys for role in roles),
        }
        names = {f.name for f in target.iterdir() if _OURS.fullmatch(f.name)}
        _refuse_foreign(target, {name for name in names if name.split(".")[0] in stems})
    return target


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """One process at a time moves files to ``target``, on any machine that sees the folder."""
    path = target.with_name(f".{target.name}.lock")
    lock = SoftFileLock(path)
    try:
        lock.acquire(timeout=_LOCK_S)
    except Timeout as error:
        raise InputError(
            f"output folder {target}: expected to write it alone, got another process that has not "
            f"finished in {_LOCK_S:g} s; wait for it, or delete {path} if none is running"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def deliver_whole(target: Path) -> Iterator[Path]:
    """A hidden folder beside ``target`` to write into; at the end it takes the name ``target``.

    A folder that has the name goes with all that is in it, but not before the new one is whole.
    """
    earlier = target.with_name(f".{target.name}.{_own_mark()}.earlier")
    with _aside(target) as aside:
        yield aside
        if target.exists():
            target.rename(earlier)
        aside.rename(target)
        shutil.rmtree(earlier, ignore_errors=True)


@contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """An empty hidden folder beside ``target``; it is gone at the end, unless it was renamed."""
    root = target.parent
    fresh = not root.exists()
    root.mkdir(parents=True, exist_ok=True)
    aside = root / f".{target.name}.{_own_mark()}.partial"
    _sweep(root, target.name)
    aside.mkdir()
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if fresh and not any(root.iterdir()):
            root.rmdir()


def _own_mark() -> str:
    """Whose a hidden folder is: the machine, the process, and one of its threads."""
    return f"{_HOST}.{os.getpid()}.{secrets.token_hex(4)}"


def _sweep(root: Path, name: str) -> None:
    """Remove what killed processes of this machine left beside the same folder."""
    left = re.compile(
        rf"\.{re.escape(name)}\.{re.escape(_HOST)}\.(\d+)\.[0-9a-f]+\.(partial|earlier)"
    )
    for folder in root.iterdir():
        found = left.fullmatch(folder.name)
        if found and not psutil.pid_exists(int(found[1])):
            shutil.rmtree(folder, ignore_errors=True)


def _replace(aside: Path, target: Path) -> None:
    """Move the files over those of an earlier run, and drop what that run alone had."""
    new = {file.name for file in aside.iterdir()}
    _refuse_foreign(target, new & {file.name for file in target.iterdir()})
    earlier = _written_by_us(target)
    note = target / _BEING_REPLACED
    note.write_text(json.dumps({"files": sorted(earlier | new)}), encoding="utf-8")
    (target / REPORT).unlink(missing_ok=True)
    for name in sorted(earlier):
        if (target / name).is_dir():  # a folder does not give way to another one
            shutil.rmtree(target / name)
        elif name not in new:
            (target / name).unlink(missing_ok=True)
    for name in sorted(new - {REPORT}):
        (aside / name).replace(target / name)
    if REPORT in new:
        (aside / REPORT).replace(target / REPORT)
    note.unlink()


def _refuse_foreign(target: Path, names: set[str]) -> None:
    """Refuse to replace what no earlier run wrote."""
    foreign = sorted(names - _written_by_us(target))
    if foreign:
        raise InputError(
            f"output folder {target}: expected files of an earlier run, got {', '.join(foreign)}, "
            "which no report.json there lists; move them, or choose another folder"
        )


def _written_by_us(target: Path) -> set[str]:
    """Names of the files of earlier runs, by their report or a broken replacement's note."""
    names = {REPORT} if (target / REPORT).is_file() else set()
    for path in (target / REPORT, target / _BEING_REPLACED):
        with suppress(OSError, ValueError):
            names |= _names_in(json.loads(path.read_text(encoding="utf-8")))
    return {name for name in names if _OURS.fullmatch(name)}


def _report_in(target: Path) -> dict[str, Any] | None:
    """The report of the earlier run; None without one that can be read."""
    with suppress(OSError, ValueError):
        report = json.loads((target / REPORT).read_text(encoding="utf-8"))
        return report if isinstance(report, dict) else None
    return None


def _names_in(report: object) -> set[str]:
    """The names below ``files``, at any depth."""
    names: set[str] = set()
    left = [report.get("files")] if isinstance(report, dict) else []
    while left:
        one = left.pop()
        if isinstance(one, str):
            names.add(one)
        elif isinstance(one, dict | list):
            left += one.values() if isinstance(one, dict) else one
    return names


def write_files(result: CaseResult, folder: Path, dicom: DicomExport | None = None) -> None:
    """All files of a case: images, fields, weights and the report.

    Args:
        result: what the pipeline found, its evaluation included.
        folder: an existing folder.
        dicom: write DICOM objects as well, into the folder ``dicom``.
    """
    clock = Clock(result.timings, case=result.case.id)
    with clock.stage("write"):
        files = _write_images(result, folder)
        if dicom is not None:
            write_dicom(result, folder / DICOM, dicom)
            files = {**files, DICOM: DICOM}
    complete = replace(result, timings=clock.timings, peak_memory_mb=peak_memory_mb())
    announce("report", result.case.id)
    write_report(complete, folder, files)
    announce_end()


def _rounded(ddf_mm: Tensor, fixed: Image) -> Tensor:
    """The same field, in place, without its last digits: they are noise and most of a file.

    What is left is a multiple of a power of two mm, at most 1/1024 of a voxel's shortest side.
    """
    step = 2.0 ** math.floor(math.log2(float(fixed.spacing.min()) / 1024))
    return ddf_mm.div_(step).round_().mul_(step)


def _write_images(result: CaseResult, folder: Path) -> FileNames:
    """Everything but the report; the names that were written, by role and key."""
    suffix = ".png" if result.case.fixed.is_picture else ".nii.gz"
    return {
        **_write_registrations(result, folder, suffix),
        **_write_harmonized(result, folder, suffix),
        **_write_fused(result, folder, suffix),
    }


def _write_registrations(result: CaseResult, folder: Path, suffix: str) -> dict[str, Any]:
    """Registered images, fields and transforms; nothing where that stage did not run."""
    if not result.registrations:
        return {}
    grid = result.grid
    roles = {
        "registered": suffix,
        "displacement": ".nii.gz",
        "transform": ".h5",
        "transform_inverse": ".h5",
    }
    names = {
        role: {key: f"{key}_{role}{ending}" for key in result.registrations}
        for role, ending in roles.items()
    }
    for key, registration in result.registrations.items():
        write_image(result.registered_images[key], folder / names["registered"][key])
        field = _rounded(registration.displacement_mm(grid), grid)
        write_displacement(field, grid.affine, folder / names["displacement"][key])
        write_transform(registration.map, folder / names["transform"][key])
        write_transform(registration.map.inverse(), folder / names["transform_inverse"][key])
    return names


def _write_harmonized(result: CaseResult, folder: Path, suffix: str) -> dict[str, Any]:
    """Harmonized images and their curves."""
    harmonization = result.harmonization
    if not harmonization.images:
        return {}
    harmonized = {key: f"{key}_harmonized{suffix}" for key in harmonization.images}
    mappings = {key: f"{key}_harmonization.json" for key in harmonization.mappings}
    for key, image in harmonization.images.items():
        write_image(image, folder / harmonized[key], unit_range=True)
    for key, mapping in harmonization.mappings.items():
        (folder / mappings[key]).write_text(json.dumps(mapping.as_dict()) + "\n")
    return {"harmonized": harmonized, "harmonization": mappings}


def _write_fused(result: CaseResult, folder: Path, suffix: str) -> dict[str, Any]:
    """The fused image in grey and, with an uptake, in colour; the weights."""
    fusion = result.fusion
    if fusion is None:
        return {}
    names = {"fused": f"fused{suffix}"}
    write_image(fusion.fused, folder / names["fused"], unit_range=True)
    if fusion.colour is not None:
        names["fused_colour"] = f"fused_colour{suffix}"
        write_colour(fusion.colour, folder / names["fused_colour"])
    names["weights"] = "weights.nii.gz"
    write_weights(fusion.weights, fusion.fused.affine, folder / names["weights"])
    return names
