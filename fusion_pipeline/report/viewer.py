"""The viewer of the page: what its script is given, and the library that draws."""

import base64
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from matplotlib.colors import to_hex

from fusion_pipeline.geometry import inverse_affine
from fusion_pipeline.report import pictures
from fusion_pipeline.report.facts import label, length_unit
from fusion_pipeline.report.looks import shared_point
from fusion_pipeline.report.planes import content_box
from fusion_pipeline.report.volumes import COLOURS, colour_nodes, mark_nodes, viewer_volumes
from fusion_pipeline.result import CaseResult

# Characters of all volumes: with 1.1 MB of library and 3.5 MB of pictures, a page stays below 10 MB
_VOLUMES_LIMIT = 4_500_000


class Viewer(NamedTuple):
    """What the page holds for its viewer.

    Attributes:
        facts: for the script: volumes without their voxels, colours, where to look first.
        volumes: base64 of a gzipped NIfTI file each, in the order of ``facts["volumes"]``.
        library: base64 of the gzipped library.
        script: our own.
    """

    facts: dict[str, Any]
    volumes: list[str]
    library: str
    script: str


def viewer_of(result: CaseResult, limit: int = _VOLUMES_LIMIT) -> Viewer:
    """The viewer of a case.

    Args:
        result: the case.
        limit: characters that the volumes may take.
    """
    volumes = viewer_volumes(result, limit)
    fixed = result.case.fixed
    low, high = content_box(fixed)
    facts = {
        "volumes": [{k: v for k, v in asdict(one).items() if k != "data"} for one in volumes],
        "colours": {**{name: colour_nodes(name) for name in COLOURS}, "marks": mark_nodes()},
        "marks": _marks(result),
        "point": shared_point(result).tolist(),
        "extent": (high - low).tolist(),
        "unit": length_unit(fixed),
        "voxel_from_world": inverse_affine(fixed.affine).tolist(),
        "reference": label(fixed.key),
        "presets": _presets(result),
    }
    folder = files("fusion_pipeline.report")
    script = folder.joinpath("viewer.js").read_text(encoding="utf-8")
    return Viewer(facts, [one.data for one in volumes], _library(), script)


def _marks(result: CaseResult) -> list[dict[str, str]]:
    """Name and colour of each image that has landmarks."""
    colours = pictures.MODALITY_COLOURS
    return [
        {"title": label(key), "colour": to_hex(colours[number % len(colours)])}
        for number, (key, series) in enumerate(result.case.series.items())
        if series.landmarks is not None
    ]


def _presets(result: CaseResult) -> dict[str, list[float]]:
    """Display windows of CT that a reader asks for by name, HU; none without a CT in HU."""
    if all(image.units != "HU" for image in result.case.images.values()):
        return {}
    soft = pictures.window_of(next(i for i in result.case.images.values() if i.units == "HU"))
    return {
        "soft tissue": [soft.low, soft.high],
        "bone": [-450.0, 1050.0],
        "lung": [-1350.0, 150.0],
        "brain": [0.0, 80.0],
    }


@cache
def _library() -> str:
    """NiiVue, gzipped, in base64; its licence lies beside it."""
    packed = files("fusion_pipeline.report").joinpath("niivue/niivue.umd.js.gz").read_bytes()
    return base64.b64encode(packed).decode("ascii")


__all__ = ["Viewer", "viewer_of"]
