"""How far a CT and an MR lie apart by their contours alone: is what the headers say the truth?

The known-truth cases of registration.py take the headers of a patient's CT and MR for the truth.
This asks three contours that thresholds draw, and no similarity of intensities: where fat meets
muscle, the skin, and the bones. The rigid pose is searched that brings the contours nearest to each
other (mean of each distance, cut off at 10 mm), from the headers and from turned and shifted ones.

    python benchmarks/header_truth.py --data ../shared/data/open --output header_truth.json
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from registration_cases import EVALUATION
from scipy import ndimage
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation
from skimage.filters import threshold_otsu

from fusion_pipeline.data import Image, read_image
from fusion_pipeline.geometry import apply_affine
from fusion_pipeline.pipeline import FusionPipeline
from fusion_pipeline.register import Register

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
_MM = 1.5
_CUT_MM = 10.0
_POINTS = 5000
_LEAST_SHARE = 0.6
_STARTS = 8
_MM_PER_RADIAN = 50.0
_SEED = 1


@dataclass(frozen=True)
class Contour:
    """Points of one image, and how far every place of the other is from the same contour there.

    Attributes:
        points: ``(N, 3)`` world mm of their image.
        distance: mm, on the other image's lattice.
        voxel_from_world: of that lattice.
        points_are_ct: whose points they are.
        rim: voxels at the other lattice's end where nothing is compared.
    """

    points: Array
    distance: Array
    voxel_from_world: Array
    points_are_ct: bool
    rim: int

    def away(self, mr_from_ct: Array) -> tuple[Array, Mask]:
        """Distance of each point after a pose, cut off; whether it is in view."""
        pose = mr_from_ct if self.points_are_ct else np.linalg.inv(mr_from_ct)
        voxels = apply_affine(self.voxel_from_world @ pose, self.points)
        last = np.array(self.distance.shape) - 1 - self.rim
        seen = ((voxels >= self.rim) & (voxels <= last)).all(1)
        away = ndimage.map_coordinates(self.distance, voxels.T, order=1, mode="nearest")
        return np.minimum(away, _CUT_MM), seen


def contours_of(ct: Image, mr: Image) -> dict[str, Contour]:
    """Fat against muscle and skin: points of the MR; bones: points of the CT."""
    c, ct_affine = _isotropic(ct, blur=0.8)
    r, mr_affine = _isotropic(mr, blur=0.5, unbias=True)
    air_like = r <= 0
    rough = r > 0.5 * threshold_otsu(r)
    cut = threshold_otsu(r[rough])
    muscle, fat = np.median(r[rough & (r < cut)]), np.median(r[rough & (r > cut)])
    inner = np.zeros(r.shape, bool)
    inner[4:-4, 4:-4, 3:-3] = True
    mr_body = ndimage.binary_opening(filled(ndimage.binary_opening(r > 0.4 * muscle)), iterations=2)
    air = ndimage.binary_opening(np.pad(~mr_body, 8, mode="edge"), iterations=4)
    mr_body = ~air[8:-8, 8:-8, 8:-8]  # a ring of cortex that the view's end opens is not air
    mr_deep = ndimage.binary_erosion(mr_body, iterations=3)
    ct_body = ndimage.binary_fill_holes(ndimage.binary_opening(c > -300, iterations=2))
    ct_bone = ndimage.binary_opening(c > 250)
    ct_fat = (c < -30) & (c > -200) & ndimage.binary_erosion(ct_body, iterations=3)
    half = (muscle + fat) / 2
    mr_muscle = (r < half) & (r > 0.45 * muscle) & mr_deep & inner
    mr_dark = (r < 0.5 * muscle) & mr_deep
    ct_muscle = (c >= -30) & (c < 200) & ~ndimage.binary_dilation(ct_bone, iterations=4)
    masks = {
        "fat": (
            mr_muscle & ndimage.binary_dilation((r >= half) & mr_deep),
            ct_muscle & ndimage.binary_dilation(ct_fat),
        ),
        "skin": (
            _rim(mr_body) & inner & ~ndimage.binary_dilation(air_like, iterations=2),
            _rim(ct_body),
        ),
        "bone": (_rim(filled(ct_bone)), ndimage.binary_dilation(mr_dark) & ~mr_dark & mr_body),
    }
    out = {}
    for name, (of_points, of_other) in masks.items():
        is_ct = name == "bone"
        here, other = (ct_affine, mr_affine) if is_ct else (mr_affine, ct_affine)
        voxels = np.argwhere(of_points)
        chosen = np.random.default_rng(0).permutation(len(voxels))[:_POINTS]
        out[name] = Contour(
            apply_affine(here, voxels[chosen].astype(float)),
            np.asarray(ndimage.distance_transform_edt(~of_other)) * _MM,
            np.linalg.inv(other),
            is_ct,
            4 if is_ct else 0,
        )
    return {name: contour for name, contour in out.items() if len(contour.points) >= 100}


def apart(contours: dict[str, Contour], pose: Array, seen: dict[str, Mask]) -> dict[str, float]:
    """Mean distance of each contour over what is in view.

    To count what leaves the view, at whatever distance, would favour the headers. But no pose may
    lose over 40 % of what they have in view.
    """
    out = {}
    for name, contour in contours.items():
        away, now = contour.away(pose)
        enough = now.sum() >= max(50, _LEAST_SHARE * seen[name].sum())
        out[name] = float(away[now].mean()) if enough else _CUT_MM
    return out


def in_common_view(
    contours: dict[str, Contour], poses: dict[str, Array]
) -> dict[str, dict[str, float]]:
    """Mean distance of each contour by each pose, over the points that all poses have in view."""
    out: dict[str, dict[str, float]] = {name: {} for name in poses}
    for contour_name, contour in contours.items():
        read = {name: contour.away(pose) for name, pose in poses.items()}
        common = np.all([seen for _, seen in read.values()], axis=0)
        for name, (away, _) in read.items():
            out[name][contour_name] = float(away[common].mean()) if common.any() else _CUT_MM
    return out


def best_pose(contours: dict[str, Contour], starts: int = _STARTS) -> list[tuple[float, Array]]:
    """Where the search ends from each start, best first: the sum of the three means, the pose."""
    seen = {name: contour.away(np.eye(4))[1] for name, contour in contours.items()}
    centre = contours["fat"].points.mean(0)

    def pose(x: Array) -> Array:
        out = np.eye(4)
        out[:3, :3] = Rotation.from_rotvec(x[:3] / _MM_PER_RADIAN).as_matrix()
        out[:3, 3] = centre + x[3:] - out[:3, :3] @ centre
        return out

    generator = np.random.default_rng(_SEED)
    reach = np.array([np.deg2rad(10) * _MM_PER_RADIAN] * 3 + [10.0] * 3)
    found = []
    for start in (np.zeros(6), *(generator.uniform(-1, 1, (starts - 1, 6)) * reach)):
        end = minimize(
            lambda x: sum(apart(contours, pose(x), seen).values()),
            start,
            method="Powell",
            options={"xtol": 0.05, "ftol": 1e-4, "maxiter": 10},
        )
        found.append((float(end.fun), pose(end.x)))
    return sorted(found, key=lambda one: one[0])


def measure(ct: Image, mr: Image, register: Register) -> dict[str, Any]:
    """The contours by the headers, by our pose, by the pose that fits them best; moves in mm.

    Means are over the points that all three poses have in view. Moves are means over the fat
    contour's points in the MR, not over the whole body; ours is the pose alone, without the
    deformation that may follow it.
    """
    contours = contours_of(ct, mr)
    headers = np.eye(4)
    inside = contours["fat"].points

    def between(a: Array, b: Array) -> float:
        places = [apply_affine(np.linalg.inv(m), inside) for m in (a, b)]
        return float(np.linalg.norm(places[0] - places[1], axis=1).mean())

    found = best_pose(contours)
    best = found[0][1]
    ours = register(ct, mr).map.moving_from_fixed
    return {
        **in_common_view(contours, {"headers": headers, "ours": ours, "best": best}),
        "ours_moved_mm": between(ours, headers),
        "moved_mm": between(best, headers),
        "ours_from_best_mm": between(ours, best),
        "starts": [{"sum": value, "from_best_mm": between(m, best)} for value, m in found],
        "mr_from_ct": best.tolist(),
    }


def _isotropic(image: Image, *, blur: float, unbias: bool = False) -> tuple[Array, Array]:
    """The image on 1.5 mm voxels and their lattice."""
    affine, spacing = np.asarray(image.affine), np.asarray(image.spacing)
    size = np.ceil(np.asarray(image.shape) * spacing / _MM).astype(int)
    step = np.diag(_MM / spacing)
    values = image.array[0].double().numpy()
    values = ndimage.affine_transform(values, step, output_shape=size, order=1, mode="nearest")
    if unbias:
        values = values / _bias(values)
    lattice = affine.copy()
    lattice[:3, :3] = affine[:3, :3] @ step
    return ndimage.gaussian_filter(values, blur), lattice


def _bias(values: Array) -> Array:
    """The coil's profile (N4)."""
    whole = sitk.GetImageFromArray(values.astype(np.float32))
    mask = sitk.GetImageFromArray((values > 0.5 * threshold_otsu(values)).astype(np.uint8))
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations([30, 20])
    n4.Execute(sitk.Shrink(whole, [3] * 3), sitk.Shrink(mask, [3] * 3))
    return np.exp(sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(whole)).astype(float))


