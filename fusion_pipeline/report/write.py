"""The two report files of a case."""

import json
from pathlib import Path

from fusion_pipeline.report.html import render_html
from fusion_pipeline.report.json_report import case_report
from fusion_pipeline.result import CaseResult


def write_report(result: CaseResult, folder: Path) -> None:
    """Write ``report.json`` and ``report.html`` of a case.

    Call it last: ``files`` in ``report.json`` lists what lies in the folder by then.

    Args:
        result: what the pipeline found.
        folder: output folder of the case; made where absent.
    """
    folder.mkdir(parents=True, exist_ok=True)
    report = case_report(result, folder)
    text = json.dumps(report, indent=2, allow_nan=False, ensure_ascii=False)
    _write_whole(folder / "report.json", text + "\n")
    _write_whole(folder / "report.html", render_html(result, report))


def _write_whole(path: Path, text: str) -> None:
    """Write aside, then rename: a file has its name only when it is whole."""
    aside = path.with_name(f".{path.name}.part")
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
