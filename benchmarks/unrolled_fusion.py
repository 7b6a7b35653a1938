"""An unrolled optimizer of L_fusion beside the descent that ships, on slices.

    python benchmarks/open_data.py --data ../shared/data/open --out runs/open_2d --spatial-dims 2
    python benchmarks/unrolled_fusion.py --data runs/open_2d --out runs/unrolled [--seconds 3600]

A small U-Net sees the fused image, the gradient of L_fusion with respect to it, and what the
sources show, and says how to change it; three such steps, the same network in each. It starts from
the mean of maximum and average, and is trained by L_fusion of all three results on crops of the
training slices. Then both are measured on the validation patients' slices, against each source as
displayed. A training that was stopped goes on; without ``--seconds`` it takes all its steps.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.nets.unet import UNet
from torch import Tensor, nn

from fusion_pipeline import FusionPipeline
from fusion_pipeline.data import read_image
from fusion_pipeline.fuse import Fuse, displayed_images
from fusion_pipeline.fuse.refinement import refined
from fusion_pipeline.geometry.filters import box_mean
from fusion_pipeline.losses.fusion_loss import FusionLoss
from fusion_pipeline.metrics import artefacts, edge_transfer, ssim, vif
from fusion_pipeline.networks.kinds import kind_of
from fusion_pipeline.pipeline import bundle_for

PAIRS = (("ct", "mr"), ("mr", "pet"), ("ct", "pet"))
STEPS = 3
COUNTS = (0.2, 0.3, 0.5)  # of the loss after each step
REACH = 0.3  # of one step at most, in grey values of 0..1
CROP, BATCH = 96, 6
TRAINED = 1_500
RATE = 2e-3
GAMMA = (0.7, 1.4)  # tones of the sources that are trained on
WINDOW = 7  # pixels of a detail
SCORES = {"q": edge_transfer, "vif": vif, "ssim": ssim}


@dataclass(frozen=True)
class Slice:
    """One slice: ``(1, *S)`` per key, harmonized and as displayed."""

    id: str
    harmonized: dict[str, object]
    displayed: dict[str, object]


class Unrolled(nn.Module):
    """Three steps of a learned optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.network = UNet(2, 6, 1, channels=(16, 32, 32), strides=(2, 2), num_res_units=0)

    def forward(self, sources: Tensor, loss: FusionLoss) -> list[Tensor]:
        """The fused image after each step.

        Args:
            sources: ``(B, M, *S)`` in [0, 1].
            loss: of the same sources.

        Returns:
            `STEPS` of ``(B, 1, *S)`` in [0, 1].
        """
        low, high = sources.amin(1, keepdim=True), sources.amax(1, keepdim=True)
        details = sources - box_mean(sources, WINDOW)
        strongest = details.gather(1, details.abs().argmax(1, keepdim=True))
        fused = (high + sources.mean(1, keepdim=True)) / 2
        results = []
        for _ in range(STEPS):
            own = fused - box_mean(fused, WINDOW)
            shown = torch.cat([fused, _slope(loss, fused), high, low, strongest, own], 1)
            fused = (fused + REACH * torch.tanh(self._change(shown))).clamp(0, 1)
            results.append(fused)
        return results

    def _change(self, shown: Tensor) -> Tensor:
        """The network's answer; it halves its input twice, so that each side is filled up to 4."""
        height, width = shown.shape[2:]
        filled = F.pad(shown, (0, -width % 4, 0, -height % 4), mode="replicate")
        return self.network(filled)[..., :height, :width]


def _slope(loss: FusionLoss, fused: Tensor) -> Tensor:
    """The gradient of the loss, of root mean square 1 in each image, within ±4."""
    with torch.enable_grad():
        at = fused.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(at).sum(), at)
    size = gradient.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-12)
    return (gradient / size).clamp(-4, 4)


def slices(folder: Path, part: str, pipeline: FusionPipeline) -> list[Slice]:
    """The slices of one part of the datalist."""
    rows = json.loads((folder / "cases.json").read_text())[part]
    return [_slice(row, folder, pipeline) for row in rows]


def _slice(row: dict[str, str], folder: Path, pipeline: FusionPipeline) -> Slice:
    images = {k: read_image(folder / row[k], k)[0] for k in ("ct", "mr", "pet") if k in row}
    views = {k: torch.ones_like(i.array) for k, i in images.items()}
    harmonized = {}
    for key, image in images.items():
        with torch.no_grad():
            mapped = pipeline.network.harmonization(image.array[None], kind_of(key))[0]
        harmonized[key] = image.with_array(mapped, units="a.u.")
    return Slice(row["id"], harmonized, displayed_images(images, views))


