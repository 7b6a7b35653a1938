"""Patients for a study of diagnosis: sick where an uptake has nothing on MR that explains it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fusion_pipeline.data import (
    Case,
    Image,
    Series,
    write_displacement,
    write_image,
    write_labels,
    written_whole,
)
from fusion_pipeline.geometry import identity_points
from fusion_pipeline.synthesis.frame import Tissue
from fusion_pipeline.synthesis.motion import Lattice, Motion, random_motion
from fusion_pipeline.synthesis.noise import gaussian_blur, smooth_noise, uniform
from fusion_pipeline.synthesis.patients import (
    Canvas,
    Plan,
    Size,
    draw_canvas,
    lattice_of,
    true_displacement,
)
from fusion_pipeline.synthesis.protocols import ProtocolRanges, other_protocol
from fusion_pipeline.synthesis.scanner import acquire, tissue_image
from fusion_pipeline.synthesis.tissues import Contrast

HEAD_LABEL, LESION_LABEL = 1, 2
_RADIUS_MM = (8.0, 11.0)
_APART_MM = 30.0  # least distance of two foci
_EDGE = 0.15  # of the radius by which an outline wanders
# largest rotation in degrees, translation in mm, elastic displacement in mm: as MR against CT
_MOTION = (12.0, 15.0, 6.0)
_WHITE_LEVEL = 0.998  # quantile of an image that becomes white
_TRIES = 200


@dataclass(frozen=True)
class DiagnosticPatient:
    """A case, its class, and where the lesion is.

    Attributes:
        case: a T1-weighted MR (reference) and an FDG-PET, both pictures 0..255; the true
            displacement of the PET, and on the MR's grid labels of the head (1) and of the lesion
            where there is one (2).
        target: 1 where the patient has the lesion, else 0.
    """

    case: Case
    target: int


def diagnostic_patient(seed: int, *, size: Size = "small") -> DiagnosticPatient:
    """Make up an axial slice of a head with one dark focus on MR and one hot focus on PET.

    In a healthy patient (even seeds) both are one focus: the uptake has its correlate on MR. In a
    sick one (odd seeds) they lie at least 30 mm apart: the lesion shows on PET alone, and a scar on
    MR alone. Each image alone therefore tells nothing, whoever reads it. The PET is rotated by 6 to
    12 degrees and shifted by 8 to 15 mm against the MR, with a smooth deformation of up to 6 mm;
    both images have a random protocol (`other_protocol`).

    Args:
        seed: the same seed gives the same patient.
        size: ``small`` (pixels of 2.2 mm) or ``full`` (1.05 mm).
    """
    generator = torch.Generator().manual_seed(seed)
    target = seed % 2
    canvas = draw_canvas(Plan("head", size, 2), generator, lesions=False)
    on_mr, on_pet = foci(canvas, generator, apart=bool(target))
    motion = random_motion(canvas.lattice, _MOTION, generator)
    fixed = lattice_of(canvas, "ct")
    images = {
        "mr": _picture(canvas, "mr", on_mr, fixed, None, generator),
        "pet": _picture(canvas, "pet", on_pet, lattice_of(canvas, "pet"), motion, generator),
    }
    world = fixed.world()
    marked = (canvas.labels > 0) * HEAD_LABEL
    if target:
        marked = torch.where(on_pet, LESION_LABEL, marked)
    labels = canvas.read(marked, world, nearest=True)
    case = Case(
        id=f"patient-{seed:04d}",
        reference="mr",
        series={
            "mr": Series(image=images["mr"], labels=Image(labels[None], fixed.affine, "mr")),
            "pet": Series(image=images["pet"], displacement=true_displacement(motion, world)),
        },
    )
    return DiagnosticPatient(case, target)


def save_cohort(patients: Sequence[DiagnosticPatient], folder: str | Path) -> Path:
    """Write patients and a datalist with their classes.

    Args:
        patients: with different ids.
        folder: made if needed.

    Returns:
        The datalist, ``<folder>/cases.json``, all of them in its ``testing``.
    """
    root, entries = Path(folder), []
    for patient in patients:
        case = patient.case
        (root / case.id).mkdir(parents=True, exist_ok=True)
        entry: dict[str, object] = {"id": case.id, "reference": "mr", "target": patient.target}
        for key, series in case.series.items():
            entry[key] = f"{case.id}/{key}.png"
            write_image(series.image, root / case.id / f"{key}.png")
            if series.labels is not None:
                entry[f"{key}_label"] = f"{case.id}/{key}_label.png"
                write_labels(series.labels, root / case.id / f"{key}_label.png")
            if series.displacement is not None:
                entry[f"{key}_displacement"] = f"{case.id}/{key}_displacement.nii.gz"
                write_displacement(
                    series.displacement,
                    case.fixed.affine,
                    root / case.id / f"{key}_displacement.nii.gz",
                )
        entries.append(entry)
    datalist = root / "cases.json"
    with written_whole(datalist) as aside:
        aside.write_text(json.dumps({"testing": entries}, indent=1) + "\n", encoding="utf-8")
    return datalist


def foci(canvas: Canvas, generator: torch.Generator, *, apart: bool) -> tuple[Tensor, Tensor]:
    """Where MR and PET show a focus in white matter.

    Args:
        canvas: a patient without lesions.
        generator: the randomness; the same gives the same place on MR, whatever ``apart``.
        apart: two foci 30 mm apart or more, one for each image; else one for both.

    Returns:
        ``(*S)`` bool on the canvas, of MR and of PET.
    """
    millimetres = canvas.plan.step * canvas.plan.unit
    white = (canvas.labels == Tissue.WHITE).float()
    # most of a focus should lie in white matter, where both images show it
    deep = gaussian_blur(white[None], _RADIUS_MM[0] / millimetres)[0] * white
    sites = torch.nonzero(deep > deep.max() * 0.8)
    points = identity_points(canvas.labels.shape) * millimetres

    def drawn() -> Tensor:
        return sites[int(torch.randint(len(sites), (), generator=generator))] * millimetres

    def focus(centre: Tensor) -> Tensor:
        radius = uniform(generator, *_RADIUS_MM)
        edge = smooth_noise(canvas.labels.shape, radius / millimetres, generator)[0]
        return (points - centre).norm(dim=-1) < radius * (1 + _EDGE * edge)

    first = drawn()
    others = [drawn() for _ in range(_TRIES)]
    second = next((p for p in others if float((p - first).norm()) > _APART_MM), None)
    if second is None:  # a rare head with little white matter: the farthest there is
        second = max(others, key=lambda p: float((p - first).norm()))
    # the pair is drawn and shuffled for the healthy too: else where a focus lies would tell
    if uniform(generator, 0, 1) < 0.5:
        first, second = second, first
    one, other = focus(first), focus(second)
    return (one, other) if apart else (one, one)


def _picture(
    canvas: Canvas,
    contrast: Contrast,
    focus: Tensor,
    lattice: Lattice,
    motion: Motion | None,
    generator: torch.Generator,
) -> Image:
    """One image with its own focus, under a random protocol, in grey levels 0..255."""
    labels = torch.where(focus, int(Tissue.TUMOUR), canvas.labels)
    plan = canvas.plan
    ideal = tissue_image(labels, contrast, plan.step * plan.unit, generator)
    points = lattice.world()
    source = points if motion is None else motion.backward(points)
    values = acquire(canvas.read(ideal, source), contrast, generator)[None, None]
    body = (canvas.read(labels, source, nearest=True) > 0)[None, None].float()
    kind = "emission" if contrast == "pet" else "mr"
    other = other_protocol(
        values, kind, body, generator, spacing=[plan.unit] * 2, ranges=ProtocolRanges()
    )[0, 0]
    top = float(np.quantile(other.numpy(), _WHITE_LEVEL))
    levels = (other / max(top, 1e-6) * 255).clamp(0, 255).round()
    return Image(levels[None].float(), lattice.affine, contrast, "a.u.")


__all__ = [
    "HEAD_LABEL",
    "LESION_LABEL",
    "DiagnosticPatient",
    "diagnostic_patient",
    "foci",
    "save_cohort",
]
