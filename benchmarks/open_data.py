"""The open training data as small files with a datalist: what the recipe trains on.

    python benchmarks/open_data.py --data ../shared/data/open --out runs/open [--spatial-dims 2]

3D: the 20 training patients of the sarcoma collection (CT, T1 MR, FDG-PET; CC BY 3.0; Vallières
2015, TCIA) at 2 mm, the CT and the PET cut to 30 mm around the MR, and eight painted training
heads, since no patient's head is in the collection. 2D: slices of both, half of them as 8-bit
pictures. Label maps of the training subjects (Apache-2.0) at 2 mm, for 2D at 1 mm. The seven
evaluation patients and the evaluation heads are not among them.

``cases.json`` keeps four patients for validation; ``registration.json`` trains on all of them: the
registration is validated on painted pairs, whose truth is exact. An image whose headers agree
with the CT's is called aligned (``transform: none``): each PET, and the MR of five patients; of the
others the MR is 4 mm off and more. About 60 MB (3D) and 25 MB (2D); takes five minutes on one core.
"""

import argparse
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from painted_heads import painted_head
from registration_cases import HEAD
from sarcoma_grids import EVALUATION, KEYS
from slices import contrasts_of_head, training_slices
from torch import Tensor

from fusion_pipeline.data import read_image
from fusion_pipeline.geometry import resample, rescaled_affine
from fusion_pipeline.training.label_maps import load_label_map

SPACING = 2.0  # mm
MARGIN = 30.0  # mm around the MR: what else a window may show
FAIR_MR = ("sts002", "sts014", "sts024", "sts025", "sts036")  # aligned to 4 mm, see datalist.json
VALIDATION = ("sts002", "sts014", "sts017", "sts025")
EVALUATION_HEADS = ("15", "16", "17", "19", "20")
EVERY = 6  # slices from one to the next
# without 05 and 11, whose label maps painted validation samples are made of
HEADS = ("02", "03", "06", "07", "08", "10", "12", "13")


def volumes(data: Path, out: Path) -> None:
    """Copies of the training patients, painted heads, and two datalists."""
    entries = json.loads((data / "datalist.json").read_text())["ct_mr_pet_3d"]
    cases = [_volume(entry, data, out) for entry in entries if entry["id"] not in EVALUATION]
    heads = [_head(number, head, data, out) for number, head in enumerate(HEADS)]
    _write_lists([*cases, *heads], out)


def _head(number: int, head: str, data: Path, out: Path) -> dict[str, str]:
    """One training head, painted as CT, T1 or T2, and PET on one lattice."""
    folder = out / f"head{head}"
    folder.mkdir(parents=True, exist_ok=True)
    case = {"id": folder.name, "reference": "ct", "mr_transform": "none", "pet_transform": "none"}
    for key, contrast in zip(KEYS, contrasts_of_head(number), strict=True):
        image = painted_head(data / HEAD.format(head), key, contrast)
        path = _save(image.array[0], image.affine, folder / f"{key}.nii.gz", key)
        case[key] = str(path.relative_to(out))
    return case


def _volume(entry: dict[str, str], data: Path, out: Path) -> dict[str, str]:
    """One patient, cut to what its MR shows."""
    images = {key: read_image(str(data / entry[key]), key)[0] for key in KEYS}
    mr = images["mr"]
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in mr.shape])).reshape(3, -1)
    world = mr.affine[:3, :3] @ corners + mr.affine[:3, 3:]
    low, high = world.min(1) - MARGIN, world.max(1) + MARGIN
    case = {"id": entry["id"], "reference": "ct", "pet_transform": "none"}
    if entry["id"] in FAIR_MR:
        case["mr_transform"] = "none"
    folder = out / entry["id"]
    folder.mkdir(parents=True, exist_ok=True)
    for key, image in images.items():
        affine, shape = rescaled_affine(image.affine, image.shape, SPACING)
        inverse = np.linalg.inv(affine)
        box = inverse[:3, :3] @ np.stack([low, high], 1) + inverse[:3, 3:]
        first = np.clip(np.floor(box.min(1)), 0, None).astype(int)
        last = np.minimum(np.ceil(box.max(1)).astype(int) + 1, shape)
        affine[:3, 3] += affine[:3, :3] @ first
        to_image = torch.from_numpy(np.linalg.inv(image.affine) @ affine)
        fill = float(image.fill_value)
        copy = resample(image.array[None].float(), to_image, tuple(last - first), fill=fill)[0, 0]
        case[key] = str(_save(copy, affine, folder / f"{key}.nii.gz", key).relative_to(out))
    return case


