"""A study: the cases of a datalist by one or several methods, and what their scores say."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

import fusion_pipeline
from fusion_pipeline.data import CaseFiles, InputError, read_image, written_whole
from fusion_pipeline.evaluation import page, tables
from fusion_pipeline.evaluation.scores import START, Score, as_csv, scores_of
from fusion_pipeline.pipeline.evaluator import FusionEvaluator
from fusion_pipeline.pipeline.summary import Outcome, read_report
from fusion_pipeline.pipeline.summary import as_csv as as_csv_of_outcomes
from fusion_pipeline.result import STAGES

logger = logging.getLogger("fusion_pipeline.run")

OURS = "ours"
CASES = "cases"  # folder of the results, one folder for each method in it
_THUMBNAIL = 160  # pixels


@dataclass(frozen=True)
class Method:
    """One way to make results.

    Attributes:
        name: in tables, and of its folder.
        overrides: ids of the bundle's config and their values.
    """

    name: str
    overrides: Mapping[str, object]


def methods_against(what: str | None, rule: str = "average") -> list[Method]:
    """The methods of a study, ours first.

    Args:
        what: None: ours alone; ``traditional``: the whole traditional chain as well; ``stages``:
            and ours with one stage replaced at a time.
        rule: of the traditional fusion.

    Raises:
        InputError: something else.
    """
    methods = [Method(OURS, {})]
    if what is None:
        return methods
    if what not in ("traditional", "stages"):
        raise InputError(f"--against: expected traditional or stages, got {what!r}; correct it")
    methods.append(_replacing(STAGES, "traditional", rule))
    if what == "stages":
        methods += [_replacing((stage,), f"traditional-{stage}", rule) for stage in STAGES]
    return methods


def _replacing(stages: Sequence[str], name: str, rule: str) -> Method:
    return Method(
        name,
        {
            "inferer#_target_": "fusion_pipeline.pipeline.TraditionalInferer",
            "inferer#stages": list(stages),
            "inferer#rule": rule,
        },
    )


def run_study(
    cases: Sequence[CaseFiles],
    methods: Sequence[Method],
    evaluators_of: Callable[[Method, Path], Iterable[FusionEvaluator]],
    output: Path,
) -> int:
    """Run all cases by all methods, and write what their scores say.

    Leaves ``scores.csv`` (a row for each score), ``summary.json``, ``summary.md``, ``summary.tex``
    and ``study.html`` in ``output``, and each case's folder in ``output/cases/<method>/<id>``.

    Args:
        cases: of a datalist.
        methods: the first one is compared with the others.
        evaluators_of: method and folder → what runs it; several where each has its own cases and
            weights (cross-validation), which together run every case once.
        output: the folder.

    Returns:
        0; 1 where a case failed by some method.
    """
    scores: list[Score] = []
    failed: dict[str, str] = {}
    patients = {files.id: files.patient or files.id for files in cases}
    for method in methods:
        logger.info("method: %s", method.name)
        folder = output / CASES / method.name
        outcomes: list[Outcome] = []
        for evaluator in evaluators_of(method, folder):
            evaluator.run()
            outcomes += evaluator.state.outcomes
        with written_whole(folder / "summary.csv") as aside:  # of all parts, not of the last one
            aside.write_text(as_csv_of_outcomes(outcomes), encoding="utf-8")
        for outcome in outcomes:
            if outcome.status == "failed":
                failed[f"{outcome.id} ({method.name})"] = outcome.message
                continue
            report = read_report(folder / outcome.id)
            found = scores_of(report, patient=patients[outcome.id], method=method.name)
            # where the headers place the images is the same for all methods
            scores += [one for one in found if one.method != START or method is methods[0]]
        if method is methods[0]:
            ours = outcomes
    _write(scores, methods, failed, _reports(ours, output, methods[0].name), patients, output)
    return 1 if failed else 0


def _write(
    scores: Sequence[Score],
    methods: Sequence[Method],
    failed: Mapping[str, str],
    reports: Mapping[str, tuple[str, str]],
    patients: Mapping[str, str],
    output: Path,
) -> None:
    """All files of the study."""
    first = methods[0].name
    summaries = tables.summary_rows(scores)
    comparisons = tables.comparison_rows(scores, first)
    facts: dict[str, Any] = {
        "cases": len(patients),
        "patients": len(set(patients.values())),
        "methods": [method.name for method in methods],
        "failed": len(failed),
        "version": fusion_pipeline.__version__,
    }
    rows = page.sorted_cases(scores, first, reports, failed)
    texts = {
        "scores.csv": as_csv(scores),
        "summary.json": tables.as_json(summaries, comparisons, facts),
        "summary.md": tables.as_markdown(summaries, comparisons),
        "summary.tex": tables.as_latex(summaries, comparisons),
        "study.html": page.render_page(scores, summaries, comparisons, rows, facts),
    }
    for name, text in texts.items():
        with written_whole(output / name) as aside:
            aside.write_text(text, encoding="utf-8")


def _reports(outcomes: Sequence[Outcome], output: Path, method: str) -> dict[str, tuple[str, str]]:
    """Per case the paths of its report and of its thumbnail, relative to the page."""
    found = {}
    for outcome in outcomes:
        if outcome.status == "failed":
            continue
        folder = Path(CASES) / method / outcome.id
        picture = Path("thumbnails") / f"{outcome.id}.png"
        _thumbnail(output / folder, output / picture)
        found[outcome.id] = (f"{folder.as_posix()}/report.html", picture.as_posix())
    return found


def _thumbnail(folder: Path, target: Path) -> None:
    """The fused image, or its middle axial slice, small; the patient's right on the left."""
    fused = read_report(folder)["files"]["fused"]
    image = read_image(str(folder / fused), "mr")[0].in_canonical_axes()
    array = image.array[0].numpy()
    if array.ndim == 3:
        array = array[..., array.shape[2] // 2]
    top = float(array.max()) or 1.0
    # rows from anterior to posterior, columns from right to left
    grey = np.clip(array / top * 255, 0, 255).astype(np.uint8).T[::-1, ::-1]
    small = Pillow.fromarray(np.ascontiguousarray(grey))
    sides = image.spacing[:2] * np.array(array.shape)
    width, height = (max(1, round(_THUMBNAIL * float(s) / float(sides.max()))) for s in sides)
    with written_whole(target) as aside:
        small.resize((width, height)).save(aside)


__all__ = ["CASES", "OURS", "Method", "methods_against", "run_study"]
