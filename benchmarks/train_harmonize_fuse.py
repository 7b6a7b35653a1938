"""Train the harmonization network, then the fusion network, on real patients: one CPU core each.

    python benchmarks/train_harmonize_fuse.py harmonize --minutes 30 --out ../weights
    python benchmarks/train_harmonize_fuse.py fuse --minutes 40 --out ../weights
    python benchmarks/train_harmonize_fuse.py harmonize --spatial-dims 2 --out ../weights

Data: the 20 training patients of the open soft-tissue sarcoma collection (CT, T1 MR, FDG-PET; CC BY
3.0; Vallières 2015, TCIA), aligned by their headers. ``<name>.pt`` holds the state dict,
``<name>.state.pt`` what a stopped training goes on from.
"""

import argparse
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from painted_heads import painted_head
from registration_cases import HEAD
from sarcoma_grids import patients
from slices import pool
from torch import Tensor, nn

from fusion_pipeline.fuse import faded
from fusion_pipeline.geometry import resample, resize
from fusion_pipeline.losses.fusion_loss import FusionLossTerms, fusion_loss_terms
from fusion_pipeline.losses.harmonization_loss import harmonization_loss, protocol_difference
from fusion_pipeline.networks.fusion_net import FusionNet
from fusion_pipeline.networks.harmonization_net import HarmonizationNet, apply_curves
from fusion_pipeline.synthesis.tissues import Contrast
from fusion_pipeline.transforms import BodyMask, NormalizeModality

KINDS = ("ct", "mr", "emission")
# HU and uptake do not drift through the body; MR has its bias field
SMOOTHNESS = {"ct": 40.0, "mr": 15.0, "emission": 40.0}
# by spatial dims: sides of the crops that are harmonized, of those that are fused, and of the part
# of these that is judged
_HARMONIZED, _SURROUNDINGS, _JUDGED = {2: 224, 3: 48}, {2: 192, 3: 60}, {2: 128, 3: 34}
# A picture is looked at on black; in 3D it was 1.
_BACKGROUND = {2: 8.0, 3: 1.0}
_SPREAD = {2: 0.22, 3: 0.14}  # deviation within a body: of an MR in 8 bits about 0.22
# label maps of heads to train on; 15 to 20 are for evaluation
HEADS = ("02", "03", "05", "06", "08", "10", "11", "12")
CUT = 0.5  # how often a field of view ends within a crop
LEAST_WEIGHT = 0.2
WORST = 0.7  # what the source that is kept worst counts
FUSION_WEIGHTS = {
    "structure": 1.5,
    "information": 1.0,
    "edges": 2.5,
    "gradient": 4.0,
    "intensity": 0.5,
    "added": 10.0,
}


@dataclass(frozen=True)
class Crop:
    """A random piece of a patient: ``(1, 3, *S)`` each."""

    normalized: Tensor
    valid: Tensor
    body: Tensor


class View(NamedTuple):
    """A patient's number (2D: a slice's), and the voxel size in mm."""

    number: int
    spacing: tuple[float, ...]


