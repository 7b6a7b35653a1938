r"""The fusion network alone beside published fusion networks, on slices of heads it has never seen.

    python benchmarks/fusion_atlas.py --judge ../shared/bench --out docs/figures

The 72 aligned pairs of ``fusion_pairs_open.json`` in ``--judge`` (2D slices of the Harvard Whole
Brain Atlas: for evaluation only), in grey values as they are, without registration and
harmonization, judged by its neutral ``source_wise.py``, beside the scores of published networks in
its ``peers_fusion_open.json``. The packaged network is a 3D one: a slice is given to it as a slab
in which all slices are the same, and the slab's middle is judged.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from fusion import line, neutral_judge
from PIL import Image as Picture
from torch import Tensor

from fusion_pipeline.baselines import FuseBy, average, maximum
from fusion_pipeline.data import Image
from fusion_pipeline.fuse import Fuse
from fusion_pipeline.networks.fusion_net import FusionNet
from fusion_pipeline.pipeline import FusionPipeline

MEASURES = ("Q_MIN", "VIF_MIN", "SSIM_MIN", "RHO_OTHER", "NABF", "BACKGROUND")
OTHER = {"CT-MRI": "ct", "PET-MRI": "pet", "SPECT-MRI": "spect"}
_SLICES = 33  # more than the network looks to either side


def slab(grey: np.ndarray, key: str) -> Image:
    """A slice, again and again, in [0, 1]."""
    array = torch.from_numpy(grey / 255.0).float()[..., None].expand(-1, -1, _SLICES)
    return Image(array[None].contiguous(), np.eye(4), key)


def grey_values(path: Path) -> np.ndarray:
    """Luma, 0 to 255."""
    return np.asarray(Picture.open(path).convert("L"), dtype=float)


def main() -> None:
    """Measure, and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--judge", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--fusion", type=Path, help="a state dict; the bundle's by default")
    parser.add_argument("--open-data", type=Path, default=Path("../shared/data/open"))
    parser.add_argument("--limit", type=int, help="pairs of each kind")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.fusion is None:
        network = FusionPipeline.from_bundle().network.fusion
    else:
        network = FusionNet()
        network.load_state_dict(torch.load(arguments.fusion, weights_only=True))
    rules = {"ours": Fuse(network), "Average": FuseBy(average), "Max": FuseBy(maximum)}
    judge = neutral_judge(arguments.judge)
    if judge is None:
        raise SystemExit(f"{arguments.judge} has no source_wise.py")
    cases = json.loads((arguments.judge / "fusion_pairs_open.json").read_text())
    rows: dict[str, dict[str, list[dict[str, float]]]] = {}
    for case in cases:
        table = rows.setdefault(case["pair"], {name: [] for name in rules})
        if arguments.limit and len(table["ours"]) >= arguments.limit:
            continue
        mri, other = (grey_values(arguments.open_data / case[part]) for part in ("mri", "other"))
        key = OTHER[case["pair"]]
        sources = {"mr": slab(mri, "mr"), key: slab(other, key)}
        seen: dict[str, Tensor] = {k: torch.ones_like(i.array) for k, i in sources.items()}
        for name, rule in rules.items():
            fused = rule(sources, seen).fused.array[0, :, :, _SLICES // 2].numpy()
            table[name].append(judge(np.round(255 * fused), mri, other))
    peers = json.loads((arguments.judge / "peers_fusion_open.json").read_text())
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "fusion_atlas.json").write_text(json.dumps(rows, indent=1) + "\n")
    text = markdown(rows, peers)
    (arguments.out / "fusion_atlas.md").write_text(text)
    print(text)


def markdown(
    rows: dict[str, dict[str, list[dict[str, float]]]],
    peers: dict[str, dict[str, dict[str, float]]],
) -> str:
    """A table for each kind of pair: ours with standard deviations, and the published means."""
    parts = []
    for pair, table in rows.items():
        parts += [f"**{pair}**, n = {len(table['ours'])} slices", ""]
        parts += [f"| | {' | '.join(MEASURES)} |", "|---" * (len(MEASURES) + 1) + "|"]
        parts += [line(name, scores, MEASURES) for name, scores in table.items()]
        for name, found in peers.items():
            method, kind = name.split("/")
            if kind == pair and method not in table:
                cells = [f"{found['aligned'][m]:.3f}" for m in MEASURES]
                parts.append(f"| {method} | {' | '.join(cells)} |")
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    main()
