"""What the paper's harmonization loss does alone: all images become one flat grey.

    python benchmarks/harmonization_collapse.py --out docs/images

CT, MR and PET of one training patient (sts003), a slice each. Each image has an increasing curve
of 16 pieces within 0..1, which begins near the straight line and may become flat. Adam minimizes
(4.4) alone, and our loss with the terms that hold each image to itself. Prints loss and spread
(deviation in the body).
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sarcoma_grids import KEYS, patients
from torch import Tensor

from fusion_pipeline.losses.harmonization_loss import harmonization_loss

PATIENT = "sts003"
PIECES, STEPS, RATE = 16, 300, 0.05
_SMALL = -3.0  # logit: what lies below and above a curve at the beginning
PAPER = {"hold": 0.0, "likeness": 0.0}


def curved(images: Tensor, slopes: Tensor) -> Tensor:
    """``(1, M, *S)`` in [0, 1] through one curve each, ``(M, pieces + 2)`` logits of its parts.

    The first part lies below the curve, the last one above it.
    """
    first, *rises, _ = slopes.softmax(1).unbind(1)
    rise = torch.stack(rises, 1)
    parts = [
        rise[:, k].view(1, -1, 1, 1) * (images * PIECES - k).clamp(0, 1) for k in range(PIECES)
    ]
    return first.view(1, -1, 1, 1) + torch.stack(parts).sum(0)


def trained(
    images: Tensor, normalized: Tensor, view: Tensor, body: Tensor, **loss: float
) -> Tensor:
    """The images after the optimization; the curve of each loss is printed."""
    slopes = torch.zeros(images.shape[1], PIECES + 2)
    slopes[:, (0, -1)] = _SMALL
    slopes.requires_grad_()
    optimizer = torch.optim.Adam([slopes], lr=RATE)
    for step in range(STEPS + 1):
        out = curved(images, slopes)
        value = harmonization_loss(out, normalized, view, body, **loss).mean()
        if step in (0, STEPS):
            spread = [float(out[0, m][body[0, m] > 0].std()) for m in range(images.shape[1])]
            shown = ", ".join(f"{k} {s:.4f}" for k, s in zip(KEYS, spread, strict=True))
            print(f"step {step}: loss {float(value.detach()):.4f}, spread {shown}")
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return curved(images, slopes).detach()


def main() -> None:
    """Optimize both, and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--open-data", type=Path, default=Path("../shared/data/open"))
    parser.add_argument("--cache", type=Path, default=Path("/tmp/hf/cache"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data, cache = arguments.open_data, arguments.cache
    (patient,) = patients(data, cache, evaluation=False, ids=(PATIENT,))
    middle = patient.normalized.shape[-1] // 2
    normalized, view, body = (
        t[None, ..., middle] for t in (patient.normalized, patient.valid, patient.body)
    )
    images = ((normalized + 4) / 8).clamp(0, 1)
    print("(4.4) alone")
    alone = trained(images, normalized, view, body, **PAPER)
    print("with the holding terms")
    held = trained(images, normalized, view, body)
    rows = (("straight line", images), ("(4.4) alone", alone), ("with the holding terms", held))
    figure, axes = plt.subplots(3, 3, figsize=(7, 6.4), layout="constrained")
    for line, (name, values) in zip(axes, rows, strict=True):
        for m, axis in enumerate(line):
            shown = (values * view)[0, m].T.flip(0)
            axis.imshow(shown, cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[], title=KEYS[m].upper() if values is images else "")
        line[0].set_ylabel(name)
    arguments.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out / "harmonization_collapse.png", dpi=100)


if __name__ == "__main__":
    main()