def _crops(
    given: Sequence[Slice], seed: int, size: int = CROP
) -> Iterator[tuple[Tensor, list[str]]]:
    """Batches of crops of one pair each, with random tones, flips and turns."""
    random = np.random.default_rng(seed)
    while True:
        pair = PAIRS[random.integers(len(PAIRS))]
        having = [s for s in given if all(k in s.displayed for k in pair)]
        batch = []
        while len(batch) < BATCH:
            one = having[random.integers(len(having))]
            stack = torch.cat([one.displayed[k].array for k in pair])
            at = [int(random.integers(max(1, n - size + 1))) for n in stack.shape[1:]]
            crop = stack[:, at[0] : at[0] + size, at[1] : at[1] + size]
            if crop.shape[1:] != (size, size) or float((crop > 0.06).float().mean()) < 0.2:
                continue
            tones = torch.as_tensor(random.uniform(*GAMMA, len(pair)), dtype=torch.float32)
            crop = crop ** tones.view(-1, 1, 1)
            crop = torch.rot90(crop, int(random.integers(4)), (1, 2))
            batch.append(crop.flip(2) if random.integers(2) else crop)
        yield torch.stack(batch), [kind_of(k) for k in pair]


def train(given: Sequence[Slice], out: Path, steps: int, seconds: float) -> Unrolled:
    """Train, from the last state in ``out`` if there is one."""
    torch.manual_seed(0)
    model, begun = Unrolled(), time.time()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, RATE / 50)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    path, done = out / "state.pt", 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        done = state["done"]
        for name, part in parts.items():
            part.load_state_dict(state[name])
    batches = _crops(given, seed=done)
    while done < steps and time.time() - begun < seconds:
        sources, kinds = next(batches)
        loss = FusionLoss(sources, kinds)
        results = model(sources, loss)
        total = sum(c * loss(r).mean() for c, r in zip(COUNTS, results, strict=True))
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        done += 1
        if done % 50 == 0 or done == steps:
            state = {name: part.state_dict() for name, part in parts.items()}
            torch.save(state | {"done": done}, path)
            print(f"{done} {float(total.detach()):.3f} {time.time() - begun:.0f} s", flush=True)
    return model.eval()


def measured(model: Unrolled, pipeline: FusionPipeline, given: Sequence[Slice]) -> list[dict]:
    """Every method on every pair of every slice."""
    rows = []
    for one in given:
        for pair in PAIRS:
            if any(k not in one.displayed for k in pair):
                continue
            shown = torch.cat([one.displayed[k].array for k in pair])
            for name, fused, seconds in _methods(model, pipeline, one, pair, shown):
                rows.append(
                    {"id": one.id, "pair": "–".join(pair), "method": name, "cpu_s": seconds}
                    | _scores(fused[0].numpy(), [s.numpy() for s in shown])
                )
    return rows


def _methods(
    model: Unrolled, pipeline: FusionPipeline, one: Slice, pair: Sequence[str], shown: Tensor
) -> Iterator[tuple[str, Tensor, float]]:
    kinds = [kind_of(k) for k in pair]
    sources, displayed = ({k: x[k] for k in pair} for x in (one.harmonized, one.displayed))
    views = {k: torch.ones_like(displayed[k].array) for k in pair}
    for steps in (0, 18):
        begun = time.process_time()
        fused = Fuse(pipeline.network.fusion, steps=steps)(sources, views, displayed).fused.array
        yield f"network, {steps} steps of descent", fused, time.process_time() - begun
    begun = time.process_time()
    with torch.no_grad():
        start = model(shown[None], FusionLoss(shown[None], kinds))[-1][0]
    spent = time.process_time() - begun
    yield "unrolled, 3 steps", start, spent
    kept = torch.ones_like(shown)
    for steps in (6, 18):
        begun = time.process_time()
        fused = refined(start, shown, kinds, kept, steps=steps, largest=1_000_000)
        yield f"unrolled, {steps} steps of descent", fused, spent + time.process_time() - begun


def _scores(fused: np.ndarray, sources: Sequence[np.ndarray]) -> dict[str, float]:
    inside = np.any([s > 0.02 for s in sources], axis=0)
    worst = {
        f"{name}_min": min(score(fused, s, inside) for s in sources)
        for name, score in SCORES.items()
    }
    return worst | {"nabf": artefacts(fused, sources)}


def markdown(rows: Sequence[dict]) -> str:
    """Means per pair and method."""
    lines = [
        "| pair | method | n | Q_MIN | VIF_MIN | SSIM_MIN; N^AB/F; CPU s |",
        "|---|---|---|---|---|---|",
    ]
    for pair, method in dict.fromkeys((r["pair"], r["method"]) for r in rows):
        mine = [r for r in rows if (r["pair"], r["method"]) == (pair, method)]
        q, v, s, n, t = (
            np.mean([r[k] for r in mine]) for k in ("q_min", "vif_min", "ssim_min", "nabf", "cpu_s")
        )
        lines.append(
            f"| {pair} | {method} | {len(mine)} | {q:.3f} | {v:.3f} | {s:.3f}; {n:.3f}; {t:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with cases.json")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=TRAINED)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--every", type=int, default=3, help="of the slices that are measured")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    pipeline = FusionPipeline.from_bundle(bundle_for(2))
    training = slices(arguments.data, "training", pipeline)
    model = train(training, arguments.out, arguments.steps, arguments.seconds)
    rows = measured(
        model, pipeline, slices(arguments.data, "validation", pipeline)[:: arguments.every]
    )
    (arguments.out / "unrolled.json").write_text(json.dumps(rows, indent=1) + "\n")
    (arguments.out / "unrolled.md").write_text(markdown(rows))
    print(markdown(rows))


if __name__ == "__main__":
    main()
