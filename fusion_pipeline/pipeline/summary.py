"""How the cases of a run went: rows of ``summary.csv``, and the table at its end."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fusion_pipeline.data import InputError
from fusion_pipeline.evaluation import Scores
from fusion_pipeline.pipeline.folder import REPORT

Cell = str | float | int | None


@dataclass(frozen=True)
class Outcome:
    """How one case went.

    Attributes:
        id: the case.
        status: ``ok``, ``skipped`` (was done before) or ``failed``.
        message: why it failed.
        error: what was raised.
        numbers: cells of its row in the table.
        checks: per moving key why its registration is doubtful; those that are not are left out.
        evaluation: per moving key what the truth says, where the case brings one.
    """

    id: str
    status: Literal["ok", "skipped", "failed"]
    message: str = ""
    error: Exception | None = None
    numbers: Mapping[str, Cell] = field(default_factory=dict)
    checks: Mapping[str, str] = field(default_factory=dict)
    evaluation: Mapping[str, Scores] = field(default_factory=dict)

    @classmethod
    def done(cls, case_id: str, folder: Path, *, seconds: float | None = None) -> "Outcome":
        """The outcome that a case's report tells: just made, or of an earlier run.

        Args:
            case_id: the case.
            folder: where its report lies.
            seconds: that the case took now; None: it was skipped.
        """
        report = read_report(folder)
        took = {} if seconds is None else {"seconds": round(seconds, 2)}
        return cls(
            case_id,
            "skipped" if seconds is None else "ok",
            numbers={**took, **numbers_of(report)},
            checks={
                key: one["reason"] for key, one in report["registration"].items() if not one["ok"]
            },
            evaluation=report.get("evaluation", {}),
        )

    @classmethod
    def lost(cls, case_id: str) -> "Outcome":
        """The outcome of a case whose process was killed, or that none could take any more."""
        message = f"{case_id}: its process ended before it was done; go on with --resume"
        return cls(case_id, "failed", message=message, error=RuntimeError(message))

    @classmethod
    def from_json(cls, text: str) -> "Outcome":
        """What `as_json` wrote, in another process; of an error its kind and message are left."""
        content = json.loads(text)
        kind = InputError if content.pop("bad_input") else RuntimeError
        failed = content["status"] == "failed"
        return cls(**content, error=kind(content["message"]) if failed else None)

    def as_json(self) -> str:
        """All but the traceback of the error."""
        names = ("id", "status", "message", "numbers", "checks", "evaluation", "bad_input")
        return json.dumps({name: getattr(self, name) for name in names})

    @property
    def bad_input(self) -> bool:
        """It failed because the input cannot be used."""
        return isinstance(self.error, InputError)


def exit_code(outcomes: Sequence[Outcome], *, fail_on_check: bool = False) -> int:
    """Of a process that ran these cases.

    Args:
        outcomes: of all cases.
        fail_on_check: a doubtful registration is not done well.

    Returns:
        0: all went well; 2: one case with bad input; 1: another failure; 3: none failed, and a
        registration is doubtful.
    """
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    if len(outcomes) == 1 and failed:
        return 2 if failed[0].bad_input else 1
    if failed:
        return 1
    return 3 if fail_on_check and any(outcome.checks for outcome in outcomes) else 0


def read_report(folder: Path) -> dict[str, Any]:
    """``report.json`` of a case."""
    report: dict[str, Any] = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    return report


def numbers_of(report: Mapping[str, Any]) -> dict[str, Cell]:
    """The cells of a case, from its report."""
    cells: dict[str, Cell] = {"modalities": " ".join(report["modalities"])}
    for key, found in report["registration"].items():
        for name in ("ok", "transform", "error_mm", "over_5_mm", "folded_fraction"):
            cells[f"{key}_{name}"] = found[name]
        for when in ("before", "after"):
            for name, value in found[f"similarity_{when}"].items():
                cells[f"{key}_{name}_{when}"] = value
        for name, value in report.get("evaluation", {}).get(key, {}).items():
            cells[f"{key}_{name}"] = value
    cells["warnings"] = len(report["warnings"])
    cells["wall_s"] = _total(report, "wall_s")
    cells["cpu_s"] = _total(report, "cpu_s")
    cells["peak_memory_mb"] = round(report["peak_memory_mb"], 1)
    return cells


def _total(report: Mapping[str, Any], name: str) -> float:
    """A cost summed over the stages."""
    return round(sum(stage[name] for stage in report["timings"].values()), 2)


def _rows(outcomes: Sequence[Outcome]) -> tuple[list[str], list[dict[str, Cell]]]:
    """Columns in the order in which they first come, and a row per case."""
    rows: list[dict[str, Cell]] = [
        {"id": o.id, "status": o.status, **o.numbers, "message": o.message} for o in outcomes
    ]
    columns = list(dict.fromkeys(name for row in rows for name in row if name != "message"))
    return [*columns, "message"], rows


def as_csv(outcomes: Sequence[Outcome]) -> str:
    """All cells of all cases."""
    columns, rows = _rows(outcomes)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_table(outcomes: Sequence[Outcome]) -> str:
    """A table for people: a line per case and moving image."""
    head = ("case", "status", "image", "moved by", "NMI before", "after", "error mm", "seconds")
    lines = [head, *(line for outcome in outcomes for line in _lines(outcome))]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _lines(outcome: Outcome) -> Iterable[tuple[str, ...]]:
    """The lines of one case."""
    cells = outcome.numbers
    keys = [name.removesuffix("_transform") for name in cells if name.endswith("_transform")]
    for key in keys:
        doubt = "" if cells[f"{key}_ok"] else " CHECK"
        yield (
            outcome.id,
            outcome.status,
            key,
            f"{cells[f'{key}_transform']}{doubt}",
            _short(cells.get(f"{key}_nmi_before")),
            _short(cells.get(f"{key}_nmi_after")),
            _short(cells[f"{key}_error_mm"], 1),
            _short(cells.get("seconds"), 1),
        )
    if not keys:
        yield (outcome.id, outcome.status, *[""] * 6)


def _short(value: Cell, digits: int = 3) -> str:
    """A number for the table; nothing where there is none."""
    return f"{value:.{digits}f}" if isinstance(value, float | int) else ""
