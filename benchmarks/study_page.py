"""``docs/study.md`` from the files that a study left; no number is typed by hand."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fusion_pipeline.evaluation.diagnosis import (
    Prediction,
    diagnose,
    difference,
)
from fusion_pipeline.evaluation.diagnosis_report import diagnosis_tables
from fusion_pipeline.evaluation.rows import read_csv
from fusion_pipeline.evaluation.scores import KINDS, START, Score
from fusion_pipeline.evaluation.statistics import interval_of_mean
from fusion_pipeline.evaluation.tables import (
    as_json,
    comparison_rows,
    pipes,
    short,
    summary_rows,
)
from fusion_pipeline.pipeline.diagnosis import pairs
from fusion_pipeline.pipeline.study import TRADITIONAL

_REGISTRATION = (
    "tre_mm",
    "nmi",
    "mind",
    "folded_fraction",
    "sd_log_jacobian",
    "inverse_consistency_mm",
    "doubtful",
)
_IMAGES = ("protocol_residual", "edges_kept", "information_kept", "contrast_kept", "agreement")
_FUSED = ("q_min", "ssim_min", "vif_min", "nabf")
_SHOWN = (*_REGISTRATION, *_IMAGES, *_FUSED)
# one score for each stage
_MAIN = ("tre_mm", "protocol_residual", "q_min")
_CODE = "code.txt"
_MESSAGE = 120  # letters of a failure at most
_COLUMNS = 6  # of a table at most
_UNREGISTERED, _TRUE, _GREY = "unregistered stack", "true alignment", "ours: fused"
_ONE_IMAGE = "one_image.json"  # of benchmarks/study_fused.py
_WHY_ONE = (
    "*Why one fused image does not tell the class.* At each point it shows the source that stands "
    "out, in grey and in colour. A hot focus on PET therefore looks the same with and without a "
    "dark focus under it on MR, and the class is whether there is one. A reader or a network who "
    "has to compare the images needs the registered and harmonized channels, or the features."
)


@dataclass(frozen=True)
class Part:
    """One data set of the study.

    Attributes:
        title: of its section.
        key: in the names of its figures.
        folder: what ``fusion-pipeline evaluate`` left.
        truth: what is known of it, and what no method can beat.
        unseen: patients that no network was trained on, where others trained some; else empty.
    """

    title: str
    key: str
    folder: Path
    truth: str
    unseen: Sequence[str] = ()

    @property
    def code(self) -> str:
        """Which code ran it, as `note_code` left it."""
        path = self.folder / _CODE
        return path.read_text(encoding="utf-8").strip() if path.is_file() else "not noted"


def study_page(rules: str, parts: Sequence[Part]) -> str:
    """The page."""
    head = [
        "# The study",
        "Made by `make study` from its output files; what the words mean: "
        "[evaluate.md](evaluate.md).",
        "## In short",
        *(text for part in parts for text in in_short(part)),
        rules.strip(),
    ]
    return "\n\n".join([*head, *(text for part in parts for text in _section(part))]) + "\n"


def in_short(part: Part) -> list[str]:
    """What a part answers: tables of the question's comparisons and of the main scores."""
    summary = json.loads((part.folder / "summary.json").read_text(encoding="utf-8"))
    told = part.folder / "diagnosis" / "diagnosis.json"
    texts = [f"### {part.title}: the answer"]
    if told.is_file():
        texts += _answers(json.loads(told.read_text(encoding="utf-8")))
    texts.append(_score_table(summary, _MAIN))
    return [*texts, *_costs(part.folder / "scores.csv", summary["methods"])]


