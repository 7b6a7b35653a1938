"""The report for people: one page that needs nothing but itself."""

from collections.abc import Mapping
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from fusion_pipeline.data import Image
from fusion_pipeline.report.figures import alignment_section, fusion_section, glance_section
from fusion_pipeline.report.page import label, number, numbers_table
from fusion_pipeline.result import CaseResult

# Names and whether more is better: the arrow of the similarity tables.
_MEASURES = {
    "nmi": ("Normalized mutual information", True),
    "mind": ("MIND-SSC distance", False),
}
_SIDE_PIXELS = 480
_MODALITIES_AT_FULL_SIZE = 3


def render_html(result: CaseResult, report: Mapping[str, Any]) -> str:
    """Draw the page of a case.

    Args:
        result: what the pipeline found; the pictures are drawn from it.
        report: the content of ``report.json``; the numbers are printed from it.

    Returns:
        HTML with its style and pictures inside, no scripts, nothing to load.
    """
    many = max(1.0, len(result.modalities) / _MODALITIES_AT_FULL_SIZE)
    pixels = round(_SIDE_PIXELS / many**0.75)
    template = files("fusion_pipeline.report").joinpath("template.html").read_text("utf-8")
    return Template(template).substitute(
        title=escape(f"{result.case.id} – fusion report"),
        header=_header(result),
        verdicts="".join(_verdict(result, key, report) for key in result.registrations),
        warnings=_warnings(result.warnings),
        glance=glance_section(result, pixels=pixels),
        alignments="".join(_alignment(result, key, pixels) for key in result.registrations),
        fusion=fusion_section(result, pixels=pixels),
        tables=_tables(report),
        footer=_footer(report),
    )


def _header(result: CaseResult) -> str:
    """The case and its images, one line each."""
    rows = "".join(
        f"<tr><th>{escape(label(key))}</th>"
        f"<td>{_role(result, key)}</td><td>{_grid(image)}</td></tr>"
        for key, image in result.case.images.items()
    )
    return (
        f"<div><p>Registration, harmonization and fusion</p><h1>{escape(result.case.id)}</h1></div>"
        f'<table class="images">{rows}</table>'
    )


def _role(result: CaseResult, key: str) -> str:
    """What an image is in this case."""
    return "reference" if key == result.case.reference else "moving"


def _grid(image: Image) -> str:
    """Shape, spacing and units."""
    shape = " × ".join(str(n) for n in image.shape)
    if image.spatial_dims == 2:
        return f"{shape} pixels"
    spacing = " × ".join(f"{s:.3g}" for s in image.spacing)
    return f"{shape} voxels of {spacing} mm, {escape(image.units)}"


def _verdict(result: CaseResult, key: str, report: Mapping[str, Any]) -> str:
    """A card: may the reader rely on this alignment?"""
    found = report["registration"][key]
    word, style = ("OK", "ok") if found["ok"] else ("CHECK", "check")
    unit = "mm" if result.case.fixed.spatial_dims == 3 else "px"
    moved = found["displacement_mm"]
    trusted = found["transform"] == "none"
    motion = [
        ("Moved by", f"{number(moved['mean'])} {unit} on average, {number(moved['max'])} at most"),
        ("Turned by", f"{number(found['rotation_deg'])}°"),
        ("Folded voxels", f"{100 * found['folded_fraction']:.2g} %"),
    ]
    facts = [
        ("Alignment", "file headers kept" if trusted else found["transform"]),
        ("Estimated remaining error", _with_unit(found["error_mm"], unit)),
        *([] if trusted else motion),
        *_changes(found),
    ]
    items = "".join(f"<dt>{escape(name)}</dt><dd>{text}</dd>" for name, text in facts)
    reason = f"<p>{escape(found['reason'])}</p>" if found["reason"] else ""
    pair = f"{escape(label(key))} → {label(result.case.reference)}"
    return (
        f'<article class="card {style}"><h3><a href="#{escape(key)}">{pair}</a>'
        f"<strong>{word}</strong></h3>{reason}<dl>{items}</dl></article>"
    )


def _with_unit(value: float | None, unit: str) -> str:
    """A length, or that it is not known."""
    return "not estimated" if value is None else f"{number(value)} {unit}"


def _changes(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Similarity before → after, with a word for whether that is better."""
    out = []
    for name, before in found["similarity_before"].items():
        after = found["similarity_after"].get(name)
        words, more_is_better = _MEASURES.get(name, (name, None))
        text = f"{number(before)} → {number(after)}"
        if more_is_better is not None and None not in (before, after) and before != after:
            better = (after > before) == more_is_better
            style, word = ("up", "better") if better else ("down", "worse")
            text += f' <span class="{style}">{word}</span>'
        out.append((words, text))
    return out


def _warnings(sentences: tuple[str, ...]) -> str:
    """What was repaired, guessed or doubtful."""
    if not sentences:
        return ""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<section class="warnings"><h2>Warnings</h2><ul>{items}</ul></section>'


def _alignment(result: CaseResult, key: str, pixels: int) -> str:
    """The section of one moving image."""
    title = f"{label(key)} → {label(result.case.reference)}"
    ok = result.registrations[key].ok
    badge = f'<strong class="{"ok" if ok else "check"}">{"OK" if ok else "CHECK"}</strong>'
    return (
        f'<section id="{escape(key)}"><h2>Alignment: {escape(title)} {badge}</h2>'
        f"{alignment_section(result, key, pixels=pixels)}</section>"
    )


def _tables(report: Mapping[str, Any]) -> str:
    """All numbers of the report, for those who want them."""
    tables = [
        numbers_table(f"Harmonization: {label(key)}", {_spaced(n): v for n, v in scores.items()})
        for key, scores in report["harmonization"].items()
    ]
    tables.append(numbers_table("Fusion", {_spaced(n): v for n, v in report["fusion"].items()}))
    for key, found in report["registration"].items():
        axes = "R A S mm" if len(found["translation_mm"]) == 3 else "pixels"
        rows = {
            f"translation of the centre, {axes}": [_joined(found["translation_mm"])],
            "rotation, degrees": found["rotation_deg"],
            "scale": found["scale"],
            **{_spaced(n): v for n, v in found["details"].items()},
        }
        tables.append(numbers_table(f"Registration: {label(key)}", rows))
    stages = {
        name: [times.get("wall_s"), times.get("cpu_s")] for name, times in report["timings"].items()
    }
    tables.append(numbers_table("Seconds", stages, ("wall", "CPU")))
    return "".join(tables)


def _joined(values: list[float]) -> str:
    """A vector on one line."""
    return ", ".join(number(v) for v in values)


def _spaced(name: str) -> str:
    """A key as words."""
    return name.replace("_", " ")


def _footer(report: Mapping[str, Any]) -> str:
    """Versions and memory."""
    versions = " · ".join(f"{name} {value}" for name, value in report["versions"].items())
    return escape(f"Peak memory {report['peak_memory_mb'] or 0:.0f} MB · {versions}")
