"""The cases of registration.py: which pairs, moved how far, and the points that are judged."""

import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
import torch
import torch.nn.functional as F
from known_truth import Severity, known_map, moved_image
from painted_heads import halved_affine, painted_head

from fusion_pipeline.data import Image, read_image
from fusion_pipeline.geometry import apply_affine
from fusion_pipeline.synthesis.tissues import Contrast
from fusion_pipeline.transforms import BodyMask, FieldOfView

SEVERITIES: tuple[Severity, ...] = get_args(Severity)
# CT and MR of these agree to 2 to 4 mm by their headers: truth that is good to that much, but in
# sts026 (header_truth.py)
EVALUATION = ("sts015", "sts026", "sts032", "sts035", "sts043", "sts047")
# and of these training patients to about 4 mm: for tuning, never for a claim
TRAINING = ("sts002", "sts014", "sts024", "sts025", "sts036")
# heads whose label maps the network has not seen, and some that it has
EVALUATION_HEADS = ("15", "16", "17")
TRAINING_HEADS = ("02", "05", "08")
HEAD = "3d_brain_labelmaps/synthseg_brain_labels_subj{}.nii.gz"
_TCGA = "3d_brain_multicontrast/tcga-du-7294/tcga-du-7294_{}_sri24.nii.gz"
_TEMPLATE = "3d_brain_mni_templates/spm_avg152{}_mni2mm.nii.gz"
_PAINTED = {"ct": "CT", "mr": "T1", "pet": "PET"}
_POINTS = 4000


@dataclass(frozen=True)
class Pair:
    """Two aligned images on disk.

    Attributes:
        group: row of the table.
        patient: name of the patient or template.
        fixed: key and path.
        moving: key and path.
        source: what the paths hold: the image itself, one of 1 mm to be read in blocks of
            2 × 2 × 2 voxels, or a label map to be painted in the key's contrast.
    """

    group: str
    patient: str
    fixed: tuple[str, Path]
    moving: tuple[str, Path]
    source: Literal["image", "fine image", "label map"] = "image"


@dataclass(frozen=True)
class Spec:
    """A pair, how far its moving image is moved, and which draw of such a move.

    Attributes:
        pair: the images.
        severity: how far.
        draw: 1, 2, …
    """

    pair: Pair
    severity: Severity
    draw: int

    @property
    def key(self) -> dict[str, str | int]:
        """What tells the case from every other one."""
        return {
            "group": self.pair.group,
            "patient": self.pair.patient,
            "moving": self.pair.moving[0],
            "severity": self.severity,
            "draw": self.draw,
        }

    @property
    def seed(self) -> int:
        """The same whatever else runs; another one for each case."""
        name = f"{self.pair.patient} {self.pair.moving[0]} {self.severity} {self.draw}"
        return zlib.crc32(name.encode())


@dataclass(frozen=True)
class KnownCase:
    """Two images, points of the fixed one's body, and where they went.

    Attributes:
        fixed: the reference.
        moving: the moved image, cut to the fixed grid.
        points: ``(n, 3)`` RAS mm in the fixed world.
        truth: ``(n, 3)`` RAS mm in the moved world.
        in_view: ``(n,)`` bool: the moved image shows that point.
    """

    fixed: Image
    moving: Image
    points: np.ndarray
    truth: np.ndarray
    in_view: np.ndarray


def pairs(data: Path, *, training: bool) -> list[Pair]:
    """The pairs of a data folder; of the training patients sarcoma and painted heads only.

    Args:
        data: the folder of ``datalist.json``.
        training: training patients in place of evaluation patients.
    """
    entries = json.loads((data / "datalist.json").read_text(encoding="utf-8"))["ct_mr_pet_3d"]
    by_id = {entry["id"]: entry for entry in entries}
    suffix = " (training)" if training else ""
    out = [
        Pair(
            f"sarcoma CT-{key.upper()}{suffix}",
            patient,
            ("ct", data / by_id[patient]["ct"]),
            (key, data / by_id[patient][key]),
        )
        for key in ("mr", "pet")
        for patient in (TRAINING if training else EVALUATION)
    ]
    for a, b in (("ct", "mr"), ("mr", "pet")):
        group = f"painted {_PAINTED[a]}-{_PAINTED[b]}{suffix}"
        for head in TRAINING_HEADS if training else EVALUATION_HEADS:
            path = data / HEAD.format(head)
            out.append(Pair(group, f"head{head}", (a, path), (b, path), "label map"))
    if training:  # the others are for evaluation only: their licences and their number say so
        return out
    for name in ("t2", "flair"):
        t1, other = (data / _TCGA.format(n) for n in ("t1", name))
        group = f"tcga T1-{name.upper()}"
        files = ("mr_t1", t1), (f"mr_{name}", other)
        out.append(Pair(group, "tcga-du-7294", *files, "fine image"))
    t1, t2 = (data / _TEMPLATE.format(n) for n in ("T1", "T2"))
    return [*out, Pair("templates T1-T2", "spm_avg152", ("mr_t1", t1), ("mr_t2", t2))]


def specs(chosen: Sequence[Pair], severities: Sequence[Severity], draws: int) -> Iterator[Spec]:
    """All cases: every pair and severity once before any has a second draw."""
    for draw in range(1, draws + 1):
        for severity in severities:
            for pair in chosen:
                yield Spec(pair, severity, draw)


def make(spec: Spec) -> KnownCase:
    """Read the pair and move its moving image."""
    fixed, still = (_read(*file, spec.pair.source) for file in (spec.pair.fixed, spec.pair.moving))
    truth = known_map(spec.seed, spec.severity, fixed.affine, fixed.shape)
    moved = moved_image(
        still.array[0].double().numpy(),
        still.affine,
        truth,
        (fixed.affine, fixed.shape),
        outside=still.fill_value,
        seed=spec.seed,
    )
    moving = Image(torch.from_numpy(moved.astype(np.float32))[None], fixed.affine, still.key)
    points = body_points(fixed)
    targets = truth(points)
    in_view = shows(still, points) & within(fixed, targets)
    return KnownCase(fixed, moving, points, targets, in_view)


def _read(key: str, path: Path, source: str) -> Image:
    """An image, read or painted."""
    if source == "label map":
        return painted_head(path, key, cast(Contrast, key))
    image, _ = read_image(path, key)
    if source == "image":
        return image
    array = F.avg_pool3d(image.array[None], 2)[0]
    return image.with_array(array, affine=halved_affine(image.affine))


def body_points(fixed: Image) -> np.ndarray:
    """Voxel centres strewn over the body, the same ones each time."""
    body = BodyMask(fixed.modality)(fixed.array, fixed.spacing.tolist())[0].numpy()
    index = np.argwhere(body)
    chosen = np.random.default_rng(0).permutation(len(index))[:_POINTS]
    return apply_affine(fixed.affine, index[chosen])


def shows(image: Image, points: np.ndarray) -> np.ndarray:
    """Whether an image has seen the points: inside its lattice, and not in its padding."""
    inside = within(image, points)
    voxels = np.rint(apply_affine(np.linalg.inv(image.affine), points[inside])).astype(int)
    inside[inside] = FieldOfView()(image.array)[0].numpy()[tuple(voxels.T)]
    return inside


def within(image: Image, points: np.ndarray) -> np.ndarray:
    """Whether points lie between the first and the last voxel centres of a lattice."""
    voxels = apply_affine(np.linalg.inv(image.affine), points)
    return np.asarray(((voxels >= 0) & (voxels <= np.asarray(image.shape) - 1)).all(-1))
