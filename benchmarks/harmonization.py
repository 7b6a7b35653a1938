"""Harmonization on the evaluation patients: agreement between modalities and protocols, edges kept.

    python benchmarks/harmonization.py --weights ../weights/harmonization_3d.pt --out
    docs/figures

CT, MR and PET by their headers. Every method gives [0, 1] from the same z-scored images:
z-score (the straight line), histogram matching to the CT and Nyúl (baselines.py), the network.

Agreement of two harmonized images, over the voxels that both see:
 correlation   Pearson's r: blind to gain and offset, so a loss of contrast cannot raise it
 in body       the same where either shows a body: without the contrast of body and air
 gradient      cosine of the two gradient fields
 ssim          structural similarity, data range 1; a low contrast raises it
 ssim, levelled  the same after a straight line has given both one mean and one deviation
 distance      root mean square difference over the mean of the two deviations (after METHOD 4.2)
Kept, each image with its own input, in its body:
 edges         cosine of the gradient fields (1: any rising straight line; 0: a constant)
 information   correlation with the own input
 spread        standard deviation
Protocol: mean absolute difference, over its deviation, of the same image under another gain,
offset, gamma, bias field and noise.
"""

import argparse
import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from sarcoma_grids import KEYS, Patient, patients
from torch import Tensor

from fusion_pipeline.baselines import Nyul, match_histogram
from fusion_pipeline.harmonize import straight_line
from fusion_pipeline.losses.harmonization_loss import edges_lost, information_lost
from fusion_pipeline.metrics import ssim
from fusion_pipeline.networks.harmonization_net import HarmonizationNet
from fusion_pipeline.networks.kinds import kind_of
from fusion_pipeline.synthesis import other_protocol

Method = Callable[[Patient, Tensor], list[Tensor]]


def agreement(a: Tensor, b: Tensor, both: Tensor, body: Tensor) -> dict[str, float]:
    """How two images ``(1, 1, *S)`` agree where ``both`` is 1."""
    inside = both > 0
    x, y = a[inside], b[inside]
    return {
        "correlation": 1 - float(information_lost(a, b, both)),
        "in body": 1 - float(information_lost(a, b, both * body)),
        "gradient": 1 - float(edges_lost(a, b, both)),
        "ssim": ssim(a[0, 0], b[0, 0], inside[0, 0]),
        "ssim, levelled": ssim(*(_levelled(t, inside)[0, 0] for t in (a, b)), inside[0, 0]),
        "distance": float(((x - y) ** 2).mean().sqrt() / ((x.std() + y.std()) / 2)),
    }


def _levelled(image: Tensor, inside: Tensor) -> Tensor:
    """Mean 1/2 and deviation 1/8 inside, as a z-scored image has."""
    values = image[inside]
    return (image - values.mean()) / values.std().clamp_min(1e-6) / 8 + 0.5


def kept(output: Tensor, source: Tensor, body: Tensor) -> dict[str, float]:
    """What an image kept of itself."""
    return {
        "edges": 1 - float(edges_lost(output, source, body)),
        "information": 1 - float(information_lost(output, source, body)),
        "spread": float(output[body > 0].std()),
    }


def judge(method: Method, patient: Patient, generator: torch.Generator) -> dict[str, float]:
    """All numbers of one method on one patient."""
    outputs = method(patient, patient.normalized)
    out: dict[str, float] = {}
    for (m, a), (n, b) in combinations(enumerate(KEYS), 2):
        body = torch.maximum(patient.body[m], patient.body[n])[None, None]
        both = (patient.valid[m] * patient.valid[n])[None, None]
        for name, value in agreement(outputs[m], outputs[n], both, body).items():
            out[f"{name} {a}-{b}"] = value
    other = torch.cat(
        [
            other_protocol(image[None, None], body[None, None], kind_of(key), generator)[0]
            for image, body, key in zip(patient.normalized, patient.body, KEYS, strict=True)
        ]
    )
    again = method(patient, other)
    for m, key in enumerate(KEYS):
        body = patient.body[m][None, None]
        for name, value in kept(outputs[m], patient.normalized[m][None, None], body).items():
            out[f"{name} {key}"] = value
        inside = body > 0
        apart = (outputs[m] - again[m])[inside].abs().mean()
        out[f"protocol {key}"] = float(apart / outputs[m][inside].std())
    return out


def methods(weights: Path, training: Callable[[], list[Patient]]) -> dict[str, Method]:
    """The network and the traditional ways."""
    network = HarmonizationNet()
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.eval()

    def learned(patient: Patient, normalized: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return [
                network(normalized[m][None, None], kind_of(k), patient.valid[m][None, None])
                for m, k in enumerate(KEYS)
            ]

    def straight(patient: Patient, normalized: Tensor) -> list[Tensor]:
        return [straight_line(normalized[m])[None, None] for m in range(3)]

    def matched(patient: Patient, normalized: Tensor) -> list[Tensor]:
        ct = normalized[0]
        body = [b > 0 for b in patient.body]
        out = [ct] + [match_histogram(normalized[m], ct, body[m], body[0]) for m in (1, 2)]
        return [straight_line(o)[None, None] for o in out]

    standards = [Nyul() for _ in KEYS]
    for m, standard in enumerate(standards):
        standard.fit([(p.normalized[m], p.body[m] > 0) for p in training()])

    def nyul(patient: Patient, normalized: Tensor) -> list[Tensor]:
        return [
            standards[m](normalized[m], patient.body[m] > 0)[None, None].clamp(0, 1)
            for m in range(3)
        ]

    return {"z-score": straight, "histogram": matched, "Nyúl": nyul, "network": learned}


def main() -> None:
    """Measure, and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--open-data", type=Path, default=Path("../shared/data/open"))
    parser.add_argument("--cache", type=Path, default=Path("/tmp/hf/cache"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    chosen = patients(arguments.open_data, arguments.cache, evaluation=True)
    ways = methods(
        arguments.weights, lambda: patients(arguments.open_data, arguments.cache, evaluation=False)
    )
    rows: dict[str, list[dict[str, float]]] = {}
    for name, way in ways.items():
        # the same draws for every method
        generator = torch.Generator().manual_seed(1)
        rows[name] = [judge(way, patient, generator) for patient in chosen]
    arguments.out.mkdir(parents=True, exist_ok=True)
    kept_rows = {"patients": [p.id for p in chosen], "rows": rows}
    (arguments.out / "harmonization.json").write_text(json.dumps(kept_rows, indent=1) + "\n")
    text = table(rows)
    (arguments.out / "harmonization.md").write_text(text)
    print(text)


def table(rows: dict[str, list[dict[str, float]]]) -> str:
    """Mean ± standard deviation over the patients, as Markdown."""
    lines = [f"| | {' | '.join(rows)} |", "|---" * (len(rows) + 1) + "|"]
    for measure in next(iter(rows.values()))[0]:
        cells = []
        for results in rows.values():
            values = np.array([r[measure] for r in results])
            cells.append(f"{values.mean():.3f} ± {values.std():.3f}")
        lines.append(f"| {measure} | {' | '.join(cells)} |")
    count = len(next(iter(rows.values())))
    return f"n = {count} patients, mean ± standard deviation\n\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
