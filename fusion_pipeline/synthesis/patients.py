"""A made-up patient with CT, MR and PET whose true displacements are known."""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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
from fusion_pipeline.geometry import (
    apply_affine,
    inverse_affine,
    rigid_matrix,
    sample,
)
from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.geometry.sampling import Mode
from fusion_pipeline.synthesis.anatomy import draw_body
from fusion_pipeline.synthesis.frame import Frame, slab_points
from fusion_pipeline.synthesis.lesions import with_lesions
from fusion_pipeline.synthesis.motion import Lattice, Motion, centred_affine, random_motion
from fusion_pipeline.synthesis.noise import uniform
from fusion_pipeline.synthesis.scanner import acquire, tissue_image
from fusion_pipeline.synthesis.tissues import Contrast

PatientBody = Literal["head", "trunk"]
Size = Literal["small", "full"]

_UNITS = {"ct": "HU", "mr": "a.u.", "mr_t2": "a.u.", "pet": "SUV"}
# of a picture: the values that are black and white
_WINDOW = {"ct": (-160.0, 240.0), "mr": (0.0, 1000.0), "mr_t2": (0.0, 1100.0), "pet": (0.0, 10.0)}
_BRAIN_WINDOW = (-40.0, 120.0)
# extent of the reference image in mm, its middle in the patient, height of a 2D slice
_EXTENT = {"head": (188.0, 232.0, 204.0), "trunk": (318.0, 222.0, 256.0)}
_MIDDLE = {"head": (0.0, 4.0, -16.0), "trunk": (0.0, 0.0, 10.0)}
_SLICE = {"head": 8.0, "trunk": -28.0}
_CANVAS_MARGIN = 16.0
_LANDMARKS = 32
# largest rotation in degrees, translation in mm, elastic displacement in mm
_MOTION = {"mr": (12.0, 15.0, 6.0), "pet": (5.0, 6.0, 3.0)}


@dataclass(frozen=True)
class _Layout:
    """How a scanner lays its lattice.

    Attributes:
        axes: the world direction of each lattice axis before turning.
        turn: degrees about the world's axes.
        spacing: mm, of a full-size image.
        share: of the reference's field of view, along the world's axes.
        lift: mm by which the middle lies higher than the reference's.
    """

    axes: tuple[tuple[int, int, int], ...]
    turn: tuple[float, float, float]
    spacing: tuple[float, float, float]
    share: tuple[float, float, float]
    lift: float


_LAYOUT: dict[Contrast, _Layout] = {
    # as DICOM has it: columns to the left, rows to the back
    "ct": _Layout(((-1, 0, 0), (0, -1, 0), (0, 0, 1)), (0, 0, 0), (1.45, 1.5, 1.8), (1, 1, 1), 0.0),
    # sagittal slices, oblique
    "mr": _Layout(
        ((0, -1, 0), (0, 0, 1), (-1, 0, 0)), (4, -3, 6), (1.5, 1.5, 1.9), (0.95, 1.0, 0.93), 8.0
    ),
    # thick axial slices, oblique
    "mr_t2": _Layout(
        ((-1, 0, 0), (0, -1, 0), (0, 0, 1)), (9, 2, -3), (1.6, 1.6, 3.2), (1.0, 1.0, 0.85), 6.0
    ),
    "pet": _Layout(
        ((1, 0, 0), (0, 1, 0), (0, 0, 1)), (0, 0, 0), (2.6, 2.6, 3.0), (1.1, 1.05, 0.9), 4.0
    ),
}


