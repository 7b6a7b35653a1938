"""The diagnostic part of a study: the same small classifier on each input, fold by fold."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from fusion_pipeline.data import CaseFiles, InputError, written_whole
from fusion_pipeline.evaluation.classifier import (
    Recipe,
    check_classes,
    classify_by_folds,
    segment_by_folds,
)
from fusion_pipeline.evaluation.diagnosis import (
    Prediction,
    diagnose,
    difference,
)
from fusion_pipeline.evaluation.diagnosis_report import (
    diagnosis_json,
    diagnosis_tables,
    draw_calibration,
    draw_roc,
)
from fusion_pipeline.evaluation.page import Section
from fusion_pipeline.evaluation.rows import as_csv
from fusion_pipeline.evaluation.statistics import Comparison, compare, holm, summarize
from fusion_pipeline.metrics import dice
from fusion_pipeline.pipeline.diagnosis_inputs import (
    TRUE,
    UNREGISTERED,
    CaseInputs,
    case_inputs,
    stacked,
)
from fusion_pipeline.pipeline.folder import REPORT
from fusion_pipeline.pipeline.pipeline import FusionPipeline
from fusion_pipeline.pipeline.study import CASES, TRADITIONAL
from fusion_pipeline.pipeline.traditional import OURS

logger = logging.getLogger("fusion_pipeline.run")

FOLDER = "diagnosis"
_OURS_AGAINST = ("channels", "fused", "fused colour", "features")
_COMPARED_WITH = {"features": "channels", "fused colour": "fused"}  # the like input of others


@dataclass(frozen=True)
class DiagnosisPlan:
    """What is asked for.

    Attributes:
        folds: number of the fold of each case, by its id; all cases of a patient share it.
        lesion_label: value of the reference's label map that is the lesion.
        methods: whose results are read; ours first.
        recipe: how classifier and head are trained.
    """

    folds: Mapping[str, int]
    methods: Sequence[str] = (OURS, TRADITIONAL)
    lesion_label: int = 1
    recipe: Recipe = field(default_factory=Recipe)


def run_diagnosis(
    cases: Sequence[CaseFiles], pipeline: FusionPipeline, output: Path, plan: DiagnosisPlan
) -> Section:
    """Train and judge the classifiers on what `run_study` left in ``output``.

    Leaves ``output/diagnosis/``: ``predictions.csv`` (a row for each case and input),
    ``diagnosis.json``, ``.md`` and ``.tex``, ``roc.png``, ``calibration.png``, and a file for each
    input whose classifiers are done, so that a stopped run goes on.

    Args:
        cases: each with a ``target``, one of two.
        pipeline: of our method: it reads the cases, and its network makes the features.
        output: the folder of the study.
        plan: folds and recipe.

    Returns:
        The tables and figures for the study's page.

    Raises:
        InputError: targets are missing or not of two classes, or no case has all results.
    """
    targets = _binary_targets(cases)
    methods = [name for name in plan.methods if (output / CASES / name).is_dir()]
    done = [case for case in cases if _has_results(case, output, methods)]
    missing = [case.id for case in cases if case not in done]
    if missing:
        logger.warning("diagnosis: %d cases without results are left out", len(missing))
    if len(done) < 2:
        raise InputError(
            f"diagnosis: expected cases with results of {', '.join(methods)}, got {len(done)}; "
            "run them first"
        )
    folds = [plan.folds[case.id] for case in done]
    target = torch.tensor([targets[case.id] for case in done])
    try:
        check_classes(target, folds)
    except ValueError as error:
        raise InputError(f"diagnosis: {error}") from error
    logger.info("diagnosis: reading %d cases", len(done))
    inputs, masks = stacked([_inputs_of(case, pipeline, output, methods, plan) for case in done])
    folder = output / FOLDER
    predictions = {
        name: _predictions(done, target, folds, found)
        for name, found in _each(
            inputs, "class", (target, folds), classify_by_folds, plan.recipe, folder
        )
    }
    overlaps = _overlaps(done, inputs, masks, folds, plan.recipe, folder)
    note = _note(missing, bool(overlaps), plan.lesion_label)
    section = _write(predictions, overlaps, folder, missing, note)
    logger.info("diagnosis: %s", folder / "diagnosis.md")
    return section


def _note(missing: Sequence[str], segmented: bool, label: int) -> str:
    """What the tables leave out."""
    notes = []
    if missing:
        notes.append(f"{len(missing)} cases without results of all methods are left out.")
    if not segmented:
        notes.append(
            "No lesion is segmented: fewer than two folds have a case whose reference has the "
            f"label {label}."
        )
        logger.info("diagnosis: %s", notes[-1])
    return " ".join(notes)


def _inputs_of(
    case: CaseFiles,
    pipeline: FusionPipeline,
    output: Path,
    methods: Sequence[str],
    plan: DiagnosisPlan,
) -> CaseInputs:
    folders = {method: output / CASES / method / case.id for method in methods}
    return case_inputs(case, pipeline, folders, features_of=OURS, lesion_label=plan.lesion_label)


def _has_results(case: CaseFiles, output: Path, methods: Sequence[str]) -> bool:
    """Whether every method has done it."""
    return all((output / CASES / method / case.id / REPORT).is_file() for method in methods)


def _binary_targets(cases: Sequence[CaseFiles]) -> dict[str, int]:
    """0 or 1 by case; 1 is the class that comes last, by number or by name."""
    without = [case.id for case in cases if case.target is None]
    if without:
        raise InputError(
            f"datalist: expected a target for each case of a diagnosis, got none for {without[0]}"
            f"{f' and {len(without) - 1} others' if len(without) > 1 else ''}; add "
            '"target": 0 or 1'
        )
    classes = sorted({case.target for case in cases if case.target is not None}, key=_in_order)
    if len(classes) != 2:
        listed = ", ".join(repr(one) for one in classes[:5])
        raise InputError(f"datalist: expected targets of two classes, got {listed}; correct them")
    return {case.id: int(case.target == classes[1]) for case in cases}


def _in_order(target: str | int) -> tuple[bool, int, str]:
    """Numbers by size, before words by name."""
    word = isinstance(target, str)
    return word, 0 if isinstance(target, str) else target, str(target) if word else ""


def _each(
    inputs: Mapping[str, Tensor],
    task: str,
    fitted_to: tuple[Tensor, Sequence[int]],
    fit: Callable[[Tensor, Tensor, Sequence[int], Recipe], Tensor],
    recipe: Recipe,
    folder: Path,
) -> list[tuple[str, Tensor]]:
    """Per input what its networks say; read from a file where they were trained before."""
    wanted, folds = fitted_to
    out = []
    for name, images in inputs.items():
        mark = _digest(images, wanted, folds, recipe)
        path = folder / f"{task} {name.replace(':', '')}.pt".replace(" ", "_")
        if path.is_file():
            saved = torch.load(path, weights_only=True)
            if saved["digest"] == mark:
                out.append((name, saved["found"]))
                continue
        logger.info("diagnosis: %s from %s", task, name)
        found = fit(images, wanted, folds, recipe)
        with written_whole(path) as aside:
            torch.save({"digest": mark, "found": found}, aside)
        out.append((name, found))
    return out


def _digest(images: Tensor, wanted: Tensor, folds: Sequence[int], recipe: Recipe) -> str:
    """What decides the networks."""
    digest = hashlib.sha256(repr((list(folds), asdict(recipe), tuple(images.shape))).encode())
    for part in (images, wanted):
        digest.update(part.float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _predictions(
    cases: Sequence[CaseFiles], target: Tensor, folds: Sequence[int], probability: Tensor
) -> list[Prediction]:
    return [
        Prediction(case.id, case.patient or case.id, fold, "", int(t), float(p))
        for case, fold, t, p in zip(cases, folds, target, probability, strict=True)
    ]


def _overlaps(
    cases: Sequence[CaseFiles],
    inputs: Mapping[str, Tensor],
    masks: Tensor,
    folds: Sequence[int],
    recipe: Recipe,
    folder: Path,
) -> dict[str, dict[str, list[float]]]:
    """Per input and patient the Dice of each case that has a lesion; empty where few have one."""
    marked = masks.flatten(1).any(1).tolist()
    if len({fold for fold, has in zip(folds, marked, strict=True) if has}) < 2:
        return {}
    out = {}
    for name, found in _each(inputs, "lesion", (masks, folds), segment_by_folds, recipe, folder):
        per_patient: dict[str, list[float]] = {}
        for case, has, mask, one in zip(cases, marked, masks, found, strict=True):
            if has:
                score = float(dice(mask[0] > 0.5, one[0] > 0.5))
                per_patient.setdefault(case.patient or case.id, []).append(score)
        out[name] = per_patient
    return out


def _write(
    predictions: Mapping[str, Sequence[Prediction]],
    overlaps: Mapping[str, Mapping[str, list[float]]],
    folder: Path,
    missing: Sequence[str],
    note: str,
) -> Section:
    """All files, and what of them stands on the page."""
    named = {name: [replace(one, input=name) for one in some] for name, some in predictions.items()}
    diagnoses = [diagnose(some) for some in named.values()]
    compared_with = pairs(list(named))
    differences = [difference(named[a], named[b]) for a, b in compared_with]
    dices = {name: summarize(some, higher_is_better=True) for name, some in overlaps.items()}
    compared = _compared(overlaps, compared_with)
    facts = {"missing": list(missing)}
    tables = diagnosis_tables(diagnoses, differences, dices, compared)
    texts = {
        "predictions.csv": as_csv([one for some in named.values() for one in some], Prediction),
        "diagnosis.json": diagnosis_json(diagnoses, differences, dices, compared, facts),
        "diagnosis.md": "\n\n".join(table.markdown for table in tables) + "\n",
        "diagnosis.tex": "\n\n".join(table.latex for table in tables) + "\n",
    }
    for name, text in texts.items():
        with written_whole(folder / name) as aside:
            aside.write_text(text, encoding="utf-8")
    for name, draw in (("roc.png", draw_roc), ("calibration.png", draw_calibration)):
        with written_whole(folder / name) as aside:
            draw(named, aside)
    figures = {"ROC curves": folder / "roc.png", "calibration": folder / "calibration.png"}
    return Section.of("Diagnosis", note, tables, figures)


def pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Ours against each image alone, the stack as it is, and other methods' like inputs."""
    found = []
    for kind in _OURS_AGAINST:
        ours = f"{OURS}: {kind}"
        if ours not in names:
            continue
        same = _COMPARED_WITH.get(kind, kind)
        others = [
            name
            for name in names
            if name.endswith(" alone")
            or name in (UNREGISTERED, TRUE)
            or (name.endswith(f": {same}") and not name.startswith(f"{OURS}: "))
        ]
        found += [(ours, other) for other in others]
    return found


def _compared(
    overlaps: Mapping[str, Mapping[str, list[float]]], chosen: Sequence[tuple[str, str]]
) -> dict[str, Comparison]:
    """Dice of the same pairs, corrected over all of them."""
    there = [(a, b) for a, b in chosen if a in overlaps and b in overlaps]
    found = [compare(overlaps[a], overlaps[b]) for a, b in there]
    corrected = holm([one.p for one in found])
    return {
        f"{a} less {b}": replace(one, p_holm=p)
        for (a, b), one, p in zip(there, found, corrected, strict=True)
    }


__all__ = ["FOLDER", "DiagnosisPlan", "pairs", "run_diagnosis"]
