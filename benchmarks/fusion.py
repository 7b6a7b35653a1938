r"""Fusion on the evaluation patients, source by source, against the traditional rules.

    python benchmarks/fusion.py --judge ../shared/bench --out docs/figures

The networks are the packaged bundle's, or others (``--harmonization``, ``--fusion``: state dicts).
CT, MR and PET by their headers, harmonized by the network; every rule fuses the same sources. Pairs
and the triple are judged on three slices inside the MR's field of view (at a quarter, a half and
three quarters of it): pairs by the neutral ``source_wise.py`` of ``--judge`` (8 bit, 2D) where it
is, and all by ``fusion_pipeline.metrics.fusion_scores``. Last, the triple is fused on the CT's
whole grid as well, as a pipeline does it: how far is that from what the MR's box alone gives? And
with an MR that is cut in the middle: what does its end change before it?
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from sarcoma_grids import KEYS, Patient, patients
from torch import Tensor, nn

from fusion_pipeline.baselines import FuseBy, average, laplacian_pyramid, maximum, pca
from fusion_pipeline.data import Image
from fusion_pipeline.fuse import Fuse, Fusion, faded
from fusion_pipeline.metrics import fusion_scores
from fusion_pipeline.networks.fusion_net import FusionNet
from fusion_pipeline.networks.harmonization_net import HarmonizationNet
from fusion_pipeline.networks.kinds import kind_of
from fusion_pipeline.pipeline import FusionPipeline

GROUPS = (("ct", "mr"), ("ct", "pet"), ("mr", "pet"), ("ct", "mr", "pet"))
NAMES = ("q_min", "vif_min", "ssim_min", "q", "nabf", "scd", "entropy")
SHOWN = 0.06  # what is no brighter is air
Judge = Callable[[np.ndarray, np.ndarray, np.ndarray], dict[str, float]]


def harmonized(network: HarmonizationNet, patient: Patient) -> dict[str, Image]:
    """The three images in [0, 1]."""
    out = {}
    for m, key in enumerate(KEYS):
        with torch.no_grad():
            array = network(
                *(patient.original[m][None, None], kind_of(key)),
                *(patient.valid[m][None, None], patient.body[m][None, None]),
            )[0]
        out[key] = Image(array, patient.affine, key)
    return out


def whole_against_box(
    rule: Fuse, images: dict[str, Image], seen: dict[str, Tensor], box: tuple[slice, ...]
) -> dict[str, float]:
    """Mean differences of fused image and weights, within the box less a rim of 8 voxels."""
    inside = (slice(None), *box)
    whole = rule(images, seen)
    cut = {key: image.with_array(image.array[inside]) for key, image in images.items()}
    alone = rule(cut, {key: one[inside] for key, one in seen.items()})
    within = (slice(None), *[slice(8, -8)] * 3)
    pairs = (
        ("fused", whole.fused.array, alone.fused.array),
        ("weights", whole.weights, alone.weights),
    )
    return {name: float((a[inside] - b)[within].abs().mean()) for name, a, b in pairs}


def cut_against_whole(
    rule: Fuse, images: dict[str, Image], seen: dict[str, Tensor]
) -> dict[str, float]:
    """What the end of an MR changes, which is cut in the middle of the first axis.

    Means over what is shown: how much the fused image differs in the 30 mm before the MR fades; how
    far it lies beyond that with the whole MR and that without where the MR fades; and how much all
    weights differ there from those of the whole MR by what it keeps.
    """
    step = images["mr"].spacing[0]
    half, fade, before = images["mr"].shape[0] // 2, int(10 / step) + 2, int(30 / step)
    beyond = seen["mr"].clone()
    beyond[:, :half] = 0
    whole, cut = rule(images, seen), rule(images, {**seen, "mr": beyond})
    without = rule(*({k: v for k, v in given.items() if k != "mr"} for given in (images, seen)))
    shown = torch.stack([image.array[0] > SHOWN for image in images.values()]).any(0)
    fading, deep = slice(half, half + fade), slice(half + fade, half + fade + before)
    ends = torch.stack([fusion.fused.array[0] for fusion in (whole, without)])
    found = cut.fused.array[0]
    outside = (found - ends.amax(0)).clamp_min(0) + (ends.amin(0) - found).clamp_min(0)
    mr = list(images).index("mr")
    expected = whole.weights.clone()
    expected[mr] *= faded((beyond[0] > 0.5).float(), images["mr"].spacing.tolist())
    expected /= expected.sum(0, keepdim=True).clamp_min(1e-6)
    apart = (cut.weights - expected).abs().mean(0)

    def mean(values: Tensor, where: slice) -> float:
        return float(values[where][shown[where]].mean())

    return {
        "fused, before the fade": mean((found - ends[0]).abs(), deep),
        "fused, in the fade, beyond those with and without MR": mean(outside, fading),
        "weights, in the fade": mean(apart, fading),
    }


def _box(patient: Patient) -> tuple[slice, ...]:
    """Where MR sees something."""
    places = torch.nonzero(patient.valid[KEYS.index("mr")] > 0)
    low, high = places.amin(0), places.amax(0) + 1
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))


def judge(fusion: Fusion, sources: dict[str, Image], neutral: Judge | None) -> dict[str, float]:
    """Mean scores over three slices."""
    depth = fusion.fused.shape[2]
    rows = []
    for at in (depth // 4, depth // 2, 3 * depth // 4):
        planes = {key: image.array[0, :, :, at].numpy() for key, image in sources.items()}
        fused = fusion.fused.array[0, :, :, at].numpy()
        scores = fusion_scores(fused, planes)
        row = {name: scores[name] for name in NAMES}
        if neutral is not None and len(planes) == 2:
            first, second = (_grey(p) for p in planes.values())
            told = neutral(_grey(fused), first, second)
            kept = ("Q_MIN", "VIF_MIN", "SSIM_MIN", "RHO_OTHER", "NABF", "BACKGROUND")
            row |= {name: told[name] for name in kept}
        rows.append(row)
    return {name: float(np.nanmean([row[name] for row in rows])) for name in rows[0]}


def _grey(plane: np.ndarray) -> np.ndarray:
    """Grey values 0..255 of whole numbers, as a PNG would hold them."""
    return np.round(255 * plane).astype(float)


def neutral_judge(folder: Path | None) -> Judge | None:
    """The neutral judge, where it is."""
    if folder is None or not (folder / "source_wise.py").exists():
        return None
    sys.path.insert(0, str(folder))
    from source_wise import source_wise

    return source_wise


def _load(network: nn.Module, path: Path | None, packaged: nn.Module) -> None:
    """Give a network the weights of a file, or the packaged ones."""
    weights = packaged.state_dict() if path is None else torch.load(path, weights_only=True)
    network.load_state_dict(weights)


def main() -> None:
    """Measure, and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--harmonization", type=Path)
    parser.add_argument("--fusion", type=Path)
    parser.add_argument("--judge", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--open-data", type=Path, default=Path("../shared/data/open"))
    parser.add_argument("--cache", type=Path, default=Path("/tmp/hf/cache"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    packaged = FusionPipeline.from_bundle().network
    network, fusion = HarmonizationNet().eval(), FusionNet()
    _load(network, arguments.harmonization, packaged.harmonization)
    _load(fusion, arguments.fusion, packaged.fusion)
    network_rule = Fuse(fusion)
    rules: dict[str, Callable[[dict[str, Image], dict[str, Tensor]], Fusion]] = {
        "network": network_rule,
        "average": FuseBy(average),
        "max": FuseBy(maximum),
        "PCA": FuseBy(pca),
        "Laplacian": FuseBy(laplacian_pyramid),
    }
    neutral = neutral_judge(arguments.judge)
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    apart: list[dict[str, float]] = []
    ended: list[dict[str, float]] = []
    for patient in patients(arguments.open_data, arguments.cache, evaluation=True):
        whole, box = harmonized(network, patient), _box(patient)
        valid = {k: patient.valid[m][None] for m, k in enumerate(KEYS)}
        apart.append(whole_against_box(network_rule, whole, valid, box))
        images = {k: i.with_array(i.array[(slice(None), *box)]) for k, i in whole.items()}
        seen = {k: one[(slice(None), *box)] for k, one in valid.items()}
        ended.append(cut_against_whole(network_rule, images, seen))
        for group in GROUPS:
            sources = {key: images[key] for key in group}
            fields = {key: seen[key] for key in group}
            table = results.setdefault("–".join(group), {})
            for name, rule in rules.items():
                begun = time.process_time()
                found = rule(sources, fields)
                row = judge(found, sources, neutral)
                row["cpu_s"] = time.process_time() - begun
                table.setdefault(name, []).append(row)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "fusion.json").write_text(json.dumps(results, indent=1) + "\n")
    text = "\n".join(
        [
            markdown(results),
            sentence(
                "The triple on the CT's whole grid against the MR's box alone, mean difference "
                "within the box less 8 voxels",
                apart,
            ),
            sentence("The triple with an MR that is cut, mean differences", ended),
        ]
    )
    (arguments.out / "fusion.md").write_text(text)
    print(text)


def sentence(what: str, found: list[dict[str, float]]) -> str:
    """Means and standard deviations over the patients."""
    told = [
        f"{name} {np.mean([f[name] for f in found]):.4f} ± {np.std([f[name] for f in found]):.4f}"
        for name in found[0]
    ]
    return f"{what} (n = {len(found)} patients): {'; '.join(told)}.\n"


def line(name: str, rows: Sequence[dict[str, float]], measures: Sequence[str]) -> str:
    """A line of a table: mean ± standard deviation of each measure."""
    cells = [
        f"{np.mean([r[m] for r in rows]):.3f} ± {np.std([r[m] for r in rows]):.3f}"
        for m in measures
    ]
    return f"| {name} | {' | '.join(cells)} |"


def markdown(results: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    """A table for each group: mean ± standard deviation over the patients."""
    parts = []
    for group, table in results.items():
        rows = next(iter(table.values()))
        measures = list(rows[0])
        parts += [f"**{group}**, n = {len(rows)} patients", ""]
        parts += [f"| | {' | '.join(measures)} |", "|---" * (len(measures) + 1) + "|"]
        parts += [line(name, rows, measures) for name, rows in table.items()]
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    main()