def _answers(diagnosis: dict[str, Any]) -> list[str]:
    """The four comparisons of the question, for each input of ours."""
    auroc = {one["input"]: one["scores"]["auroc"] for one in diagnosis["diagnosis"]}
    count = diagnosis["diagnosis"][0]["patients"]
    gains = {
        (one["input"], one["against"]): {**one["auroc"], "verdict": one["verdict"]}
        for one in diagnosis["auroc_difference"]
    }
    head = ["input", "AUROC", "least gain over the images as they came", "over the traditional"]
    rows = _gain_rows(auroc, {name: _value(one) for name, one in auroc.items()}, gains)
    texts = [
        f"**Diagnosis.** {_claim(rows)}",
        f"AUROC of the diagnosis, {count} patients (95 % interval). *As they came*: each image "
        "alone and the unregistered stack; the comparison with the lowest interval is shown.",
        pipes(head, rows),
    ]
    chance = [name for name, one in auroc.items() if one["low"] is None or one["low"] <= 0.5]
    if chance:
        texts.append(
            f"Not shown to be better than chance (0.5): {', '.join(chance)}. An input that tells "
            "nothing may lie below 0.5 ([why](evaluate.md#diagnosis)); a gain over it is then too "
            "large by as much."
        )
    dice = diagnosis["segmentation_dice"]
    if dice:
        overlaps = {}
        for name, one in diagnosis["dice_difference"].items():
            first, _, second = name.partition(" less ")
            overlaps[first, second] = {**one, "value": one["mean"]}
        most = max(one["patients"] for one in dice.values())
        means = {name: f"{_number(one['mean'])} ({_range(one)})" for name, one in dice.items()}
        rows = _gain_rows(dice, means, overlaps)
        texts += [
            f"**Segmentation.** {_claim(rows)}",
            f"Dice of the lesion, {most} patients that have one.",
            pipes(["input", "Dice", *head[2:]], rows),
        ]
    return texts


def _gain_rows(
    inputs: Mapping[str, Any],
    values: Mapping[str, str],
    gains: Mapping[tuple[str, str], dict[str, Any]],
) -> list[list[str]]:
    """A row for each input of ours, and one for the true alignment."""
    rows = []
    for name in inputs:
        own = {against: gain for (one, against), gain in gains.items() if one == name}
        given = [
            gain
            for against, gain in own.items()
            if (against.endswith(" alone") or against == _UNREGISTERED) and gain["low"] is not None
        ]
        chain = [gain for against, gain in own.items() if against.startswith("traditional")]
        if own:
            least = min(given, key=lambda gain: gain["low"], default=None)
            rows.append([name, values[name], _gain(least), _gain(chain[0] if chain else None)])
        elif name == _TRUE:
            rows.append([name, values[name], "", ""])
    return rows


def _claim(rows: Sequence[Sequence[str]]) -> str:
    """For which inputs of ours the question is answered with yes, by the verdicts of a table."""
    own = [row for row in rows if row[2]]
    good = ("better", "not worse")
    holds = [row[0] for row in own if row[2].startswith("better") and row[3].startswith(good)]
    others = [row[0] for row in own if row[0] not in holds]
    return (
        "Better than the images as they came and not worse than the traditional chain: "
        f"{', '.join(holds) or 'none'}. Not shown for: {', '.join(others) or 'none'}."
    )


def _gain(one: dict[str, Any] | None) -> str:
    return "–" if one is None else f"{one['verdict']}: {_signed(one['value'])} ({_range(one)})"


def _costs(path: Path, methods: Sequence[str]) -> list[str]:
    """How long the first method takes against the traditional chain, as a ratio over patients."""
    times: dict[str, dict[str, float]] = {}
    for one in read_csv(path, Score):
        if one.name == "cpu_s":
            times.setdefault(one.method, {})[one.case] = one.value
    ours, theirs = (times.get(name, {}) for name in (methods[0], TRADITIONAL))
    common = [case for case in ours if case in theirs]
    if not common:
        return []
    logs = np.log([ours[case] / theirs[case] for case in common])
    low, high = (_number(float(np.exp(end))) for end in interval_of_mean(logs))
    return [
        f"CPU time of ours is {short(float(np.exp(logs.mean())))} times that of the traditional "
        f"chain ({low} to {high}, geometric mean of {len(logs)} cases, on a machine that did other "
        "work as well)."
    ]


