"""Label maps that are painted beside the made-up bodies."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fusion_pipeline.data import InputError, read_image
from fusion_pipeline.geometry import resample, rescaled_affine


def label_map_paths(where: Path | str | Sequence[Path | str] | None) -> list[Path]:
    """The files: a folder's NIfTI files, or those listed; sorted.

    Raises:
        InputError: there is none.
    """
    if where is None:
        return []
    listed = [where] if isinstance(where, str | Path) else list(where)
    paths = [
        path
        for one in listed
        for path in (sorted(Path(one).glob("*.nii*")) if Path(one).is_dir() else [Path(one)])
    ]
    missing = [path for path in paths if not path.is_file()]
    if missing or (listed and not paths):
        came = f"no {missing[0]}" if missing else "none"
        raise InputError(
            f"training: expected label maps in {where}, got {came}; correct label_maps"
        )
    return paths


def load_label_map(path: Path, spacing: float) -> Tensor:
    """Read a label map onto an isotropic lattice.

    Args:
        path: a file of integers.
        spacing: mm.

    Returns:
        ``(1, *S)`` uint8, numbered anew in the order of the labels, from the background 0.

    Raises:
        InputError: it cannot be read, has more than 256 labels, or no background or one alone.
    """
    image, _ = read_image(str(path), "mr")
    values, numbered = np.unique(image.array.numpy(), return_inverse=True)
    if len(values) > 256:
        raise InputError(
            f"training ({path}): expected a label map, got {len(values)} different values; "
            "correct label_maps"
        )
    if values[0] != 0 or len(values) < 2:
        raise InputError(
            f"training ({path}): expected a label map of the background 0 and labels above it, got "
            f"values from {values[0]:g} to {values[-1]:g}; number it anew or correct label_maps"
        )
    affine, shape = rescaled_affine(image.affine, image.shape, spacing)
    to_image = torch.from_numpy(np.linalg.inv(image.affine) @ affine)
    labels = torch.from_numpy(numbered.reshape(image.array.shape)).float()
    return resample(labels[None], to_image, shape, mode="nearest", fill=None)[0].to(torch.uint8)
