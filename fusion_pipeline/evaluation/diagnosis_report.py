"""The diagnostic part of a study for people: tables and two figures."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torchmetrics.functional.classification import binary_roc

from fusion_pipeline.evaluation.diagnosis import (
    SCORES,
    Diagnosis,
    Difference,
    Estimate,
    Prediction,
    Values,
)
from fusion_pipeline.evaluation.statistics import Comparison, Summary
from fusion_pipeline.evaluation.tables import Table, p_text, short

_TITLES = {name: "AUROC" if name == "auroc" else name for name in SCORES}
_BINS = 5  # of the calibration curve: some 40 cases in each of 200

Segmentation = Mapping[str, Summary]  # Dice of each input


def diagnosis_json(
    diagnoses: Sequence[Diagnosis],
    differences: Sequence[Difference],
    segmentation: Segmentation,
    compared: Mapping[str, Comparison],
    facts: Mapping[str, Any],
) -> str:
    """Everything, for programs; null where there is no number."""
    content = {
        **facts,
        "diagnosis": [asdict(one) for one in diagnoses],
        "auroc_difference": [{**asdict(one), "verdict": one.verdict} for one in differences],
        "segmentation_dice": {name: asdict(one) for name, one in segmentation.items()},
        "dice_difference": {
            name: {**asdict(one), "verdict": one.verdict(higher_is_better=True)}
            for name, one in compared.items()
        },
    }
    return json.dumps(_without_nan(content), indent=1, allow_nan=False) + "\n"


def diagnosis_tables(
    diagnoses: Sequence[Diagnosis],
    differences: Sequence[Difference],
    segmentation: Segmentation,
    compared: Mapping[str, Comparison],
) -> list[Table]:
    """Tables with a caption each; no table without rows."""
    first = diagnoses[0]
    of = f"{first.cases} cases of {first.patients} patients, {first.positive} cases positive"
    found = [
        Table(
            f"Diagnosis, {of}; value (95 % interval over patients). Calibration: expected error "
            "over ten bins, and Brier score.",
            ["input", *_TITLES.values(), "calibration"],
            [
                [
                    one.input,
                    *(_estimate(one.scores[name]) for name in _TITLES),
                    f"{short(one.calibration_error)}, {short(one.brier)}",
                ]
                for one in diagnoses
            ],
        ),
        Table(
            f"Difference of AUROC, paired, {first.patients} patients; intervals are not corrected "
            f"for the {len(differences)} comparisons. Not worse: the interval lies above −0.05.",
            ["input", "against", "difference (95 % interval)", "verdict"],
            [[one.input, one.against, _estimate(one.auroc), one.verdict] for one in differences],
        ),
        Table(
            "Dice of the lesion where there is one, by a small head on the input; mean (95 % "
            "interval), median, worst 30 %.",
            ["input", "patients", "mean (95 % interval)", "median", "worst 30 %"],
            [[name, *_summary(one)] for name, one in segmentation.items()],
        ),
        Table(
            "Difference of Dice, paired; Wilcoxon's test with Holm's correction over this table, "
            "rank-biserial correlation as effect size.",
            ["compared", "patients", "difference (95 % interval)", "effect", "p (Holm)", "verdict"],
            [[name, *_comparison(one)] for name, one in compared.items()],
        ),
    ]
    return [table for table in found if table.rows]


def draw_roc(predictions: Mapping[str, Sequence[Prediction]], path: Path) -> None:
    """ROC curves of all inputs."""
    curves = {}
    for name, some in predictions.items():
        false, true, _ = binary_roc(*_tensors(some))
        curves[name] = (false.numpy(), true.numpy())
    _draw(curves, "1 − specificity", "sensitivity", path)


def draw_calibration(predictions: Mapping[str, Sequence[Prediction]], path: Path) -> None:
    """Share of positive cases over the predicted probability, in five groups of equal size."""
    curves = {}
    for name, some in predictions.items():
        probability, target = (part.numpy() for part in _tensors(some))
        groups = np.array_split(np.argsort(probability, kind="stable"), min(_BINS, len(some)))
        points = np.array([(probability[g].mean(), target[g].mean()) for g in groups])
        curves[name] = (points[:, 0], points[:, 1])
    _draw(curves, "predicted probability", "share of positive cases", path, marker=".")


def _draw(
    curves: Mapping[str, tuple[Values, Values]], across: str, up: str, path: Path, marker: str = ""
) -> None:
    """A curve for each input: ours solid, others dashed, single images dotted."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, (x, y) in curves.items():
        style = "-" if name.startswith("ours") else ":" if name.endswith(" alone") else "--"
        axes.plot(x, y, style, marker=marker, label=name, linewidth=1.3)
    axes.plot([0, 1], [0, 1], color="lightgrey", linewidth=0.8, zorder=0)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), box_aspect=1, xlabel=across, ylabel=up)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(path, format="png", dpi=120, metadata={"Software": None})


def _tensors(predictions: Sequence[Prediction]) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.tensor([one.probability for one in predictions]),
        torch.tensor([one.target for one in predictions]),
    )


def _estimate(one: Estimate) -> str:
    return f"{short(one.value)} ({short(one.low)} to {short(one.high)})"


def _summary(one: Summary) -> list[str]:
    mean = f"{short(one.mean)} ({short(one.low)} to {short(one.high)})"
    return [str(one.patients), mean, short(one.median), short(one.worst)]


def _comparison(one: Comparison) -> list[str]:
    mean = f"{short(one.mean)} ({short(one.low)} to {short(one.high)})"
    verdict = one.verdict(higher_is_better=True)
    return [str(one.patients), mean, f"{one.effect:.2f}", p_text(one.p_holm), verdict]


def _without_nan(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """Null for NaN, at any depth."""
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


__all__ = [
    "Segmentation",
    "diagnosis_json",
    "diagnosis_tables",
    "draw_calibration",
    "draw_roc",
]
