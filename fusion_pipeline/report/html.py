"""The report for people: one page that needs nothing but itself."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fusion_pipeline.report import facts
from fusion_pipeline.report.curves import curve_figures
from fusion_pipeline.report.figures import alignment_figures, fusion_tables, glance_table
from fusion_pipeline.report.glossary import GLOSSARY, explained
from fusion_pipeline.report.viewer import viewer_of
from fusion_pipeline.result import CaseResult

_SIDE_PIXELS = 480
_MODALITIES_AT_FULL_SIZE = 3
_STAGES = {
    None: "Registration, harmonization and fusion",
    "register": "Registration",
    "harmonize": "Harmonization",
    "fuse": "Fusion",
}
_ASIDES = {
    "harmonize": "Harmonized only: nothing was registered. The images lie where their headers "
    "place them, each on its own voxels.",
    "fuse": "Fused only: the images were taken as aligned, and nothing was registered. Judge from "
    "the fused image whether they are.",
}
_FUSION_TITLES = {"harmonize": "Harmonization", "fuse": "Fusion"}


def render_html(result: CaseResult, report: Mapping[str, Any]) -> str:
    """Draw the page of a case.

    Args:
        result: what the pipeline found; the pictures are drawn from it.
        report: the content of ``report.json``; the numbers are printed from it.

    Returns:
        HTML with its style, pictures, viewer and volumes inside, at most 10 MB; nothing to load.
        The pictures stand for the viewer in print and where there is no script.
    """
    many = max(1.0, len(result.modalities) / _MODALITIES_AT_FULL_SIZE)
    pixels = round(_SIDE_PIXELS / many**0.75)
    unit = facts.length_unit(result.case.fixed)
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            report=report,
            unit=unit,
            images=result.case.images,
            known_truth={
                key: changes
                for key, scores in report.get("evaluation", {}).items()
                # a study measures the fields without a truth as well
                if (changes := facts.known_truth_changes(scores, unit))
            },
            glance=glance_table(result, pixels=pixels),
            alignments={
                key: alignment_figures(result, key, pixels=pixels) for key in result.registrations
            },
            fusion=fusion_tables(result, pixels=pixels),
            stages=_STAGES[result.only],
            aside=_ASIDES.get(result.only or ""),
            fusion_title=_FUSION_TITLES.get(result.only or "", "Harmonization and fusion"),
            curves=curve_figures(result),
            numbers=facts.numbers_tables(report),
            viewer=viewer_of(result),
            glossary=GLOSSARY,
        )
    )


@cache
def environment() -> Environment:
    """The templates of this package: all text is escaped, a name that is not given is an error."""
    environment = Environment(
        loader=PackageLoader("fusion_pipeline.report", package_path=""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        label=facts.label,
        explained=explained,
        number=facts.number,
        words=facts.words,
        grid=facts.grid,
        similarity_changes=facts.similarity_changes,
    )
    return environment
