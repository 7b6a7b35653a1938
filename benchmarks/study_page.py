"""``docs/study.md`` from the files that a study left; no number is typed by hand."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion_pipeline.evaluation.diagnosis import (
    Prediction,
    diagnose,
    difference,
    read_predictions,
)
from fusion_pipeline.evaluation.diagnosis_report import diagnosis_tables
from fusion_pipeline.evaluation.scores import START, read_scores
from fusion_pipeline.evaluation.tables import as_json, comparison_rows, short, summary_rows
from fusion_pipeline.pipeline.diagnosis import pairs

_REGISTRATION = (
    "tre_mm",
    "nmi",
    "mind",
    "folded_fraction",
    "sd_log_jacobian",
    "inverse_consistency_mm",
)
_IMAGES = ("protocol_residual", "edges_kept", "information_kept", "contrast_kept", "agreement")
_FUSED = ("q_min", "ssim_min", "vif_min", "nabf")
_SHOWN = (*_REGISTRATION, *_IMAGES, *_FUSED)


@dataclass(frozen=True)
class Part:
    """One data set of the study.

    Attributes:
        title: of its section.
        key: in the names of its figures.
        folder: what ``fusion-pipeline evaluate`` left.
        unseen: patients that no network was trained on, where others trained some; else empty.
    """

    title: str
    key: str
    folder: Path
    unseen: Sequence[str] = ()


def study_page(rules: str, parts: Sequence[Part]) -> str:
    """The page."""
    head = [
        "# The study",
        "Made by `make study` from its output files; what the words mean: "
        "[evaluate.md](evaluate.md).",
        rules.strip(),
    ]
    return "\n\n".join([*head, *(text for part in parts for text in _section(part))]) + "\n"


def _section(part: Part) -> list[str]:
    """One data set: how many, findings in words, tables, figures."""
    summary = json.loads((part.folder / "summary.json").read_text(encoding="utf-8"))
    weights = ", ".join(f"`{one[:12]}`" for one in summary.get("weights", []))
    counts = (
        f"{summary['cases']} cases of {summary['patients']} patients; {summary['failed']} runs "
        f"failed. fusion_pipeline {summary['version']}, weights {weights or 'not noted'}."
    )
    diagnosis: dict[str, Any] = {"auroc_difference": [], "dice_difference": {}}
    told = part.folder / "diagnosis" / "diagnosis.json"
    if told.is_file():
        diagnosis = json.loads(told.read_text(encoding="utf-8"))
        counts += f" {len(diagnosis['missing'])} cases left out of the diagnosis."
    parts = [f"## {part.title}", counts, "### What it says"]
    parts.append("\n".join(f"- {one}" for one in findings(diagnosis, summary)))
    if told.is_file():
        parts += [
            "### Diagnosis and segmentation",
            told.with_suffix(".md").read_text(encoding="utf-8").strip(),
            f"![ROC curves](figures/study_{part.key}_roc.png) "
            f"![calibration](figures/study_{part.key}_calibration.png)",
        ]
    parts += [
        "### Registration, harmonization and fusion",
        f"Mean over {summary['patients']} patients (95 % interval); `start` has moved nothing. "
        "Verdicts are ours against the method, by Wilcoxon's test with Holm's correction.",
        _score_table(summary),
    ]
    return parts + (_of_unseen(part) if part.unseen else [])


def _of_unseen(part: Part) -> list[str]:
    """The same tables of the patients that no network was trained on."""
    scores = [one for one in read_scores(part.folder / "scores.csv") if one.patient in part.unseen]
    methods = list(dict.fromkeys(one.method for one in scores if one.method != START))
    comparisons = comparison_rows(scores, methods[0])
    facts = json.loads(as_json(summary_rows(scores), comparisons, {}))
    count = len({one.patient for one in scores})
    parts = [
        f"### The {count} patients that no network was trained on",
        f"{count} of {len(part.unseen)} have slices that the rules take.",
    ]
    told = part.folder / "diagnosis" / "predictions.csv"
    if told.is_file():
        by_input: dict[str, list[Prediction]] = {}
        for one in read_predictions(told):
            if one.patient in part.unseen:
                by_input.setdefault(one.input, []).append(one)
        differences = [difference(by_input[a], by_input[b]) for a, b in pairs(list(by_input))]
        diagnoses = [diagnose(some) for some in by_input.values()]
        tables = diagnosis_tables(diagnoses, differences, {}, {})
        parts += [table.markdown for table in tables]
    return [*parts, _score_table(facts)]


def findings(diagnosis: dict[str, Any], summary: dict[str, Any]) -> list[str]:
    """The comparisons that the question asks for, good and bad, as sentences."""
    found = []
    for one in diagnosis["auroc_difference"]:
        auroc = one["auroc"]
        found.append(
            f"AUROC from *{one['input']}* against *{one['against']}*: **{one['verdict']}** "
            f"({_signed(auroc['value'])}, {_range(auroc)}, n = {one['patients']})"
        )
    for name, one in diagnosis["dice_difference"].items():
        found.append(
            f"Dice of the lesion, *{name}*: **{one['verdict']}** ({_signed(one['mean'])}, "
            f"{_range(one)}, n = {one['patients']})"
        )
    errors = [r for r in summary["comparison"] if r["name"] == "tre_mm" and not r["label"]]
    found += [
        f"Registration error, ours against *{one['other']}*, {one['group']}: **{one['verdict']}** "
        f"({_signed(one['mean'])} mm, {_range(one)}, n = {one['patients']})"
        for one in errors
    ]
    return found


def _score_table(summary: dict[str, Any]) -> str:
    """Means of the main scores by method, and what the comparison says."""
    verdicts = {
        (row["group"], row["image"], row["name"], row["other"]): row["verdict"]
        for row in summary["comparison"]
        if not row["label"]
    }
    lines = ["| group | score | method | n | mean (95 % interval) | ours is |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for row in summary["summary"]:
        if row["label"] or row["name"] not in _SHOWN:
            continue
        key = (row["group"], row["image"], row["name"], row["method"])
        of = f" of {row['image']}" if row["image"] else ""
        lines.append(
            f"| {row['group']} | {row['name']}{of} | {row['method']} | {row['patients']} "
            f"| {_number(row['mean'])} ({_range(row)}) | {verdicts.get(key, '')} |"
        )
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "–" if value is None else short(value)


def _signed(value: float | None) -> str:
    return "–" if value is None else ("+" if value > 0 else "") + short(value)


def _range(one: dict[str, Any]) -> str:
    return f"{_number(one['low'])} to {_number(one['high'])}"
