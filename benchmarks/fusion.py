r"""Fusion on the evaluation patients, source by source, against the traditional rules.

    python benchmarks/fusion.py --judge ../shared/bench --out docs/figures

The networks are the packaged bundle's, or others (``--harmonization``, ``--fusion``: state dicts).
CT, MR and PET by their headers, harmonized by the network; every rule fuses the same sources. Pairs
and the triple are judged on three slices inside the MR's field of view (at a quarter, a half and
three quarters of it): pairs by the neutral ``source_wise.py`` of ``--judge`` (8 bit, 2D) where it
is, and all by ``fusion_pipeline.metrics.fusion_scores``. Last, the triple is fused on the CT's
whole grid as well, as a pipeline does it: how far is that from what the MR's box alone gives?
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sarcoma_grids import KEYS, Patient, patients
from torch import Tensor, nn

from fusion_pipeline.baselines import FuseBy, average, laplacian_pyramid, maximum, pca
from fusion_pipeline.data import Image
from fusion_pipeline.fuse import Fuse, Fusion
from fusion_pipeline.metrics import fusion_scores
from fusion_pipeline.networks.fusion import FusionNet
from fusion_pipeline.networks.harmonization import HarmonizationNet
from fusion_pipeline.networks.kinds import kind_of
from fusion_pipeline.pipeline import FusionPipeline

GROUPS = (("ct", "mr"), ("ct", "pet"), ("mr", "pet"), ("ct", "mr", "pet"))
NAMES = ("q_min", "vif_min", "ssim_min", "q", "nabf", "scd", "entropy")
Judge = Callable[[np.ndarray, np.ndarray, np.ndarray], dict[str, float]]


def harmonized(network: HarmonizationNet, patient: Patient) -> dict[str, Image]:
    """The three images in [0, 1]."""
    out = {}
    for m, key in enumerate(KEYS):
        with torch.no_grad():
            array = network(
                patient.normalized[m][None, None], kind_of(key), patient.valid[m][None, None]
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


def _neutral(folder: Path | None) -> Judge | None:
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
    neutral = _neutral(arguments.judge)
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    apart: list[dict[str, float]] = []
    for patient in patients(arguments.open_data, arguments.cache, evaluation=True):
        whole, box = harmonized(network, patient), _box(patient)
        valid = {k: patient.valid[m][None] for m, k in enumerate(KEYS)}
        apart.append(whole_against_box(network_rule, whole, valid, box))
        images = {k: i.with_array(i.array[(slice(None), *box)]) for k, i in whole.items()}
        seen = {k: one[(slice(None), *box)] for k, one in valid.items()}
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
    text = markdown(results) + "\n" + sentence(apart)
    (arguments.out / "fusion.md").write_text(text)
    print(text)


def sentence(apart: list[dict[str, float]]) -> str:
    """What `whole_against_box` found in all patients."""
    told = [
        f"{name} {np.mean([a[name] for a in apart]):.4f} ± {np.std([a[name] for a in apart]):.4f}"
        for name in apart[0]
    ]
    return (
        "The triple on the CT's whole grid against the MR's box alone, mean difference within the "
        f"box less 8 voxels (n = {len(apart)} patients): {', '.join(told)}.\n"
    )


def markdown(results: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    """A table for each group: mean ± standard deviation over the patients."""
    parts = []
    for group, table in results.items():
        rows = next(iter(table.values()))
        measures = list(rows[0])
        parts += [f"**{group}**, n = {len(rows)} patients", ""]
        parts += [f"| | {' | '.join(measures)} |", "|---" * (len(measures) + 1) + "|"]
        for name, rows in table.items():
            cells = [
                f"{np.mean([r[m] for r in rows]):.3f} ± {np.std([r[m] for r in rows]):.3f}"
                for m in measures
            ]
            parts.append(f"| {name} | {' | '.join(cells)} |")
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    main()
