"""Scores of cases as rows of one table, and what each score means."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

START = "start"  # the method that does nothing: where the headers place the images


@dataclass(frozen=True)
class Kind:
    """What a score is.

    Attributes:
        title: for a table.
        unit: mm, s, MB; empty for a share or a number without one.
        higher_is_better: True: an overlap; False: an error.
        stage: registration, harmonization, fusion or cost.
    """

    title: str
    unit: str
    higher_is_better: bool
    stage: str


KINDS: Mapping[str, Kind] = {
    "tre_mm": Kind("target registration error", "mm", False, "registration"),
    "landmarks_mm": Kind("landmark error", "mm", False, "registration"),
    "dice": Kind("Dice", "", True, "registration"),
    "hd95_mm": Kind("HD95", "mm", False, "registration"),
    "nmi": Kind("normalized mutual information", "", True, "registration"),
    "mind": Kind("MIND distance", "", False, "registration"),
    "folded_fraction": Kind("folded share", "", False, "registration"),
    "sd_log_jacobian": Kind("SD of the log Jacobian", "", False, "registration"),
    "inverse_consistency_mm": Kind("inverse consistency", "mm", False, "registration"),
    "doubtful": Kind("share called doubtful by the method", "", False, "registration"),
    "protocol_residual": Kind("difference between two protocols", "SD", False, "harmonization"),
    "edges_kept": Kind("edges kept", "", True, "harmonization"),
    "information_kept": Kind("information kept", "", True, "harmonization"),
    "contrast_kept": Kind("contrast of edges kept", "", True, "harmonization"),
    "agreement": Kind("agreement with the reference", "", True, "harmonization"),
    "q": Kind("Q^AB/F", "", True, "fusion"),
    "ssim": Kind("SSIM", "", True, "fusion"),
    "vif": Kind("VIF", "", True, "fusion"),
    "mi": Kind("MI", "nat", True, "fusion"),
    "q_min": Kind("Q of the weaker source", "", True, "fusion"),
    "ssim_min": Kind("SSIM of the weaker source", "", True, "fusion"),
    "vif_min": Kind("VIF of the weaker source", "", True, "fusion"),
    "mi_min": Kind("MI of the weaker source", "nat", True, "fusion"),
    "psnr": Kind("PSNR", "dB", True, "fusion"),
    "psnr_min": Kind("PSNR of the weaker source", "dB", True, "fusion"),
    "nabf": Kind("N^AB/F", "", False, "fusion"),
    "entropy": Kind("entropy", "bit", True, "fusion"),
    "scd": Kind("SCD", "", True, "fusion"),
    "wall_s": Kind("wall time", "s", False, "cost"),
    "cpu_s": Kind("CPU time", "s", False, "cost"),
    "peak_memory_mb": Kind("peak memory", "MB", False, "cost"),
}
_PER_SOURCE = ("q", "ssim", "vif", "mi", "psnr", "nabf", "scd")
_LABELLED = re.compile(r"(?P<name>\w+)_label_(?P<label>\d+)")


@dataclass(frozen=True)
class Score:
    """One number of one case by one method.

    Attributes:
        case: id of the case.
        patient: whose case it is.
        group: what the case's pair is, such as ``ct-mr``; ``ct-mr-pet`` for scores of the whole.
        method: who made it; ``start`` has moved nothing.
        image: key of the moving image, of a source, or empty for the whole case.
        label: of a label map, or empty.
        name: see `KINDS`.
        value: the number.
    """

    case: str
    patient: str
    group: str
    method: str
    image: str
    label: str
    name: str
    value: float


def scores_of(report: Mapping[str, Any], *, patient: str, method: str) -> list[Score]:
    """The scores that a case's ``report.json`` holds.

    Scores ``…_before`` are those of the method ``start``.

    Args:
        report: its content.
        patient: whose case it is.
        method: who made the result.
    """
    reference = str(report["reference"])
    whole = "-".join(str(key) for key in report["modalities"])
    found = []
    for image, full, value in _numbers(report):
        if not isinstance(value, int | float):  # null: there is none
            continue
        name, label, before = _parsed(full)
        group = f"{reference}-{image}" if image and image != reference else whole
        who = START if before else method
        found.append(Score(report["id"], patient, group, who, image, label, name, float(value)))
    return found


def _numbers(report: Mapping[str, Any]) -> Iterator[tuple[str, str, object]]:
    """Image key (or empty), name and value of each number that is a score."""
    for key, one in report["registration"].items():
        after = {**one["similarity_after"], **report.get("evaluation", {}).get(key, {})}
        yield from ((key, name, one[name]) for name in ("folded_fraction", "error_mm"))
        yield key, "doubtful", float(not one["ok"])
        yield from ((key, f"{n}_before", v) for n, v in one["similarity_before"].items())
        yield from ((key, name, value) for name, value in after.items())
    for key, values in report["harmonization"].items():
        # before harmonization there is no common scale: no method is called start here
        there = {n: v for n, v in values.items() if not n.endswith("_before")}
        yield from ((key, name, value) for name, value in there.items())
    for name, value in report["fusion"].items():
        stem, _, source = name.partition("_")
        own = stem in _PER_SOURCE and source in report["modalities"]
        yield (source, stem, value) if own else ("", name, value)
    for name in ("wall_s", "cpu_s"):
        yield "", name, sum(stage[name] for stage in report["timings"].values())
    yield "", "peak_memory_mb", report["peak_memory_mb"]


def _parsed(full: str) -> tuple[str, str, bool]:
    """``dice_label_3_before`` as a name, a label and whether it is from before."""
    stem, _, when = full.rpartition("_")
    timed = when in ("before", "after")
    labelled = _LABELLED.fullmatch(stem if timed else full)
    if labelled:
        return labelled["name"], labelled["label"], when == "before"
    return (stem, "", when == "before") if timed else (full, "", False)


def by_patient(scores: Iterable[Score]) -> dict[str, list[float]]:
    """The values of each patient."""
    found: dict[str, list[float]] = {}
    for score in scores:
        found.setdefault(score.patient, []).append(score.value)
    return found


__all__ = ["KINDS", "START", "Kind", "Score", "by_patient", "scores_of"]