@dataclass(frozen=True)
class SyntheticPatient:
    """A case and the truth about it.

    Convention:
        - ``displacements[key]``: ``(d, *S_fixed)`` RAS mm on the reference grid; the point x of the
          fixed world shows what the moving image shows at ``x + u(x)``

    Attributes:
        case: CT in HU (reference), MR, PET in SUV; in 2D pictures 0..255. Its ``labels``,
            ``landmarks`` and ``displacements`` are filled.
        aligned: per moving key, the modality as it would look without misalignment, without noise
            and shading, on the reference grid.
    """

    case: Case
    aligned: Mapping[str, Image]

    @property
    def displacements(self) -> Mapping[str, Tensor]:
        """The true displacements, per moving key."""
        series = self.case.series
        return {k: one.displacement for k, one in series.items() if one.displacement is not None}

    def save(self, folder: str | Path) -> Path:
        """Write the images (NIfTI, or PNG in 2D), the truth, and a datalist.

        Args:
            folder: made if needed.

        Returns:
            The datalist, ``<folder>/cases.json``.
        """
        root, case = Path(folder), self.case
        suffix = ".nii.gz" if case.fixed.spatial_dims == 3 else ".png"
        entry: dict[str, str] = {"id": case.id, "reference": case.reference}
        (root / case.id).mkdir(parents=True, exist_ok=True)
        for key, series in case.series.items():
            entry[key] = f"{case.id}/{key}{suffix}"
            write_image(series.image, root / entry[key])
            if series.labels is None or series.landmarks is None:
                raise ValueError(f"expected a patient with its truth, got {key} without")
            entry[f"{key}_label"] = f"{case.id}/{key}_label{suffix}"
            write_labels(series.labels, root / entry[f"{key}_label"])
            entry[f"{key}_landmarks"] = f"{case.id}/{key}_landmarks.csv"
            _write_landmarks(series.landmarks, root / entry[f"{key}_landmarks"])
        for key, displacement in self.displacements.items():
            entry[f"{key}_displacement"] = f"{case.id}/{key}_displacement.nii.gz"
            write_displacement(displacement, case.fixed.affine, root / entry[f"{key}_displacement"])
        datalist = root / "cases.json"
        with written_whole(datalist) as aside:
            aside.write_text(json.dumps({"testing": [entry]}, indent=2) + "\n", encoding="utf-8")
        return datalist


def synthetic_patient(
    seed: int,
    *,
    spatial_dims: int = 3,
    body: PatientBody = "head",
    size: Size = "small",
    mr_t2: bool = False,
) -> SyntheticPatient:
    """Make up a patient: one anatomy, imaged by CT, MR and PET on lattices of their own.

    The moving images are misaligned by a rigid motion (MR up to 12° and 15 mm, PET less) and a
    smooth elastic one (MR up to 6 mm). Each image reads the tissue once, at the points where its
    voxels lie in the undisplaced patient: nothing is interpolated twice.

    Args:
        seed: the same seed gives the same patient.
        spatial_dims: 3 for volumes, 2 for pictures 0..255 of an axial slice.
        body: ``head`` or ``trunk``.
        size: ``small`` (voxels of about 4 mm, for tests) or ``full`` (1.5 to 2 mm).
        mr_t2: also a T2-weighted image, ``mr_t2``, from the session of ``mr``.

    Returns:
        The case and the truth. Its id is ``synthetic-<body>-<seed>``.
    """
    if spatial_dims not in (2, 3):
        raise ValueError(f"expected spatial_dims 2 or 3, got {spatial_dims}")
    if body not in _EXTENT:
        raise ValueError(f"expected a body of {', '.join(_EXTENT)}, got {body!r}")
    if size not in ("small", "full"):
        raise ValueError(f"expected a size of small or full, got {size!r}")
    generator = torch.Generator().manual_seed(seed)
    canvas = draw_canvas(Plan(body, size, spatial_dims), generator)
    contrasts: tuple[Contrast, ...] = ("ct", "mr", "mr_t2", "pet") if mr_t2 else ("ct", "mr", "pet")
    motions = {key: random_motion(canvas.lattice, _MOTION[key], generator) for key in ("mr", "pet")}
    motions["mr_t2"] = motions["mr"]
    scans = {key: _scan(canvas, key, motions.get(key), generator) for key in contrasts}
    return _assembled(f"synthetic-{body}-{seed}", canvas, scans, motions, generator)


