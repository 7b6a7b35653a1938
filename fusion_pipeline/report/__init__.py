"""What a person reads after a run: ``report.json`` for programs, ``report.html`` for the eye."""

from fusion_pipeline.report.cohort import CohortCase, render_cohort
from fusion_pipeline.report.json_report import FileNames
from fusion_pipeline.report.write import write_report

__all__ = ["CohortCase", "FileNames", "render_cohort", "write_report"]
