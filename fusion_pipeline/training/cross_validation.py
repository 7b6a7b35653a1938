"""Cross-validation: the networks trained on all parts but one, which they are then judged on."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fusion_pipeline.data import CaseFiles, InputError, written_whole
from fusion_pipeline.data.sources import InMemory
from fusion_pipeline.pipeline import run_training
from fusion_pipeline.training.folds import fold

logger = logging.getLogger("fusion_pipeline.run")

FOLDS = "folds"  # folder of the trainings, one folder for each part in it
_COMPANIONS = ("mask", "label", "landmarks", "displacement", "initial_transform")


@dataclass(frozen=True)
class FoldTraining:
    """How the networks of each part are trained.

    Attributes:
        bundle: to start from.
        phase: see `run_training`.
        steps: of the optimizer; few by default, since each part trains anew.
        device: ``cpu`` or ``cuda``; None: the bundle's.
        overrides: other values of the bundle's ``train.json``, by id.
    """

    bundle: Path
    phase: str = "registration"
    steps: int = 200
    device: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)


def train_fold(
    cases: Sequence[CaseFiles], folds: int, number: int, training: FoldTraining, output: Path
) -> tuple[Path, list[CaseFiles]]:
    """Train on all parts but one; a training that was done before with the same cases is taken.

    The part that is left out is in no file that the training reads: neither its samples, nor its
    validation, nor the choice of the best step. The bundle's painted samples validate.

    Args:
        cases: with files on disk.
        folds: number of parts; all cases of a patient lie in one.
        number: of the part to leave out, from 0.
        training: how.
        output: folder of the study; this part's files go to ``output/folds/<number>/``.

    Returns:
        The bundle folder with the trained weights, and the cases that were left out.

    Raises:
        InputError: fewer patients than parts, or what the training refuses.
    """
    inside, outside = fold(cases, folds, number)
    folder = output / FOLDS / str(number)
    folder.mkdir(parents=True, exist_ok=True)
    content = {"training": [entry_of(case) for case in inside], "validation": []}
    text = json.dumps(content, indent=1) + "\n"
    mark = hashlib.sha256((text + repr(_plain(training))).encode()).hexdigest()
    note, bundle = folder / "trained.txt", folder / "bundle"
    if note.is_file() and note.read_text() == mark and bundle.is_dir():
        logger.info("part %d of %d: trained before", number + 1, folds)
        return bundle, outside
    logger.info("part %d of %d: training on %d cases", number + 1, folds, len(inside))
    datalist = folder / "cases.json"
    with written_whole(datalist) as aside:
        aside.write_text(text, encoding="utf-8")
    run_training(
        training.bundle,
        training.phase,
        {
            "datalist": str(datalist.resolve()),
            "output_dir": str(folder.resolve()),
            "device": training.device,
            "train#trainer#max_steps": training.steps,
            **training.overrides,
        },
    )
    with written_whole(note) as aside:
        aside.write_text(mark)
    return bundle, outside


def entry_of(case: CaseFiles) -> dict[str, Any]:
    """A case as a datalist lists it, its paths absolute.

    Raises:
        InputError: an image is in memory only.
    """
    entry: dict[str, Any] = {"id": case.id, "reference": case.reference}
    if case.target is not None:
        entry["target"] = case.target
    if case.patient:
        entry["patient"] = case.patient
    for key, files in case.series.items():
        entry[key] = _absolute(files.image, case.id)
        if key != case.reference:
            entry[f"{key}_transform"] = files.transform
        for name in _COMPANIONS:
            source = getattr(files, name)
            if source is not None:
                entry[f"{key}_{name}"] = _absolute(source, case.id)
    return entry


def _absolute(source: object, case_id: str) -> str:
    """A path that means the same from any folder."""
    if isinstance(source, InMemory):
        raise InputError(f"case {case_id!r}: expected files, got an image in memory; save it first")
    text = str(source)
    path, mark, chosen = text.partition("::")
    return str(Path(path).resolve()) + mark + chosen


def _plain(training: FoldTraining) -> list[tuple[str, str]]:
    """What decides the weights, as text."""
    return sorted((name, str(value)) for name, value in asdict(training).items())


__all__ = ["FOLDS", "FoldTraining", "entry_of", "train_fold"]
