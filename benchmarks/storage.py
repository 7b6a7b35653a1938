"""One patient stored in several ways: the registered images must not differ.

    python benchmarks/storage.py --data ../shared/data/open --patient sts014 --output out/storage

The moved MR (a known rigid move) is written as RAS, LPS, LAS and permuted NIfTI, NRRD, MetaImage
and a DICOM series, and the CT as LPS; the reference stays on its grid, so that registered images
can be subtracted. Printed for each: mean and 95th percentile of the distance between its map and
the first one's in the body (mm), and the mean absolute difference of the registered images there,
as a share of the image's range. Voxels are the same numbers throughout: what differs is the path
that the optimiser takes.
"""

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import torch
from registration_cases import Spec, make, pairs

from fusion_pipeline.data import Image, read_image, write_image
from fusion_pipeline.pipeline import FusionPipeline


def main(arguments: list[str] | None = None) -> None:
    """Write the copies, register each, print the differences."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data/open"))
    parser.add_argument("--patient", default="sts014", help="a training patient of the benchmark")
    parser.add_argument("--output", type=Path, required=True, help="folder for the copies")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    pair = next(p for p in pairs(options.data, training=True) if p.patient == options.patient)
    case = make(Spec(pair, "rigid", 1))
    options.output.mkdir(parents=True, exist_ok=True)
    whole = case.moving.with_array(case.moving.array.round())  # DICOM holds whole numbers
    fixed = {"as it is": case.fixed, "LPS": _copy(case.fixed, "LPS", options.output)}
    moving = {name: _copy(whole, name, options.output) for name in _WAYS}
    pipeline = FusionPipeline.from_bundle()
    register = pipeline.inferer.register_stage(pipeline.network)
    first, shown = None, None
    runs = [("as it is", name) for name in _WAYS] + [("LPS", "RAS")]
    for fixed_way, way in runs:
        found = register(fixed[fixed_way], moving[way])
        points = found.map.points(case.points)
        warped = found.warp(moving[way], case.fixed).array
        error = np.linalg.norm(points - case.truth, axis=1).mean()
        if first is None or shown is None:
            first, shown = points, warped
        apart = np.linalg.norm(points - first, axis=1)
        body = case.fixed.array > -300
        span = float(shown.max() - shown.min())
        unlike = float((warped - shown).abs()[body].mean()) / span
        print(
            f"MR as {way}, CT {fixed_way}: {found.transform}, TRE {error:.2f} mm, map "
            f"{apart.mean():.3f} mm apart (p95 {np.percentile(apart, 95):.3f}), "
            f"image {unlike:.3%} of the range",
            flush=True,
        )


_WAYS = ("RAS", "LPS", "LAS", "PSR", "nrrd", "mha", "dicom")


def _copy(image: Image, way: str, folder: Path) -> Image:
    """Write the image in one way and read it back."""
    path = folder / f"{image.key}_{way}.nii.gz"
    write_image(image, path)
    if way.isupper():
        stored = nib.load(path)
        codes = nib.orientations.axcodes2ornt(way)
        turn = nib.orientations.ornt_transform(nib.io_orientation(stored.affine), codes)
        turned = stored.as_reoriented(turn)
        nib.save(turned, path)
    else:
        itk = sitk.ReadImage(str(path))
        path = folder / f"{image.key}.{way}" if way != "dicom" else folder / image.key
        if way == "dicom":
            _write_series(sitk.Cast(itk, sitk.sitkInt16), path)
        else:
            sitk.WriteImage(itk, str(path))
    back, _ = read_image(path, image.key)
    return back


def _write_series(image: sitk.Image, folder: Path) -> None:
    """One file per slice, with the elements that a reader needs."""
    folder.mkdir(exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    turn = image.GetDirection()
    for k in range(image.GetSize()[2]):
        one = image[:, :, k]
        place = image.TransformIndexToPhysicalPoint((0, 0, k))
        elements = {
            "0008|0060": "MR",
            "0008|0018": f"1.2.3.4.{k + 1}",
            "0020|000e": "1.2.3.4",
            "0020|0013": str(k + 1),
            "0020|0032": "\\".join(f"{v:.6f}" for v in place),
            "0020|0037": "\\".join(f"{turn[i]:.6f}" for i in (0, 3, 6, 1, 4, 7)),
        }
        for tag, value in elements.items():
            one.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{k:04d}.dcm"))
        writer.Execute(one)


if __name__ == "__main__":
    main()