def filled(mask: Mask) -> Mask:
    """Holes closed in every plane: marrow is inside its bone although the view cuts the shaft."""
    out = mask.copy()
    for axis in range(3):
        plane = np.zeros((3, 3, 3), bool)
        plane[tuple(1 if a == axis else slice(None) for a in range(3))] = True
        cross = plane & ndimage.generate_binary_structure(3, 1)
        out |= ndimage.binary_fill_holes(mask, structure=cross)
    return out


def _rim(mask: Mask) -> Mask:
    return np.asarray(mask & ~ndimage.binary_erosion(mask, border_value=1))


def main(argv: Sequence[str] | None = None) -> None:
    """Measure patients, one line each, and write all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--patients", nargs="+", default=EVALUATION)
    options = parser.parse_args(argv)
    pipeline = FusionPipeline.from_bundle()
    register = pipeline.inferer.register_stage(pipeline.network)
    rows = {}
    print("Fat, skin, bone: mm between the contours of CT and MR; moved: from the headers, mm.\n")
    print(
        "| patient | headers | ours | moved | best | moved | from ours | other starts within 3 mm |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for patient in options.patients:
        folder = options.data / "3d_sarcoma_ct_mr_pet" / patient
        files = (("ct", f"{patient}_ct.nii.gz"), ("mr", f"{patient}_mr-t1_space-ct.nii.gz"))
        ct, mr = (read_image(folder / name, key)[0].in_canonical_axes() for key, name in files)
        rows[patient] = row = measure(ct, mr, register)
        headers, ours, best = (
            ", ".join(f"{v:.1f}" for v in row[k].values()) for k in ("headers", "ours", "best")
        )
        near = sum(one["from_best_mm"] < 3 for one in row["starts"][1:])
        moves = [f"{row[k]:.1f}" for k in ("ours_moved_mm", "moved_mm", "ours_from_best_mm")]
        cells = [patient, headers, ours, moves[0], best, *moves[1:], f"{near} of {_STARTS - 1}"]
        print(f"| {' | '.join(cells)} |", flush=True)
        options.output.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
