"""``fusion-pipeline info``: what is installed, and what an image is read as."""

import argparse
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from fusion_pipeline import __version__
from fusion_pipeline.cli.arguments import add_bundle, keyed_path, new_command
from fusion_pipeline.cli.terminal import logger

if TYPE_CHECKING:
    from fusion_pipeline.cli.arguments import Commands

_SUMMARY = "say what is installed, which devices there are, and what an image is read as"
_EPILOG = "fusion-pipeline info ct=ct.nii.gz mr_t1=mr_dicom/ reads images as a run would"
_PACKAGES = ("torch", "monai", "SimpleITK", "pydicom", "nibabel", "pytorch-lightning")
_GIB = 2**30


def add_command(commands: "Commands", argv: list[str]) -> None:
    """Arguments of ``info``."""
    del argv
    info = new_command(commands, "info", _info, summary=_SUMMARY, epilog=_EPILOG, output=False)
    info.add_argument(
        "images",
        nargs="*",
        type=keyed_path,
        metavar="KEY=PATH",
        help="images to read: shape, spacing, orientation, units and warnings of each",
    )
    add_bundle(info, "the two packaged ones")


def _info(args: argparse.Namespace) -> int:
    """``fusion-pipeline info``."""
    from fusion_pipeline.pipeline import bundle_for

    if args.images:
        for key, path in args.images:
            _log_image(key, path)
        return 0
    logger.info("fusion-pipeline %s, Python %s", __version__, platform.python_version())
    logger.info(", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES))
    _log_machine()
    bundles = [bundle_for(3), bundle_for(2)] if args.bundle is None else [args.bundle]
    for folder in bundles:
        _log_bundle(folder)
    return 0


def _log_machine() -> None:
    """Processor, memory, and the GPUs that torch can use."""
    import psutil
    import torch

    memory = psutil.virtual_memory()
    logger.info(
        "cpu: %d cores, %d threads of torch, %.1f GiB memory, %.1f GiB free",
        os.cpu_count() or 1,
        torch.get_num_threads(),
        memory.total / _GIB,
        memory.available / _GIB,
    )
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        logger.info("cuda:%d: %s, %.1f GiB", index, gpu.name, gpu.total_memory / _GIB)
    if not torch.cuda.is_available():
        logger.info("cuda: none that torch %s can use", torch.__version__)


def _log_bundle(folder: Path) -> None:
    """Name, version and weights of a bundle."""
    from fusion_pipeline.data import InputError

    try:
        about = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))
        title, version = about["name"], about["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder}: expected a bundle with configs/metadata.json, got none that can be read; "
            "name the bundle's folder"
        ) from error
    weights = folder / "models" / "model.pt"
    size = (
        f"weights of {weights.stat().st_size / 2**20:.1f} MiB"
        if weights.is_file()
        else ("no weights")
    )
    logger.info("%s %s, %s: %s", title, version, size, folder)


def _log_image(key: str, path: str) -> None:
    """What an image is read as."""
    import nibabel as nib
    import numpy as np

    from fusion_pipeline.data import read_image

    image, messages = read_image(path, key)
    shape = " x ".join(str(n) for n in image.shape)
    spacing = " x ".join(f"{mm:.3g}" for mm in image.spacing)
    axes = "".join(nib.aff2axcodes(image.affine)) if image.spatial_dims == 3 else "2D"
    low, middle, high = np.percentile(image.array.numpy(), (1, 50, 99))
    logger.info(
        "%s (%s): %s, %s voxels, %s mm, axes %s, %s, 1 %% to 99 %% of the values %.4g to %.4g, "
        "median %.4g",
        key, path, image.modality, shape, spacing, axes, image.units, low, high, middle,
    )  # fmt: skip
    for message in messages:
        logger.info("  %s", message)


__all__ = ["add_command"]