@dataclass(frozen=True)
class Plan:
    """What was ordered.

    Attributes:
        body: which part.
        size: how fine.
        d: 2 or 3.
    """

    body: str
    size: str
    d: int

    @property
    def unit(self) -> float:
        """Patient mm per world unit: 1 in 3D; in 2D a pixel is a unit."""
        if self.d == 3:
            return 1.0
        return 1.05 if self.size == "full" else 2.2

    @property
    def extent(self) -> Matrix:
        """Size of the reference's field of view, world units."""
        return np.asarray(_EXTENT[self.body][: self.d]) / self.unit

    @property
    def step(self) -> float:
        """Voxel size of the canvas, world units."""
        if self.d == 2:
            return 0.7
        coarse = 1.25 if self.body == "trunk" else 1.0
        return coarse * (1.5 if self.size == "full" else 2.6)


@dataclass(frozen=True)
class Canvas:
    """The undisplaced patient on a fine lattice that is larger than any image of it.

    Attributes:
        plan: what was ordered.
        lattice: isotropic, its axes along those of the world.
        labels: ``(*S)`` of `Tissue`.
        middle: of the reference's field of view, world units.
    """

    plan: Plan
    lattice: Lattice
    labels: Tensor
    middle: Matrix

    def read(self, image: Tensor, points: Matrix, *, nearest: bool = False) -> Tensor:
        """Values of ``(*S)`` at world points ``(*T, d)``; the border goes on."""
        voxels = torch.from_numpy(apply_affine(inverse_affine(self.lattice.affine), points))
        mode: Mode = "nearest" if nearest else "bilinear"
        return sample(image[None, None].float(), voxels[None], mode=mode)[0, 0]


@dataclass(frozen=True)
class _Scan:
    """One modality.

    Attributes:
        image: as its scanner gives it.
        labels: tissues on the same lattice.
        aligned: on the reference's lattice, undisplaced and without noise.
    """

    image: Image
    labels: Image
    aligned: Tensor


def draw_canvas(plan: Plan, generator: torch.Generator, *, lesions: bool = True) -> Canvas:
    """Draw a patient.

    Args:
        plan: what was ordered.
        generator: the randomness.
        lesions: with one or two lesions that every image shows.
    """
    d, step = plan.d, plan.step
    if d == 3:
        middle = np.array([uniform(generator, -20, 20) for _ in range(3)])
    else:  # the upper left pixel of a picture is the world's origin
        middle = -(np.round(plan.extent) - 1) / 2
    shape = tuple(int(e) for e in (plan.extent + 2 * _CANVAS_MARGIN / plan.unit) / step)
    affine = centred_affine(np.eye(d), shape, [step] * d, middle)
    centre = list(_MIDDLE[plan.body])
    if d == 2:
        centre[2] = _SLICE[plan.body] + uniform(generator, -4, 4)
    spacing = [step * plan.unit] * d
    points = slab_points(shape, spacing, torch.eye(3)[:, :d], centre)
    frame = Frame(points, spacing, generator, bend=3.0)
    labels = draw_body(frame, plan.body)
    if lesions:
        labels = with_lesions(frame, labels, plan.body)
    return Canvas(plan, Lattice(shape, affine), labels, middle)


def lattice_of(canvas: Canvas, contrast: Contrast) -> Lattice:
    """The lattice of an image: resolution, field of view and orientation of its own."""
    plan = canvas.plan
    if plan.d == 2:
        more = {"ct": (0, 0), "mr": (7, -9), "mr_t2": (7, -9), "pet": (-6, 11)}[contrast]
        shape = tuple(int(n) for n in np.round(plan.extent) + np.asarray(more))
        return Lattice(shape, np.diag([-1.0, -1.0, 1.0]))
    layout = _LAYOUT[contrast]
    directions = rigid_matrix(layout.turn, [0.0] * 3, [0.0] * 3)[:3, :3] @ np.asarray(layout.axes).T
    finest = {"full": 1.0, "small": 1.5 if contrast == "pet" else 2.3}[plan.size]
    spacing = np.asarray(layout.spacing) * finest * (1.25 if plan.body == "trunk" else 1.0)
    seen = np.abs(np.asarray(layout.axes)) @ (plan.extent * layout.share)
    shape = tuple(int(n) for n in np.round(seen / spacing))
    centre = canvas.middle + np.asarray([0.0, 0.0, layout.lift])
    return Lattice(shape, centred_affine(directions, shape, spacing, centre))


