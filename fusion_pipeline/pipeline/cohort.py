"""Many cases in a row: go on past a bad one, tell the progress, end with a table and a CSV."""

import csv
import io
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fusion_pipeline.data import (
    CaseFiles,
    InputError,
    check_output_folder,
    monai_is_the_program,
    one_line_refusals,
    read_datalist,
    spatial_dims_of,
    written_whole,
)
from fusion_pipeline.evaluation import Scores, mean_scores
from fusion_pipeline.pipeline.bundle import switch
from fusion_pipeline.pipeline.demo import SyntheticCases
from fusion_pipeline.pipeline.folder import REPORT
from fusion_pipeline.pipeline.pipeline import FusionPipeline

logger = logging.getLogger(__name__)
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
    """

    id: str
    status: Literal["ok", "skipped", "failed"]
    message: str = ""
    error: Exception | None = None
    numbers: Mapping[str, Cell] = field(default_factory=dict)

    @property
    def bad_input(self) -> bool:
        """It failed because the input cannot be used."""
        return isinstance(self.error, InputError)


@one_line_refusals()
def case_dataset(
    datalist: Path | str | None,
    *,
    dataset_dir: Path | str = ".",
    output_dir: Path | str = "out",
    spatial_dims: int = 3,
) -> Sequence[CaseFiles]:
    """The cases of a datalist, or the synthetic patient where there is none.

    Args:
        datalist: JSON file; a relative path counts from ``dataset_dir``.
        dataset_dir: folder of the datalist.
        output_dir: where the synthetic patient is written.
        spatial_dims: of the synthetic patient, 2 or 3.

    Raises:
        InputError: the datalist is missing or malformed.
    """
    if datalist is None:
        return SyntheticCases(output_dir, spatial_dims=spatial_dims)
    return read_datalist(Path(dataset_dir) / datalist)


def spatial_dims_of_cases(cases: Sequence[CaseFiles], unread: int = 3) -> int:
    """2 or 3, by the headers of the references; a file that cannot be read counts for nothing yet.

    Args:
        cases: their files.
        unread: what is said where none can be read.

    Raises:
        InputError: some cases are 2D and others 3D.
    """
    dims: dict[int, str] = {}
    for case in cases:
        with suppress(InputError):
            dims.setdefault(spatial_dims_of(case.images[case.reference]), case.id)
    if len(dims) == 2:
        raise InputError(
            f"datalist: expected cases that are all 2D or all 3D, got {dims[2]!r} in 2D and "
            f"{dims[3]!r} in 3D; split the datalist"
        )
    return next(iter(dims), unread)


class Cohort:
    """Run cases one after the other into one output folder.

    Progress goes to the log (``INFO``), each failure as one line (``ERROR``).

    Args:
        pipeline: what runs a case.
        cases: their files.
        output: each case gets ``<output>/<id>/``.
        resume: skip a case whose report was made from the same input, settings and weights.
    """

    @one_line_refusals()
    def __init__(
        self,
        pipeline: FusionPipeline,
        cases: Sequence[CaseFiles],
        output: Path | str,
        *,
        resume: bool = False,
    ) -> None:
        self.pipeline = pipeline
        self.cases = cases
        self.output = Path(output)
        self.resume = switch("resume", resume)
        self.outcomes: list[Outcome] = []

    def run(self) -> list[Outcome]:
        """Run all cases; with more than one, write ``summary.csv`` and log a table.

        Raises:
            InputError: the output folder cannot be written.
        """
        with one_line_refusals():
            check_output_folder(self.output)
        self.outcomes = []
        for number, case in enumerate(self.cases, start=1):
            outcome = self._outcome(case)
            self.outcomes.append(outcome)
            _announce(outcome, number, len(self.cases))
            _forget_frames(outcome.error)
        if len(self.cases) > 1:
            with written_whole(self.output / "summary.csv") as aside:
                aside.write_text(_as_csv(self.outcomes), encoding="utf-8")
            logger.info("\n%s", as_table(self.outcomes))
        return self.outcomes

    def evaluate(self) -> dict[str, Scores]:
        """Run all cases and write the means of what their truths say to ``evaluation.json``.

        Beside each mean stands how many cases have that number (``n``); ``cases`` counts those that
        have a truth.

        Returns:
            Per moving key, the mean of each number over the cases that have it.
        """
        done = [outcome for outcome in self.run() if outcome.status != "failed"]
        reports = [_report(self.output / outcome.id) for outcome in done]
        means = mean_scores([report.get("evaluation", {}) for report in reports])
        with written_whole(self.output / "evaluation.json") as aside:
            told = [report["evaluation"] for report in reports if report.get("evaluation")]
            counts = {
                key: {name: sum(name in one.get(key, {}) for one in told) for name in scores}
                for key, scores in means.items()
            }
            content = {"cases": len(told), "mean": means, "n": counts}
            text = json.dumps(content, indent=2)
            aside.write_text(text + "\n", encoding="utf-8")
        return means

    @property
    def exit_code(self) -> int:
        """Of a process that ran this: 0 all went well, 2 one case with bad input, else 1."""
        failed = [outcome for outcome in self.outcomes if outcome.status == "failed"]
        if len(self.outcomes) == 1 and failed:
            return 2 if failed[0].bad_input else 1
        return 1 if failed else 0

    def leave(self) -> None:
        """End ``python -m monai.bundle`` with `exit_code` if a case failed; the log has said why.

        Any other program goes on, and may ask for `exit_code`.
        """
        if self.exit_code and monai_is_the_program():
            raise SystemExit(self.exit_code)

    def _outcome(self, case: CaseFiles) -> Outcome:
        """Run or skip one case; whatever it raises is kept."""
        start = time.perf_counter()
        folder = self.output / case.id
        try:
            if self.resume and self._done(case, folder):
                return Outcome(case.id, "skipped", numbers=_numbers(folder))
            self.pipeline.run(case, self.output)
        except Exception as error:  # a case must not stop the others
            message = " ".join(str(error).split())
            if not isinstance(error, InputError):
                message = f"{case.id}: unexpected {type(error).__name__}: {message}"
            return Outcome(case.id, "failed", message=message, error=error)
        seconds = round(time.perf_counter() - start, 2)
        return Outcome(case.id, "ok", numbers={"seconds": seconds, **_numbers(folder)})

    def _done(self, case: CaseFiles, folder: Path) -> bool:
        """An earlier run's report speaks of the same input."""
        try:
            return bool(_report(folder).get("input") == self.pipeline.fingerprint(case))
        except (OSError, ValueError):  # no report, or a file is gone: the run will tell
            return False