class Patients:
    """Random crops of the training patients at random resolutions."""

    dims = 3

    def __init__(
        self,
        open_data: Path,
        cache: Path,
        generator: torch.Generator,
        left_out: Sequence[str] = (),
    ) -> None:
        self._generator = generator
        self._kept = [
            (p.normalized.half(), p.valid.bool(), p.body.bool(), p.spacing)
            for p in patients(open_data, cache, evaluation=False)
            if p.id not in left_out
        ]

    def add_heads(self, open_data: Path) -> None:
        """Training heads painted as CT, T1 or T2, and PET: the sarcoma patients have no brain."""
        for number, head in enumerate(HEADS):
            path = open_data / HEAD.format(head)
            contrasts: tuple[Contrast, ...] = ("ct", "mr_t2" if number % 2 else "mr", "pet")
            images = [
                painted_head(path, key, contrast)
                for key, contrast in zip(("ct", "mr", "pet"), contrasts, strict=True)
            ]
            bodies = [BodyMask(i.modality)(i.array, i.spacing.tolist()).float() for i in images]
            normalized = torch.cat(
                [
                    NormalizeModality(i.modality)(i.array, b)
                    for i, b in zip(images, bodies, strict=True)
                ]
            )
            body = torch.cat(bodies).bool()
            self._kept.append((normalized.half(), torch.ones_like(body), body, images[0].spacing))

    @classmethod
    def drawing(cls, generator: torch.Generator) -> "Patients":
        """Without patients: only a source of random numbers."""
        empty = cls.__new__(cls)
        empty._generator, empty._kept = generator, []
        return empty

    def uniform(self, low: float, high: float) -> float:
        """A number."""
        return low + (high - low) * float(torch.rand((), generator=self._generator))

    def view(self) -> View:
        """A random patient, at a random resolution."""
        number = int(torch.randint(len(self._kept), (), generator=self._generator))
        wide = self.uniform(1.0, 3.5)
        deep = wide if self.uniform(0, 1) < 0.5 else max(wide, self.uniform(1.0, 4.0))
        return View(number, (wide, wide, deep))

    def crop(self, size: int, view: View | None = None) -> Crop:
        """A crop around a random place in the body that MR sees."""
        number, spacing = view or self.view()
        wide = spacing[0]
        *kept, native = self._kept[number]
        places = torch.nonzero(kept[2][1][::4, ::4, ::2])
        at = places[int(torch.randint(len(places), (), generator=self._generator))]
        centre = at * torch.tensor([4, 4, 2])
        step = torch.tensor([w / s for w, s in zip(spacing, native, strict=True)])
        shape = [size - int(self.uniform(0, size // 3)) for _ in range(3)]
        sign = torch.tensor([1.0 if self.uniform(0, 1) < 0.5 else -1.0 for _ in range(3)])
        matrix = torch.eye(4)
        matrix[:3, :3] = torch.diag(step * sign)
        first = centre - step * sign * (torch.tensor(shape) - 1) / 2
        last = centre + step * sign * (torch.tensor(shape) - 1) / 2
        low = torch.minimum(first, last).floor().long() - 2
        high = torch.maximum(first, last).ceil().long() + 3
        box = tuple(slice(max(0, int(a)), int(b)) for a, b in zip(low, high, strict=True))
        matrix[:3, 3] = first - low.clamp_min(0)
        image, seen, inside = (t[(slice(None), *box)][None].float() for t in kept)
        if wide > 2.2:  # what a coarser scanner would see: the mean, and not a sample
            image = F.avg_pool3d(image, (3, 3, 1), 1, (1, 1, 0), count_include_pad=False)
        out = resample(image, matrix, shape, fill=None)
        seen = resample(seen, matrix, shape, fill=0.0) > 0.99
        inside = (resample(inside, matrix, shape, fill=0.0) > 0.5) & seen
        return Crop(out, seen.float(), inside.float())


class Slices(Patients):
    """Random crops of 2D slices at random zooms."""

    dims = 2

    def __init__(
        self, generator: torch.Generator, slices: list[tuple[Tensor, Tensor, Tensor]]
    ) -> None:
        self._generator = generator
        self._kept = [(*parts, None) for parts in slices]

    def view(self) -> View:
        """A random slice, at a random zoom."""
        number = int(torch.randint(len(self._kept), (), generator=self._generator))
        wide = self.uniform(0.7, 1.4)
        return View(number, (wide, wide))

    def crop(self, size: int, view: View | None = None) -> Crop:
        """A crop around a random place in a body."""
        number, spacing = view or self.view()
        *kept, _ = self._kept[number]
        places = torch.nonzero(kept[2][:2].any(0)[::4, ::4])
        at = places[int(torch.randint(len(places), (), generator=self._generator))] * 4.0
        middle = (torch.tensor(kept[0].shape[1:]) - 1) / 2
        centre = middle + self.uniform(0.0, 0.8) * (at - middle)
        shape = [size - int(self.uniform(0, size // 3)) for _ in range(2)]
        sign = torch.tensor([1.0 if self.uniform(0, 1) < 0.5 else -1.0 for _ in range(2)])
        matrix = torch.eye(3)
        matrix[:2, :2] = torch.diag(sign * spacing[0])
        matrix[:2, 2] = centre - spacing[0] * sign * (torch.tensor(shape) - 1) / 2
        image, seen, inside = (t[None].float() for t in kept)
        out = resample(image, matrix, shape, fill=None)
        # beyond the slice there is air, as around a picture, or nothing is known
        beyond = resample(torch.ones_like(seen), matrix, shape, fill=0.0) < 0.5
        known = resample(seen, matrix, shape, fill=0.0) > 0.99
        if self.uniform(0, 1) < 0.7:
            whole = seen.flatten(2).all(2)[..., None, None]
            known = known | (beyond & whole)
        lowest = image.amin((2, 3), keepdim=True)
        out = torch.where(beyond, lowest, out)
        inside = (resample(inside, matrix, shape, fill=0.0) > 0.5) & known
        return Crop(out, known.float(), inside.float())


def other_protocol(crop: Crop, channel: int, patients: Patients) -> Tensor:
    """The same anatomy from another scanner: gain, offset, gamma, bias field, blur, noise."""
    one = slice(channel, channel + 1)
    image, body = crop.normalized[:, one], crop.body[:, one]
    kind = KINDS[channel]
    low = float(image.min())
    width = max(float(image.max()) - low, 1e-3)
    unit = (image - low) / width
    dims = image.ndim - 2
    if kind == "mr":
        coarse = torch.randn(1, 1, *[4] * dims, generator=patients._generator)
        unit = unit * torch.exp(patients.uniform(0, 0.3) * resize(coarse, unit.shape[2:]))
    if kind != "ct":
        unit = unit.clamp_min(1e-4) ** patients.uniform(0.65, 1.5)
    if patients.uniform(0, 1) < 0.3:
        mean = F.avg_pool3d if dims == 3 else F.avg_pool2d
        blurred = mean(unit, 3, 1, 1, count_include_pad=False)
        unit = unit + patients.uniform(0, 1) * (blurred - unit)
    sigma = patients.uniform(0, 0.04)
    unit = unit + sigma * torch.randn(unit.shape, generator=patients._generator)
    count = body.sum().clamp_min(1)
    mean = (unit * body).sum() / count
    std = (((unit - mean) ** 2 * body).sum() / count).sqrt().clamp_min(1e-3)
    was_mean = (image * body).sum() / count
    was_std = (((image - was_mean) ** 2 * body).sum() / count).sqrt()
    scored = (unit - mean) / std * was_std + was_mean
    return (scored * patients.uniform(0.85, 1.2) + patients.uniform(-0.25, 0.25)).clamp(-4, 4)


def other_contrast(image: Tensor, patients: Patients) -> Tensor:
    """Another MR sequence: tissues in another order; air stays darkest."""
    low, high = float(image.min()), float(image.max())
    values = torch.rand(7, generator=patients._generator)
    values[0] = 0.0
    unit = (image - low) / max(high - low, 1e-3) * 6
    out = torch.zeros_like(image)
    for k in range(7):
        out = out + values[k] * (1 - (unit - k).abs()).clamp_min(0)
    return ((out - out.mean()) / out.std().clamp_min(1e-3)).clamp(-4, 4)


def variation(curves: Tensor) -> Tensor:
    """Mean square step of the curves' heights from cell to cell: no shading but a bias field's."""
    heights = curves.cumsum(1)
    return sum(heights.diff(dim=axis).square().mean() for axis in range(2, heights.ndim))


def harmonization_step(net: HarmonizationNet, patients: Patients) -> dict[str, Tensor]:
    """The parts of the loss on one crop."""
    crop = patients.crop(_HARMONIZED[patients.dims])
    if patients.uniform(0, 1) < 0.15:
        crop.normalized[:, 1:2] = other_contrast(crop.normalized[:, 1:2], patients)
    outputs, apart, rough = [], torch.zeros(1), torch.zeros(1)
    for m, kind in enumerate(KINDS):
        image, valid = crop.normalized[:, m : m + 1], crop.valid[:, m : m + 1]
        curves = net.curves(image, kind, valid)
        rough = rough + SMOOTHNESS[kind] * variation(curves) / 3
        outputs.append(apply_curves(image, curves) * valid)
        again = net(other_protocol(crop, m, patients), kind, valid)
        apart = apart + protocol_difference(outputs[m], again, valid) / 3
    order = torch.randperm(3, generator=patients._generator)
    harmonized = torch.cat(outputs, 1)
    main = harmonization_loss(
        harmonized[:, order],
        crop.normalized[:, order],
        crop.valid[:, order],
        crop.body[:, order],
        spread=_SPREAD[patients.dims],
    )
    air = crop.valid * (1 - crop.body.amax(1, keepdim=True))
    background = (harmonized * air).sum() / air.sum().clamp_min(1000)
    # a body that is as dark as air shares no outline with the other images
    dark = (1 - harmonized / 0.25).clamp_min(0) * crop.body
    absent = dark.sum() / crop.body.sum().clamp_min(1000)
    return {
        "main": main,
        "protocol": 6.0 * apart,
        "background": _BACKGROUND[patients.dims] * background,
        "absent": 0.7 * absent,
        "rough": rough,
    }


class Sources(NamedTuple):
    """What is fused: harmonized ``(1, M, *S)``, its fields of view as shares, and its kinds."""

    images: Tensor
    kept: Tensor
    kinds: list[str]


def fusion_sources(net: HarmonizationNet, patients: Patients) -> tuple[Sources, Sources]:
    """Two or three modalities, their tone varied a little; and what to gate their channels by.

    The latter are another place of the patient: the gates shall tell what a patient is like, and
    not what the judged part is like.
    """
    view = patients.view()
    here = patients.crop(_SURROUNDINGS[patients.dims], view)
    there = patients.crop(_SURROUNDINGS[patients.dims], view)
    order = torch.randperm(3, generator=patients._generator).tolist()
    picked = order[: 3 if patients.uniform(0, 1) < 0.4 else 2]
    kinds = [KINDS[m] for m in picked]
    tones = [(patients.uniform(0.75, 1.35), patients.uniform(0.85, 1.0)) for _ in picked]
    again = patients.uniform(0, 1) < 0.1  # two MR contrasts
    state = patients._generator.get_state()
    if again:
        picked, kinds, tones = [*picked, 1], [*kinds, "mr"], [*tones, (1.0, 1.0)]

    def harmonized(crop: Crop) -> tuple[Tensor, Tensor]:
        normalized, valid = crop.normalized[:, picked], crop.valid[:, picked]
        if again:
            patients._generator.set_state(state)  # both crops have the same contrast
            normalized[:, -1:] = other_contrast(crop.normalized[:, 1:2], patients)
        with torch.no_grad():
            images = [
                net(one, kind, seen) ** gamma * gain
                for one, seen, kind, (gamma, gain) in zip(
                    normalized.split(1, 1), valid.split(1, 1), kinds, tones, strict=True
                )
            ]
        return torch.cat(images, 1), valid

    (images, valid), (others, theirs) = harmonized(here), harmonized(there)
    kept = as_kept(_cut(valid, patients), view.spacing)
    return Sources(images, kept, kinds), Sources(others, as_kept(theirs, view.spacing), kinds)


def as_kept(valid: Tensor, spacing: Sequence[float]) -> Tensor:
    """Fields of view ``(1, M, *S)`` as `Fuse` hands them to the network."""
    return torch.stack([faded(one, spacing) for one in valid[0]])[None]


def _cut(valid: Tensor, patients: Patients) -> Tensor:
    """One field of view may end within the crop: at a random plane, mostly across an axis."""
    if patients.uniform(0, 1) > CUT:
        return valid
    m = int(torch.randint(valid.shape[1], (), generator=patients._generator))
    normal = torch.randn(patients.dims, generator=patients._generator) ** 3
    normal = normal / normal.norm().clamp_min(1e-6)
    axes = [torch.linspace(-1, 1, n) for n in valid.shape[2:]]
    place = sum(n * x for n, x in zip(normal, torch.meshgrid(*axes, indexing="ij"), strict=True))
    out = valid.clone()
    out[:, m] *= (place < patients.uniform(-0.5, 0.5)).float()
    return out


def _weighted(terms: FusionLossTerms) -> dict[str, Tensor]:
    return {name: weight * getattr(terms, name) for name, weight in FUSION_WEIGHTS.items()}


def by_salience(net: FusionNet) -> None:
    """Weights to begin at: a softmax of 8 (image + 2 local contrast), but for the logits' bound.

    From the average that an untrained network gives, weights hardly learn (`docs/decisions/0019`).
    """
    with torch.no_grad():  # the network makes four times its logits
        net.logit.weight[0, -2].fill_(2.0)
        net.logit.weight[0, -1].fill_(4.0)


def middle(shape: Sequence[int], patients: Patients) -> tuple[slice, ...]:
    """The part of a crop that is fused: in its middle, or off it by half of the way at most."""
    sides = [min(n, _JUDGED[len(shape)]) for n in shape]
    first = [
        int((n - side) / 2 * (1 + patients.uniform(-0.5, 0.5)))
        for n, side in zip(shape, sides, strict=True)
    ]
    inside = [slice(a, a + side) for a, side in zip(first, sides, strict=True)]
    return (slice(None), slice(None), *inside)


def fusion_step(
    net: FusionNet, harmonization: HarmonizationNet, patients: Patients, *, bf16: bool
) -> dict[str, Tensor]:
    """The parts of the loss on one crop."""
    sources, gated_by = fusion_sources(harmonization, patients)
    kinds = sources.kinds
    part = middle(sources.images.shape[2:], patients)
    images, valid = sources.images[part], sources.kept[part]
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        summary = net.summarize(gated_by.images, kinds, gated_by.kept)
        out = net(images, kinds, valid, summary)
    fused, weights = out.fused.float(), out.weights.float()
    images = images * (valid > 0)
    terms = fusion_loss_terms(fused, images, valid, worst=WORST)
    # the weights alone should fuse well, so that they tell where a voxel comes from
    base = (weights * images).sum(1, keepdim=True)
    alone = fusion_loss_terms(base, images, valid, worst=WORST)
    # no modality is given up on the whole, whatever it would save
    shown = (images * valid).flatten(2).sum(2)
    mean = (weights * images).flatten(2).sum(2) / shown.clamp_min(1.0)
    given_up = (LEAST_WEIGHT - mean).clamp_min(0) * (shown > 1)
    return {
        **_weighted(terms),
        "given_up": 5.0 * given_up.sum(1),
        "weighted": 0.7 * sum(_weighted(alone).values()),
    }


def train(
    net: nn.Module,
    step: Callable[[], dict[str, Tensor]],
    path: Path,
    minutes: float,
    crops: int = 1,
    rate: float = 1e-3,
    before: Callable[[], None] = lambda: None,
) -> None:
    """Adam until the time is up; a checkpoint every 50 steps; goes on where it was stopped."""
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    state_path, done = path.with_suffix(".state.pt"), 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["done"]
    begun, sums = time.monotonic(), {}
    for step_number, share in _steps(done, begun, 60 * minutes):
        done = step_number
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (done + 1) / 50) * (1 - 0.95 * share)
        optimizer.zero_grad()
        parts = [step() for _ in range(crops)]
        for part in parts:
            (sum(v.sum() for v in part.values()) / crops).backward()
            for name, value in part.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach()) / (50 * crops)
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if (done + 1) % 50 == 0:
            _save(net, optimizer, done + 1, path)
            told = "  ".join(f"{k} {v:.4f}" for k, v in sums.items())
            print(f"{done + 1:6d}  {time.monotonic() - begun:6.0f} s  {told}", flush=True)
            sums = {}
            before()
    _save(net, optimizer, done + 1, path)


def _steps(done: int, begun: float, seconds: float) -> Iterator[tuple[int, float]]:
    """Step numbers and the share of the time that has passed, until it has."""
    while (share := (time.monotonic() - begun) / seconds) < 1:
        yield done, share
        done += 1


def _save(net: nn.Module, optimizer: torch.optim.Optimizer, done: int, path: Path) -> None:
    state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "done": done}
    for target, content in ((path, net.state_dict()), (path.with_suffix(".state.pt"), state)):
        aside = target.with_suffix(".part")
        torch.save(content, aside)
        aside.replace(target)


def main() -> None:
    """Read the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["harmonize", "fuse"])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--spatial-dims", type=int, choices=(2, 3), default=3)
    parser.add_argument("--open-data", type=Path, default=Path("../shared/data/open"))
    parser.add_argument("--cache", type=Path, default=Path("/tmp/hf/cache"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--crops", type=int, help="a step is the mean of so many crops")
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate, at first")
    parser.add_argument("--start", type=Path, help="weights to begin with, where none are in --out")
    parser.add_argument("--leave-out", nargs="*", default=[], help="patients kept to choose by")
    parser.add_argument("--bf16", action="store_true", help="fusion: half of the time on AMX")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(arguments.seed)
    dims = arguments.spatial_dims
    if dims == 2:
        made_from = " ".join([*HEADS, "-", *sorted(arguments.leave_out), str(arguments.seed)])
        kept_slices = arguments.cache / f"slices_{zlib.crc32(made_from.encode()):08x}.pt"
        if not kept_slices.exists():
            found = pool(
                arguments.open_data, arguments.cache, HEADS, arguments.seed, arguments.leave_out
            )
            torch.save(found, kept_slices)
        draws: Patients = Slices(generator, torch.load(kept_slices, weights_only=True))
    else:
        draws = Patients(arguments.open_data, arguments.cache, generator, arguments.leave_out)
        if arguments.what == "fuse":
            draws.add_heads(arguments.open_data)
    harmonization = HarmonizationNet(dims)
    kept = arguments.out / f"harmonization_{dims}d.pt"
    if arguments.what == "harmonize":
        train(
            harmonization,
            lambda: harmonization_step(harmonization, draws),
            kept,
            arguments.minutes,
            crops=arguments.crops or 2,
            rate=arguments.rate,
        )
        return

    def load() -> None:
        if kept.exists():
            harmonization.load_state_dict(torch.load(kept, weights_only=True))

    load()
    fusion = FusionNet(dims)
    by_salience(fusion)
    if arguments.start:
        fusion.load_state_dict(torch.load(arguments.start, weights_only=True))
    train(
        fusion,
        lambda: fusion_step(fusion, harmonization, draws, bf16=arguments.bf16),
        arguments.out / f"fusion_{dims}d.pt",
        arguments.minutes,
        crops=arguments.crops or 1,
        rate=arguments.rate,
        before=load,
    )


if __name__ == "__main__":
    main()