def _section(part: Part) -> list[str]:
    """One data set: how many, findings in words, tables, figures."""
    summary = json.loads((part.folder / "summary.json").read_text(encoding="utf-8"))
    weights = ", ".join(f"`{one[:12]}`" for one in summary.get("weights", []))
    counts = (
        f"{summary['cases']} cases of {summary['patients']} patients; failed runs: "
        f"{summary['failed']}. fusion_pipeline {summary['version']}, commit {part.code}, weights "
        f"{weights or 'not noted'}."
    )
    diagnosis: dict[str, Any] = {"auroc_difference": [], "dice_difference": {}}
    told = part.folder / "diagnosis" / "diagnosis.json"
    if told.is_file():
        diagnosis = json.loads(told.read_text(encoding="utf-8"))
        counts += f" Cases left out of the diagnosis: {len(diagnosis['missing'])}."
    failures = summary.get("failures", {})
    counts += "".join(
        f" Failed: {case}: {shorten(message, _MESSAGE)}." for case, message in failures.items()
    )
    parts = [f"## {part.title}", counts, f"*Truth.* {part.truth}"]
    if _grey_does_not_help(diagnosis):
        parts.append(_WHY_ONE + _of_one_image(part.folder / "diagnosis" / _ONE_IMAGE))
    if told.is_file():
        parts += [
            "### Diagnosis and segmentation",
            told.with_suffix(".md").read_text(encoding="utf-8").strip(),
            f"![AUROC of each input](figures/study_{part.key}_auroc.png)",
            f"![ROC curves](figures/study_{part.key}_roc.png) "
            f"![calibration](figures/study_{part.key}_calibration.png)",
        ]
    parts += [
        "### Registration, harmonization and fusion",
        "`start` has moved nothing. Verdicts are by Wilcoxon's test with Holm's correction over "
        "the rows of a stage.",
        _score_table(summary),
    ]
    return parts + (_of_unseen(part) if part.unseen else [])


def _of_unseen(part: Part) -> list[str]:
    """The same tables of the patients that no network was trained on."""
    scores = [
        one for one in read_csv(part.folder / "scores.csv", Score) if one.patient in part.unseen
    ]
    methods = list(dict.fromkeys(one.method for one in scores if one.method != START))
    comparisons = comparison_rows(scores, methods[0])
    facts = json.loads(as_json(summary_rows(scores), comparisons, {"methods": methods}))
    count = len({one.patient for one in scores})
    parts = [
        f"### The {count} patients that no network was trained on",
        f"{count} of {len(part.unseen)} have slices that the rules take.",
    ]
    told = part.folder / "diagnosis" / "predictions.csv"
    if told.is_file():
        by_input: dict[str, list[Prediction]] = {}
        for one in read_csv(told, Prediction):
            if one.patient in part.unseen:
                by_input.setdefault(one.input, []).append(one)
        differences = [difference(by_input[a], by_input[b]) for a, b in pairs(list(by_input))]
        diagnoses = [diagnose(some) for some in by_input.values()]
        tables = diagnosis_tables(diagnoses, differences, {}, {})
        parts += [table.markdown for table in tables]
    return [*parts, _score_table(facts)]


def _grey_does_not_help(diagnosis: dict[str, Any]) -> bool:
    """Whether the grey fused image is not shown to tell more than the images as they came."""
    return any(
        (one["input"], one["against"]) == (_GREY, _UNREGISTERED) and one["verdict"] != "better"
        for one in diagnosis["auroc_difference"]
    )


def _of_one_image(path: Path) -> str:
    """What the average and the maximum of ours' channels tell, where that was measured."""
    if not path.is_file():
        return ""
    found = json.loads(path.read_text(encoding="utf-8"))
    values = [f"their {name} {_value(one)}" for name, one in found.items()]
    count = next(iter(found.values()))["patients"]
    return (
        " The loss is the fusion rule's, not the registration's: of the same two registered and "
        f"harmonized images, the AUROC of {' and of '.join(values)}, n = {count} "
        "(`benchmarks/study_fused.py`)."
    )


