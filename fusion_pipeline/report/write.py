"""The two report files of a case."""

import json
from pathlib import Path

from fusion_pipeline.data import written_whole
from fusion_pipeline.report.html import render_html
from fusion_pipeline.report.json_report import FileNames, case_report
from fusion_pipeline.result import CaseResult

_PAGE = "report.html"


def write_report(result: CaseResult, folder: Path, files: FileNames) -> None:
    """Write ``report.json`` and ``report.html`` of a case.

    Both are made before either is written: the result decides them, not what lies in the folder.

    Args:
        result: a complete result.
        folder: output folder of the case; made where absent.
        files: names of the other written files, by role and key (see `case_report`).
    """
    report = case_report(result, {**files, "report": _PAGE})
    page = render_html(result, report)
    text = json.dumps(report, indent=2, allow_nan=False, ensure_ascii=False)
    for name, content in ((_PAGE, page), ("report.json", text + "\n")):
        with written_whole(folder / name) as aside:
            aside.write_text(content, encoding="utf-8")