def _announce(outcome: Outcome, number: int, total: int) -> None:
    """One line of progress, or of failure."""
    if outcome.status == "failed":
        wanted = logger.isEnabledFor(logging.DEBUG)
        logger.error("%s", outcome.message, exc_info=outcome.error if wanted else None)
        return
    seconds = outcome.numbers.get("seconds")
    took = "" if seconds is None or outcome.status == "skipped" else f" in {seconds:.1f} s"
    logger.info("[%d/%d] %s: %s%s", number, total, outcome.id, outcome.status, took)


def _forget_frames(error: BaseException | None) -> None:
    """Drop the tracebacks of a chain of errors: their frames hold the case's volumes."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def _report(folder: Path) -> dict[str, Any]:
    """``report.json`` of a case."""
    report: dict[str, Any] = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    return report


def _numbers(folder: Path) -> dict[str, Cell]:
    """The cells of a case, from its report."""
    report = _report(folder)
    cells: dict[str, Cell] = {"modalities": " ".join(report["modalities"])}
    for key, found in report["registration"].items():
        for name in ("ok", "transform", "error_mm", "folded_fraction"):
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


def _as_csv(outcomes: Sequence[Outcome]) -> str:
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
        doubt = "" if cells[f"{key}_ok"] else " (doubtful)"
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
