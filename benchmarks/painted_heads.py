"""Heads painted as CT, T1, T2 or PET from label maps of real anatomy: dense truth, any contrast.

The label maps are FreeSurfer's with the extracerebral classes of SimNIBS charm (5xx), 1 mm. Soft
tissue outside the skull is one class there; it is split into fat and muscle by a smooth noise, the
same one for every contrast of a head.
"""

import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fusion_pipeline.data import Image
from fusion_pipeline.synthesis.frame import Tissue
from fusion_pipeline.synthesis.noise import smooth_noise
from fusion_pipeline.synthesis.scanner import acquire, tissue_image
from fusion_pipeline.synthesis.tissues import Contrast

_UNITS = {"ct": "HU", "mr": "a.u.", "mr_t2": "a.u.", "pet": "SUV"}
_MARGIN = 8  # voxels of air around the head
_OTHER_TISSUE = 507
_TISSUES: dict[Tissue, tuple[int, ...]] = {
    Tissue.WHITE: (2, 7, 16, 28, 41, 46, 60, 77, 85, 251, 252, 253, 254, 255, 512, 530),
    Tissue.GREY: (3, 8, 17, 18, 42, 47, 53, 54, 136, 137, 163, 164),
    Tissue.DEEP_GREY: (10, 11, 12, 13, 26, 49, 50, 51, 52, 58),
    Tissue.CSF: (4, 5, 14, 15, 24, 31, 43, 44, 63, 72),
    Tissue.BLOOD: (30, 62, 502, 514),
    Tissue.NECROSIS: (25, 57),  # lesions
    Tissue.EYE: (506,),
    Tissue.MUSCLE: (508,),
    Tissue.MUCOSA: (509,),
    Tissue.SKIN: (511,),
    Tissue.COMPACT_BONE: (515,),
    Tissue.SPONGY_BONE: (516,),
}


def painted_head(path: Path, key: str, contrast: Contrast, *, halved: bool = True) -> Image:
    """A head of a label map at 2 mm, or at its own 1 mm, as a scanner would show it.

    Args:
        path: of the label map, 1 mm.
        key: name of the image.
        contrast: what to paint; the same file and contrast give the same image.
        halved: means over blocks of 2 × 2 × 2 voxels; else the label map's own 1 mm.
    """
    labels, affine = label_map(path)
    generator = torch.Generator().manual_seed(zlib.crc32(path.name.encode()))
    tissues = tissues_of(labels, generator)
    generator.manual_seed(zlib.crc32(f"{path.name} {contrast}".encode()))
    ideal = tissue_image(tissues, contrast, 1.0, generator)
    if halved:
        ideal, affine = F.avg_pool3d(ideal[None, None], 2)[0, 0], halved_affine(affine)
    return Image(acquire(ideal, contrast, generator)[None], affine, key, _UNITS[contrast])


def label_map(path: Path) -> tuple[Tensor, np.ndarray]:
    """Labels ``(i, j, k)`` int64 in the file's axes, cut to the head and a margin; its affine."""
    image = nib.load(path)  # type: ignore[attr-defined]
    labels = torch.from_numpy(np.asarray(image.dataobj).astype(np.int64))  # type: ignore[attr-defined]
    inside = torch.nonzero(labels > 0)
    low = (inside.amin(0) - _MARGIN).clamp_min(0)
    high = torch.minimum(inside.amax(0) + 1 + _MARGIN, torch.tensor(labels.shape))
    affine = np.array(image.affine)  # type: ignore[attr-defined]
    affine[:3, 3] += affine[:3, :3] @ low.numpy()
    return labels[
        tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))
    ], affine


def halved_affine(affine: np.ndarray) -> np.ndarray:
    """World_from_voxel of means over blocks of 2 × 2 × 2 voxels."""
    step = np.diag([2.0, 2.0, 2.0, 1.0])
    step[:3, 3] = 0.5
    return affine @ step


def tissues_of(labels: Tensor, generator: torch.Generator) -> Tensor:
    """`Tissue` of labels ``(i, j, k)``; classes that nobody named are air."""
    table = torch.full((int(labels.max()) + 1,), int(Tissue.AIR))
    for tissue, numbers in _TISSUES.items():
        table[[n for n in numbers if n < len(table)]] = int(tissue)
    out = table[labels]
    lean = smooth_noise(labels.shape, 12.0, generator)[0] > -0.3
    soft = torch.where(lean, int(Tissue.MUSCLE), int(Tissue.FAT))
    return torch.where(labels == _OTHER_TISSUE, soft, out)
