"""CT, MR and PET of the open sarcoma patients on the CT's grid, by their headers; cached."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from fusion_pipeline.geometry import resample, spacing_of
from fusion_pipeline.transforms import BodyMask, FieldOfView, NormalizeModality

KEYS = ("ct", "mr", "pet")
EVALUATION = ("sts008", "sts015", "sts026", "sts032", "sts035", "sts043", "sts047")


@dataclass(frozen=True)
class Patient:
    """One patient on the CT's grid.

    Attributes:
        id: name of the patient.
        original: ``(3, *S)`` HU, a.u., SUV.
        normalized: ``(3, *S)`` z-scored within the body.
        valid: ``(3, *S)`` 0/1, fields of view.
        body: ``(3, *S)`` 0/1, body masks within the fields of view.
        affine: ``(4, 4)`` world_from_voxel, RAS mm.
    """

    id: str
    original: Tensor
    normalized: Tensor
    valid: Tensor
    body: Tensor
    affine: np.ndarray

    @property
    def spacing(self) -> np.ndarray:
        """Voxel size in mm."""
        return spacing_of(self.affine)


def patient_ids(open_data: Path, *, evaluation: bool) -> list[str]:
    """Names of the evaluation patients, or of all the others (which training may use)."""
    entries = json.loads((open_data / "datalist.json").read_text())["ct_mr_pet_3d"]
    return [e["id"] for e in entries if (e["id"] in EVALUATION) == evaluation]


def patients(
    open_data: Path, cache: Path, *, evaluation: bool, ids: Collection[str] | None = None
) -> list[Patient]:
    """The evaluation patients, or all the others (which training may use).

    Args:
        open_data: the folder of ``datalist.json``.
        cache: folder for what was resampled.
        evaluation: which of the two groups.
        ids: only these of them.
    """
    entries = json.loads((open_data / "datalist.json").read_text())["ct_mr_pet_3d"]
    group = patient_ids(open_data, evaluation=evaluation)
    chosen = [e for e in entries if e["id"] in group and (ids is None or e["id"] in ids)]
    return [_patient(entry, open_data, cache) for entry in chosen]


def _patient(entry: dict[str, str], open_data: Path, cache: Path) -> Patient:
    path = cache / f"{entry['id']}.pt"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        torch.save(_prepared(entry, open_data), path)
    kept = torch.load(path, weights_only=True)
    arrays = {k: kept[k].float() for k in ("original", "normalized", "valid", "body")}
    return Patient(id=entry["id"], affine=kept["affine"].numpy(), **arrays)


def _prepared(entry: dict[str, str], open_data: Path) -> dict[str, Tensor]:
    affine, shape, parts = None, None, []
    for key in KEYS:
        file = nib.load(open_data / entry[key])
        array = torch.from_numpy(np.asarray(file.dataobj, dtype=np.float32))[None]
        if affine is None:
            affine, shape = file.affine, array.shape[1:]
        image_from_ct = torch.from_numpy(np.linalg.inv(file.affine) @ affine)
        seen = FieldOfView()(array).float()
        valid = resample(seen[None], image_from_ct, shape, fill=0.0)[0] > 0.999
        fill = -1000.0 if key == "ct" else 0.0
        on_ct = resample(array[None], image_from_ct, shape, fill=fill)[0]
        spacing = spacing_of(file.affine)
        body = BodyMask(key)(array, spacing).float()
        body = (resample(body[None], image_from_ct, shape, fill=0.0)[0] > 0.5) & valid
        parts.append((on_ct, NormalizeModality(key)(on_ct, body), valid, body))
    original, normalized, valid, body = (torch.cat(p) for p in zip(*parts, strict=True))
    return {
        "original": original,
        "normalized": normalized.half(),
        "valid": valid,
        "body": body,
        "affine": torch.from_numpy(affine),
    }
