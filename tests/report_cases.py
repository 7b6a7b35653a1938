"""Results made by hand, for the tests of the report."""

from dataclasses import replace

import numpy as np
import torch
from data_phantoms import case_of

from fusion_pipeline.data import Case, Image
from fusion_pipeline.fuse import Fusion
from fusion_pipeline.geometry import (
    WorldMap,
    apply_affine,
    identity_points,
    rescaled_affine,
    rigid_matrix,
)
from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.harmonize import Harmonization
from fusion_pipeline.register import Evidence, Registration
from fusion_pipeline.result import CaseResult

HOT_MM = (9.0, -14.0, 12.0)
TURN = (4.0, -3.0, 6.0)
SHIFT = (5.0, -4.0, 3.0)


def lattice(shape: tuple[int, ...], spacing: tuple[float, ...], turn: Matrix) -> Matrix:
    """A lattice centred on the world's origin, turned."""
    d = len(shape)
    affine = np.diag([-spacing[0], *spacing[1:], 1.0])
    affine[:d, d] = -affine[:d, :d] @ ((np.asarray(shape) - 1) / 2)
    return np.asarray(turn @ affine)


def paint(key: str, affine: Matrix, shape: tuple[int, ...], units: str, to_body: Matrix) -> Image:
    """An ellipsoid body with an organ, and for PET a hot spot."""
    d = len(shape)
    body = apply_affine(to_body @ affine, identity_points(shape).numpy())
    scaled = np.linalg.norm(body / np.array([34.0, 42.0, 38.0])[:d], axis=-1)
    organ = np.linalg.norm(body - np.array([-10.0, 8.0, -6.0])[:d], axis=-1) < 12
    hot = np.exp(-0.5 * (np.linalg.norm(body - np.array(HOT_MM)[:d], axis=-1) / 5) ** 2)
    values = {
        "HU": np.where(scaled < 1, 40.0 + 60 * organ, -1000.0),
        "SUV": (scaled < 1) * (0.8 + 5 * hot),
        "a.u.": (scaled < 1) * (300.0 + 200 * organ - 80 * body[..., 1] / 42),
    }[units]
    return Image(torch.from_numpy(values).float()[None], affine, key, units)


def smooth_field(shape: tuple[int, ...], size_mm: float) -> torch.Tensor:
    """One slow wave along each axis."""
    waves = [
        torch.sin(torch.linspace(0, 3.0 + axis, n)).reshape(
            [-1 if a == axis else 1 for a in range(len(shape))]
        )
        for axis, n in enumerate(shape)
    ]
    return torch.stack([size_mm * wave.expand(shape) for wave in waves])


def moved_by(found: Registration, matrix: Matrix) -> Registration:
    """The same result with another affine."""
    return replace(found, map=replace(found.map, moving_from_fixed=matrix))


def result_3d() -> CaseResult:
    """CT (oblique), MR moved by a known motion and bent, PET of the CT's session."""
    eye, tilt = np.eye(4), rigid_matrix((6.0, -8.0, 15.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
    motion = rigid_matrix(TURN, SHIFT, (0.0, 0.0, 0.0))
    ct_shape, mr_shape, pet_shape = (52, 60, 30), (40, 44, 24), (22, 26, 28)
    ct = paint("ct", lattice(ct_shape, (1.6, 1.6, 3.2), tilt), ct_shape, "HU", eye)
    mr_affine = motion @ lattice(mr_shape, (1.5, 1.7, 3.0), eye)
    mr = paint("mr_t1", mr_affine, mr_shape, "a.u.", np.linalg.inv(motion))
    pet = paint("pet", lattice(pet_shape, (4.0, 4.0, 3.6), eye), pet_shape, "SUV", eye)
    affine, shape = rescaled_affine(ct.affine, ct.shape, 4.0)
    registrations = {
        "mr_t1": Registration(
            WorldMap(motion, smooth_field(shape, 1.5), affine),
            Evidence(
                "deformable",
                similarity_before={"nmi": 1.1, "mind": 0.3},
                similarity_after={"nmi": 1.2, "mind": 0.4},
                folded_fraction=0.001,
                error_mm=1.6,
                over_5_mm=0.034,
                error_map_mm=smooth_field(shape, 1.0)[0].abs(),
                details={"offset_mm": float("nan"), "engine": "features"},
            ),
        ),
        "pet": Registration(
            WorldMap(eye, torch.zeros(3, *shape), affine),
            Evidence("none", ok=False, reason="Less similar <after>."),
        ),
    }
    case = case_of(
        "case01",
        "ct",
        {"ct": ct, "mr_t1": mr, "pet": pet},
        {"mr_t1": "deformable", "pet": "none"},
    )
    return finished(case, registrations, ("PET units were not named; SUV was assumed.",))


def result_2d() -> CaseResult:
    """Two pictures, PNG geometry, one rotated by 8 degrees."""
    flip = np.diag([-1.0, -1.0, 1.0])
    centre = (-44.5, -39.5)
    motion = rigid_matrix([8.0], [3.0, -2.0], centre)
    to_body = np.eye(3)
    to_body[:2, 2] = np.negative(centre)
    shape = (90, 80)
    ct = paint("ct", flip, shape, "a.u.", to_body)
    mr = paint("mr", motion @ flip, shape, "a.u.", to_body @ np.linalg.inv(motion))
    ddf = torch.zeros(2, 45, 40)
    found = Registration(
        WorldMap(motion, ddf, flip @ np.diag([2.0, 2.0, 1.0])), Evidence("rigid", error_mm=0.4)
    )
    case = case_of("slice", "ct", {"ct": ct, "mr": mr}, {"mr": "rigid"})
    return finished(case, {"mr": found}, ())


def finished(
    case: Case, registrations: dict[str, Registration], warnings: tuple[str, ...]
) -> CaseResult:
    """Harmonize by rescaling and fuse by softmax: enough to look at."""
    fixed = case.fixed
    registered = {k: r.warp(case.images[k], fixed) for k, r in registrations.items()}
    harmonized = {
        key: image.with_array(
            (image.array - image.array.min()) / (image.array.max() - image.array.min())
        )
        for key, image in {case.reference: fixed, **registered}.items()
    }
    stack = torch.cat([image.array for image in harmonized.values()])
    weights = (3 * stack).softmax(0)
    fused = replace(fixed, array=(stack * weights).sum(0, keepdim=True), units="a.u.")
    return CaseResult(
        case,
        registered,
        registrations,
        Harmonization(harmonized, {key: {"edges_kept": 0.94} for key in harmonized}),
        Fusion(fused, weights, {"ssim": 0.7, "scd": float("inf")}),
        warnings,
        {"register": {"wall_s": 3.1, "cpu_s": 5.9}},
        812.5,
    )