def _scan(
    canvas: Canvas, contrast: Contrast, motion: Motion | None, generator: torch.Generator
) -> _Scan:
    """Image the patient, after a motion where there is one."""
    plan = canvas.plan
    ideal = tissue_image(canvas.labels, contrast, plan.step * plan.unit, generator)
    lattice, fixed = lattice_of(canvas, contrast), lattice_of(canvas, "ct")
    points = lattice.world()
    source = points if motion is None else motion.backward(points)
    values = acquire(canvas.read(ideal, source), contrast, generator)
    aligned = canvas.read(ideal, fixed.world())
    if plan.d == 2:
        values, aligned = (_picture(v, contrast, plan.body) for v in (values, aligned))
    units = _UNITS[contrast] if plan.d == 3 else "a.u."
    image = Image(values[None].float(), lattice.affine, contrast, units)
    labels = canvas.read(canvas.labels, source, nearest=True)
    return _Scan(image, Image(labels[None], lattice.affine, contrast), aligned[None].float())


def _picture(values: Tensor, contrast: Contrast, body: str) -> Tensor:
    """Grey levels 0..255, whole numbers as a PNG holds them."""
    low, high = _BRAIN_WINDOW if (contrast, body) == ("ct", "head") else _WINDOW[contrast]
    return ((values - low) / (high - low) * 255).clamp(0, 255).round()


def _assembled(
    case_id: str,
    canvas: Canvas,
    scans: Mapping[Contrast, _Scan],
    motions: Mapping[str, Motion],
    generator: torch.Generator,
) -> SyntheticPatient:
    """Put images and truth together."""
    fixed = scans["ct"]
    world = lattice_of(canvas, "ct").world()
    moving: list[Contrast] = [key for key in scans if key != "ct"]
    shown = np.argwhere(fixed.labels.array[0].numpy() > 0)
    order = torch.randperm(len(shown), generator=generator).numpy()
    points = _seen_by_all(apply_affine(fixed.image.affine, shown[order]), scans, motions)
    case = Case(
        id=case_id,
        reference="ct",
        series={
            key: Series(
                image=scan.image,
                labels=scan.labels,
                landmarks=points if key == "ct" else motions[key].forward(points),
                displacement=None if key == "ct" else true_displacement(motions[key], world),
            )
            for key, scan in scans.items()
        },
    )
    aligned: dict[str, Image] = {
        key: fixed.image.with_array(scans[key].aligned, key=key, units=scans[key].image.units)
        for key in moving
    }
    return SyntheticPatient(case, aligned)


def _seen_by_all(
    points: Matrix, scans: Mapping[Contrast, _Scan], motions: Mapping[str, Motion]
) -> Matrix:
    """The first points that lie in the field of view of every image: who sets marks sees them."""
    points = points[: 8 * _LANDMARKS]
    seen = np.ones(len(points), bool)
    for key, scan in scans.items():
        image = scan.image
        there = points if key == "ct" else motions[key].forward(points)
        voxels = apply_affine(inverse_affine(image.affine), there)
        seen &= ((voxels > 0) & (voxels < np.asarray(image.shape) - 1)).all(1)
    return points[seen][:_LANDMARKS]


def true_displacement(motion: Motion, world: Matrix) -> Tensor:
    """The true field ``(d, *S)`` in RAS mm at points ``(*S, d)``."""
    return torch.from_numpy(motion.forward(world) - world).movedim(-1, 0).float()


def _write_landmarks(points: Matrix, path: Path) -> None:
    """A CSV with a header, RAS mm."""
    with written_whole(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["x", "y", "z"][: points.shape[1]])
        writer.writerows([[f"{value:.4f}" for value in point] for point in points.tolist()])