def _save(image: Tensor, affine: np.ndarray, path: Path, key: str) -> Path:
    """Whole numbers: 4 HU, which is below the noise, or a thousandth of the largest value."""
    array = image.numpy()
    step = 4.0 if key == "ct" else float(np.abs(array).max()) / 1000 or 1.0
    stored = nib.Nifti1Image(np.round(array / step).astype(np.int16), affine)
    stored.header.set_slope_inter(step, 0.0)
    stored.header.set_xyzt_units("mm")
    nib.save(stored, path)
    return path


def slices(data: Path, cache: Path, out: Path, seed: int) -> None:
    """Slices of the training patients and of painted training heads."""
    cases = []
    for one in training_slices(data, cache, HEADS, seed, every=EVERY):
        folder = out / one.id
        folder.mkdir(parents=True, exist_ok=True)
        case = {"id": one.id, "patient": one.patient, "reference": "ct", "pet_transform": "none"}
        if one.patient in FAIR_MR or one.painted:
            case["mr_transform"] = "none"
        for key, image in zip(KEYS, one.images, strict=True):
            path = folder / f"{key}.nii.gz"
            if one.picture:  # whole numbers already; as NIfTI, since a datalist is of one format
                nib.save(nib.Nifti1Image(image.numpy().astype(np.uint8), np.eye(4)), path)
            else:
                _save(image, np.eye(4), path, key)
            case[key] = str(path.relative_to(out))
        cases.append(case)
    _write_lists(cases, out)


def _write_lists(cases: list[dict[str, str]], out: Path) -> None:
    aside = [c for c in cases if c["id"].split("-")[0] in VALIDATION]
    rest = [c for c in cases if c not in aside]
    for name, training, validation in (("cases", rest, aside), ("registration", cases, [])):
        content = {"training": training, "validation": validation}
        (out / f"{name}.json").write_text(json.dumps(content, indent=1))
    print(f"{out}: {len(rest)} cases to train on, {len(aside)} to validate with")


def label_maps(data: Path, out: Path, spacing: float) -> None:
    """The training subjects' label maps."""
    files = sorted((data / "3d_brain_labelmaps").glob("*.nii.gz"))
    files = [f for f in files if f.name[:-7][-2:] not in EVALUATION_HEADS or "lab2im" in f.name]
    files.append(data / "3d_abdomen_ct_mr/totalseg_abdomen_ct_labels_3mm.nii.gz")
    folder = out / "label_maps"
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        labels = load_label_map(file, spacing)[0].numpy()
        nib.save(nib.Nifti1Image(labels, np.diag([spacing] * 3 + [1.0])), folder / file.name)
    print(f"{folder}: {len(files)} label maps")


def main() -> None:
    """Read the arguments and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--spatial-dims", type=int, choices=(2, 3), default=3)
    parser.add_argument("--cache", type=Path, default=Path("/tmp/hf/cache"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    label_maps(options.data, options.out, SPACING if options.spatial_dims == 3 else 1.0)
    if options.spatial_dims == 3:
        volumes(options.data, options.out)
    else:
        slices(options.data, options.cache, options.out, options.seed)


if __name__ == "__main__":
    main()
