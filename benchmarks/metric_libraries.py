"""Our metrics beside torchmetrics', MONAI's and scikit-image's: value, seconds, memory.

    python -m benchmarks.metric_libraries [--size 128]

prints a Markdown table. Both run on one phantom, each in a process of its own; memory is what the
process needs at its peak beyond what it held before. docs/decisions/0024-metrics.md quotes it.
"""

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable

import numpy as np
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance
from monai.metrics.regression import compute_ssim_and_cs
from scipy import ndimage
from skimage.metrics import normalized_mutual_information as skimage_nmi
from skimage.metrics import structural_similarity
from torchmetrics.functional.clustering import mutual_info_score
from torchmetrics.functional.image import (
    structural_similarity_index_measure,
    visual_information_fidelity,
)
from torchmetrics.functional.segmentation import hausdorff_distance

from fusion_pipeline import metrics

SPACING = (1.0, 1.5, 3.0)


def phantom(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Smooth noise in [0, 1], black outside a ball."""
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    grid = np.indices(shape)
    radius = sum(((g / n - 0.5) / 0.4) ** 2 for g, n in zip(grid, shape, strict=True))
    return np.asarray(smooth * (radius < 1))


def comparisons(shape: tuple[int, ...]) -> dict[str, Callable[[], float]]:
    """Each measure by each library; the first of a group is ours."""
    a, b = phantom(shape, 0), phantom(shape, 1)
    mixed = 0.6 * a + 0.4 * b
    x, y = (torch.from_numpy(v)[None, None] for v in (mixed, a))
    r, s = (v > 0.45 for v in (a, b))
    regions = [torch.from_numpy(v)[None, None] for v in (r, s)]
    levels = [torch.from_numpy(np.round(255 * v)).long().flatten() for v in (mixed, a)]
    spacing = SPACING[: len(shape)]
    d, n = len(shape), 7 ** len(shape)
    k2 = 0.03 * ((n - 1) / n) ** 0.5  # turns torchmetrics' covariance into the sample's
    # torchmetrics' VIF takes a batch of slices; a picture is one
    slices = [
        (255 * v).movedim(-1, 0)[:, None] if d == 3 else 255 * v[None, None]
        for v in (x[0, 0], y[0, 0])
    ]

    def theirs(constant: float) -> float:
        return structural_similarity_index_measure(
            x, y, gaussian_kernel=False, kernel_size=7, data_range=1.0, k2=constant
        ).item()

    return {
        "SSIM ours": lambda: metrics.ssim(mixed, a),
        "SSIM scikit-image": lambda: structural_similarity(mixed, a, win_size=7, data_range=1.0),
        "SSIM torchmetrics": lambda: theirs(0.03),
        "SSIM torchmetrics, k2 adapted": lambda: theirs(k2),
        "SSIM MONAI": lambda: (
            compute_ssim_and_cs(x, y, d, [7] * d, [1.5] * d, 1.0, "uniform")[0].mean().item()
        ),
        "VIF ours": lambda: metrics.vif(mixed, a),
        "VIF torchmetrics": lambda: visual_information_fidelity(*slices).item(),
        "MI ours": lambda: metrics.mutual_information(mixed, a),
        "MI torchmetrics": lambda: mutual_info_score(*levels).item(),
        "NMI ours": lambda: metrics.normalized_mutual_information(mixed, a),
        "NMI scikit-image": lambda: skimage_nmi(mixed, a, bins=64),
        "Dice ours": lambda: metrics.dice(r, s),
        "Dice MONAI": lambda: compute_dice(*regions).item(),
        "HD95 ours": lambda: metrics.hd95(r, s, spacing),
        "HD95 MONAI": lambda: compute_hausdorff_distance(
            *regions, percentile=95, spacing=spacing, include_background=True
        ).item(),
        "HD torchmetrics (no percentile)": lambda: hausdorff_distance(
            *(v.long() for v in regions),
            1,
            include_background=True,
            spacing=list(spacing),
            input_format="one-hot",
        ).item(),
    }


def measured(name: str, shape: tuple[int, ...], answers: multiprocessing.Queue) -> None:
    """One measure in this process."""
    function = comparisons(shape)[name]
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    try:
        value = f"{function():.9f}"
    except (ValueError, RuntimeError) as error:
        value = str(error).splitlines()[0][:60]
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    answers.put((value, seconds, peak / 1024))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=128)
    size = parser.parse_args().size
    print("| measure | shape | value | s | MB |\n|---|---|---|---|---|")
    context = multiprocessing.get_context("fork")
    for shape in ((size, size + 9), (size, size, size)):
        for name in comparisons(shape):
            answers: multiprocessing.Queue = context.Queue()
            process = context.Process(target=measured, args=(name, shape, answers))
            process.start()
            value, seconds, mb = answers.get(timeout=300)
            process.join()
            sides = "×".join(map(str, shape))
            print(f"| {name} | {sides} | {value} | {seconds:.2f} | {mb:.0f} |", flush=True)


if __name__ == "__main__":
    main()
