"""The folder that a run leaves: written aside, and moved to its place when it is whole."""

import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
from torch import Tensor

from fusion_pipeline.data import (
    Image,
    write_displacement,
    write_image,
    write_transform,
    write_weights,
)
from fusion_pipeline.pipeline.clock import Clock, peak_memory_mb
from fusion_pipeline.report import FileNames, write_report
from fusion_pipeline.result import CaseResult

REPORT = "report.json"
_OURS = re.compile(
    r"(.+_(registered|displacement|harmonized)|fused|weights)\.(nii\.gz|png)|report\.(json|html)"
    r"|.+_transform(_inverse)?\.h5"
)


@contextmanager
def deliver(target: Path) -> Iterator[Path]:
    """A hidden folder beside ``target`` to write into; its files move to ``target`` at the end.

    Nothing appears, and nothing of an earlier run is touched, when the body fails. An earlier run's
    files are replaced one by one, the report last: it always speaks of its neighbours.
    """
    with _aside(target) as aside:
        yield aside
        if target.exists():
            _replace(aside, target)
        else:
            aside.rename(target)


@contextmanager
def deliver_whole(target: Path) -> Iterator[Path]:
    """A hidden folder beside ``target`` to write into; at the end it takes the name ``target``.

    A folder that has the name goes with all that is in it, but not before the new one is whole.
    """
    earlier = target.with_name(f".{target.name}.{os.getpid()}.earlier")
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
    aside = root / f".{target.name}.{os.getpid()}.partial"
    _sweep(root, target.name)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if fresh and not any(root.iterdir()):
            root.rmdir()


def _sweep(root: Path, name: str) -> None:
    """Remove what killed processes left beside the same folder."""
    left = re.compile(rf"\.{re.escape(name)}\.(\d+)\.(partial|earlier)")
    for folder in root.iterdir():
        found = left.fullmatch(folder.name)
        if found and not psutil.pid_exists(int(found[1])):
            shutil.rmtree(folder, ignore_errors=True)


def _replace(aside: Path, target: Path) -> None:
    """Move the files over those of an earlier run, and drop what that run alone had."""
    (target / REPORT).unlink(missing_ok=True)
    new = {file.name for file in aside.iterdir()}
    for old in target.iterdir():
        if old.name not in new and _OURS.fullmatch(old.name):
            old.unlink()
    for name in sorted(new - {REPORT}):
        (aside / name).replace(target / name)
    if REPORT in new:
        (aside / REPORT).replace(target / REPORT)


def write_files(result: CaseResult, folder: Path) -> None:
    """All files of a case: images, fields, weights and the report.

    Args:
        result: what the pipeline found, its evaluation included.
        folder: an existing folder.
    """
    clock = Clock(result.timings)
    with clock.stage("write"):
        files = _write_images(result, folder)
    complete = replace(result, timings=clock.timings, peak_memory_mb=peak_memory_mb())
    write_report(complete, folder, files)


def _rounded(ddf_mm: Tensor, fixed: Image) -> Tensor:
    """The same field, in place, without its last digits: they are noise and most of a file.

    What is left is a multiple of a power of two mm, at most 1/1024 of a voxel's shortest side.
    """
    step = 2.0 ** math.floor(math.log2(float(fixed.spacing.min()) / 1024))
    return ddf_mm.div_(step).round_().mul_(step)


def _write_images(result: CaseResult, folder: Path) -> FileNames:
    """Everything but the report; the names that were written, by role and key."""
    grid = result.fusion.fused
    suffix = ".png" if result.case.fixed.is_picture else ".nii.gz"
    registered = {key: f"{key}_registered{suffix}" for key in result.registered_images}
    displacement = {key: f"{key}_displacement.nii.gz" for key in result.registered_images}
    transform = {key: f"{key}_transform.h5" for key in result.registered_images}
    inverse = {key: f"{key}_transform_inverse.h5" for key in result.registered_images}
    harmonized = {key: f"{key}_harmonized{suffix}" for key in result.harmonization.images}
    fused, weights = f"fused{suffix}", "weights.nii.gz"
    for key, image in result.registered_images.items():
        write_image(image, folder / registered[key])
        field = _rounded(result.registrations[key].displacement_mm(grid), grid)
        write_displacement(field, grid.affine, folder / displacement[key])
        world_map = result.registrations[key].map
        write_transform(world_map, folder / transform[key])
        write_transform(world_map.inverse(), folder / inverse[key])
    for key, image in result.harmonization.images.items():
        write_image(image, folder / harmonized[key], unit_range=True)
    write_image(result.fusion.fused, folder / fused, unit_range=True)
    write_weights(result.fusion.weights, grid.affine, folder / weights)
    return {
        "registered": registered,
        "displacement": displacement,
        "transform": transform,
        "transform_inverse": inverse,
        "harmonized": harmonized,
        "fused": fused,
        "weights": weights,
    }