def note_code(folder: Path) -> None:
    """Leave the commit of this checkout beside the results, marked where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=8", "--exclude=*"]
    here = Path(__file__).parent
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    folder.mkdir(parents=True, exist_ok=True)
    text = done.stdout.strip() or "unknown (no git checkout)"
    (folder / _CODE).write_text(text + "\n", encoding="utf-8")


def draw_auroc(told: Path, path: Path) -> None:
    """AUROC of each input with its interval.

    Args:
        told: the part's ``diagnosis.json``.
        path: of the picture.
    """
    rows = json.loads(told.read_text(encoding="utf-8"))["diagnosis"][::-1]
    figure = Figure(figsize=(6.5, 0.8 + 0.27 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for at, row in enumerate(rows):
        one = row["scores"]["auroc"]
        colour = "#1f6fb2" if row["input"].startswith("ours") else "#555555"
        axes.plot([one["low"], one["high"]], [at, at], color=colour, linewidth=1.5)
        axes.plot(one["value"], at, "o", color=colour, markersize=5)
    axes.set_yticks(range(len(rows)), [row["input"] for row in rows], fontsize=8)
    axes.axvline(0.5, color="grey", linestyle=":", linewidth=0.8)
    axes.set_xlim(0, 1)
    axes.set_xlabel("AUROC, 95 % interval over patients", fontsize=8)
    figure.savefig(path, format="png", dpi=120, metadata={"Software": None})


def _score_table(summary: dict[str, Any], names: Sequence[str] = _SHOWN) -> str:
    """Means of some scores, a column for each method, with what the comparison says.

    Args:
        summary: of a part.
        names: which scores.
    """
    verdicts = {
        (row["group"], row["image"], row["name"], row["other"]): row["verdict"]
        for row in summary["comparison"]
        if not row["label"]
    }
    cells: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for row in summary["summary"]:
        if not row["label"] and row["name"] in names:
            cell = (row["group"], row["image"], row["name"])
            cells.setdefault(cell, {})[row["method"]] = row
    most = max((row["patients"] for cell in cells.values() for row in cell.values()), default=0)
    methods = list(summary["methods"])
    if len(methods) < _COLUMNS - 1:
        methods.insert(0, START)
    rows = []
    for (group, image, name), of_methods in cells.items():
        of = f" of {image}" if image else ""
        unit = f", {KINDS[name].unit}" if KINDS[name].unit else ""
        texts = [
            _score(of_methods.get(method), verdicts.get((group, image, name, method), ""), most)
            for method in methods
        ]
        rows.append([f"{group}: {KINDS[name].title}{of}{unit}", *texts])
    caption = (
        f"Mean over {most} patients (95 % interval); n where fewer have it. Behind the value of "
        f"another method stands what {summary['methods'][0]} is against it."
    )
    return f"{caption}\n\n{pipes(['score', *methods], rows)}"


def _score(row: dict[str, Any] | None, verdict: str, most: int) -> str:
    """A mean with its interval, its n where it is not the usual one, and a verdict."""
    if row is None:
        return ""
    count = "" if row["patients"] == most else f", n = {row['patients']}"
    return f"{_number(row['mean'])} ({_range(row)}{count}){'; ' if verdict else ''}{verdict}"


def _number(value: float | None) -> str:
    return "–" if value is None else short(value)


def _value(one: dict[str, float | None]) -> str:
    return f"{_number(one['value'])} ({_range(one)})"


def _signed(value: float | None) -> str:
    return "–" if value is None else ("+" if value > 0 else "") + short(value)


def _range(one: dict[str, Any]) -> str:
    return f"{_number(one['low'])} to {_number(one['high'])}"
