"""Train the registration network without acquired pairs (METHOD section 3; Hoffmann et al. 2022).

    python benchmarks/train_registration.py --data ../shared/data/open --out runs/registration \
        --hours 1.5 [--resume runs/registration/last.pt] [--spatial-dims 2]

Pairs are paintings of label maps (brains of the training subjects, generated heads, trunks and
limbs, an abdomen, random shapes) and, for real texture, images of the sarcoma *training* patients
under random tone curves and as CT-MR and CT-PET pairs. One image of a pair is deformed by a known
field; the loss is the distance to it, of a first pass and of a second pass on the first one's
result, so that the network learns to improve its own output. Stops after ``--hours``; ``last.pt``
holds all that a later run needs.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from fusion_pipeline.geometry import (
    compose,
    identity_points,
    integrate,
    resample,
    rescaled_affine,
    rigid_matrix,
    warp,
)
from fusion_pipeline.networks.registration_net import RegistrationNet
from fusion_pipeline.synthesis.anatomy import body_label_map
from fusion_pipeline.synthesis.painting import (
    paint,
    random_field_of_view,
    random_label_map,
    random_velocity,
)
from fusion_pipeline.transforms import NormalizeModality

EVALUATION_SARCOMA = {"sts008", "sts015", "sts026", "sts032", "sts035", "sts043", "sts047"}
EVALUATION_BRAINS = {"15", "16", "17", "19", "20"}
# Header alignment of these training patients is good to about 4 mm; of the others it is worse.
FAIR_MR = {"sts002", "sts014", "sts024", "sts025", "sts036"}


class Pairs(IterableDataset[dict[str, Tensor]]):
    """An endless stream of pairs with their true field.

    Args:
        cache: file written by `build_cache`.
        size: voxels along each axis.
        spatial_dims: 2 or 3.
        seed: of the stream; every worker draws its own.
    """

    def __init__(self, cache: Path, size: int, spatial_dims: int, seed: int) -> None:
        self.cache, self.size, self.dims, self.seed = cache, size, spatial_dims, seed

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield ``fixed``, ``moving``, ``weight`` ``(1, *S)`` and ``ddf`` ``(d, *S)``."""
        torch.set_num_threads(1)
        info = torch.utils.data.get_worker_info()
        seed = self.seed * 1000 + (info.id if info else 0)
        generator = torch.Generator().manual_seed(seed)
        stored = torch.load(self.cache, weights_only=True)
        while True:
            yield self.draw(stored, generator)

    def draw(
        self, stored: dict[str, list[Tensor]], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """One pair."""
        shape = (self.size,) * self.dims
        ddf = random_ddf(shape, generator)
        kind = float(torch.rand((), generator=generator))
        if kind < 0.6 or not stored["pairs"]:
            labels = self._labels(stored, shape, generator)
            if _chance(generator, 0.5):
                labels = _flipped(labels, generator)
            target = warp(labels[None].float(), ddf, mode="nearest", fill=None)[0].long()
            vary = _chance(generator, 0.3)
            fixed, moving = (paint(x, generator, vary_structures=vary)[0] for x in (target, labels))
            body = (target > 0).float()
        else:
            fixed, moving, body = self._real(stored, shape, ddf, generator)
        if _chance(generator, 0.5):
            moving = _cut(moving, random_field_of_view(shape, generator)[0], generator)
        if _chance(generator, 0.15):
            fixed = _cut(fixed, random_field_of_view(shape, generator)[0], generator)
        weight = 0.05 + 0.95 * body
        return {"fixed": fixed, "moving": moving, "ddf": ddf[0], "weight": weight}

    def _labels(
        self, stored: dict[str, list[Tensor]], shape: tuple[int, ...], generator: torch.Generator
    ) -> Tensor:
        """A label map ``(1, *S)``: stored anatomy, generated anatomy or random shapes."""
        kind = float(torch.rand((), generator=generator))
        if kind < 0.3 and stored["labels"]:
            one = stored["labels"][_choice(generator, len(stored["labels"]))]
            return _crop(one[None].float(), shape, generator, mode="nearest").long()
        if kind < 0.75:
            body = ("head", "trunk", "limb")[_choice(generator, 3)]
            return body_label_map(shape, generator, body)
        return random_label_map(shape, generator, 4 + _choice(generator, 16))

    def _real(
        self,
        stored: dict[str, list[Tensor]],
        shape: tuple[int, ...],
        ddf: Tensor,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Real images: a pair as scanned, or one image under two tone curves."""
        both = stored["pairs"][_choice(generator, len(stored["pairs"]))].float()
        both = _crop(both, shape, generator)
        if self.dims == 3 and _chance(generator, 0.5):
            both = _flipped(both, generator)
        a, b = both[:1], both[1:2]
        if _chance(generator, 0.6):
            one = a if _chance(generator, 0.5) else b
            a, b = _toned(one, generator), _toned(one, generator)
        elif _chance(generator, 0.5):
            a, b = b, a
        low = float(a.min())
        fixed = warp(a[None], ddf, fill=low)[0]
        body = warp(both[None, 2:3], ddf, fill=0.0)[0]
        noise = [0.08 * float(torch.rand((), generator=generator)) for _ in range(2)]
        fixed, b = (
            x + n * torch.randn(x.shape, generator=generator)
            for x, n in zip((fixed, b), noise, strict=True)
        )
        return fixed, b, (body > 0.5).float()


def random_ddf(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """What the pose stage may leave: a small affine error after a smooth deformation, voxels."""
    d = len(shape)
    if _chance(generator, 0.08):
        return torch.zeros((1, d, *shape))
    strength = float(torch.rand((), generator=generator))
    smooth = 7.0 + 13.0 * float(torch.rand((), generator=generator))
    peak = min(6.5, 0.55 * smooth) * strength
    ddf = integrate(random_velocity(shape, generator, peak, smooth), 5)
    if _chance(generator, 0.3):
        return ddf
    unit = torch.rand(3 * d + 3, generator=generator).numpy() * 2 - 1
    centre = (np.asarray(shape) - 1) / 2
    angles = unit[: 1 if d == 2 else 3] * 6.0
    matrix = rigid_matrix(angles, unit[3 : 3 + d] * 3.0, centre)
    matrix[:d, :d] = matrix[:d, :d] @ (np.eye(d) + np.diag(unit[3 + d : 3 + 2 * d]) * 0.06)
    grid = identity_points(shape).double().numpy()
    moved = (grid - centre) @ matrix[:d, :d].T + matrix[:d, :d] @ centre + matrix[:d, d]
    affine = torch.from_numpy((moved - grid).astype(np.float32)).movedim(-1, 0)[None]
    return compose(ddf, affine)


def _cut(image: Tensor, valid: Tensor, generator: torch.Generator) -> Tensor:
    """Outside the field of view: the image's lowest value, or any other, with noise or without."""
    value = float(image.min())
    if _chance(generator, 0.2):
        value += 2.0 * float(torch.rand((), generator=generator))
    outside = torch.full_like(image, value)
    if _chance(generator, 0.5):
        outside = outside + 0.06 * torch.randn(image.shape, generator=generator)
    return torch.where(valid > 0.5, image, outside)


def _toned(image: Tensor, generator: torch.Generator) -> Tensor:
    """A random tone curve, not monotone: bright may become dark."""
    knots = torch.rand(7, generator=generator) * 3 - 1.5
    low, high = image.min(), image.max()
    place = ((image - low) / (high - low).clamp_min(1e-6) * 6).clamp(0, 5.999)
    at = place.floor().long()
    part = place - at
    out = knots[at] * (1 - part) + knots[at + 1] * part
    return (out - out.mean()) / out.std().clamp_min(1e-3)


def _crop(
    image: Tensor, shape: tuple[int, ...], generator: torch.Generator, mode: str = "bilinear"
) -> Tensor:
    """A random window ``(C, *S)`` of a random zoom; a 2D one is a slice across a random axis."""
    d = len(shape)
    zoom = 0.8 + 0.5 * float(torch.rand((), generator=generator))
    axes = list(range(3))
    if d == 2:
        axes.remove(2 if image.shape[3] == 1 else _choice(generator, 3))
    size = torch.tensor(image.shape[1:]).double()
    slack = size - 1
    matrix = torch.zeros(4, 4, dtype=torch.float64)
    matrix[3, 3] = 1
    span = torch.ones(3, dtype=torch.float64)
    for k, axis in enumerate(axes):
        matrix[axis, k] = zoom
        span[axis] = zoom * (shape[k] - 1)
    for axis in range(3):
        room = float(slack[axis] - span[axis])
        place = float(torch.rand((), generator=generator))
        matrix[axis, 3] = room * place if room > 0 or axis in axes else 0.0
    full = (*shape, 1) if d == 2 else shape
    out = resample(image[None], matrix, full, mode=mode, fill=float(image.min()))[0]  # type: ignore[arg-type]
    return out[..., 0] if d == 2 else out


def _flipped(image: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrored along random axes and with axes exchanged."""
    d = image.ndim - 1
    image = image.permute(0, *(1 + torch.randperm(d, generator=generator)).tolist())
    return image.flip([a + 1 for a in range(d) if _chance(generator, 0.5)])


def turned(pair: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """The same pair with its axes exchanged and mirrored, the field with them: another example.

    Args:
        pair: what `Pairs` yields, with a batch axis; as many voxels along each axis.
        generator: of the choice.
    """
    d = pair["ddf"].shape[1]
    order = torch.randperm(d, generator=generator)
    mirrored = [a for a in range(d) if _chance(generator, 0.5)]
    out = {}
    for name, image in pair.items():
        image = image.permute(0, 1, *(2 + order).tolist()).flip([2 + a for a in mirrored])
        if name == "ddf":
            image = image[:, order].contiguous()
            image[:, mirrored] = -image[:, mirrored]
        out[name] = image.contiguous()
    return out


def _chance(generator: torch.Generator, probability: float) -> bool:
    return float(torch.rand((), generator=generator)) < probability


def _choice(generator: torch.Generator, count: int) -> int:
    return int(torch.randint(count, (), generator=generator))


def build_cache(data: Path, path: Path, dims: int) -> None:
    """Read the training images and label maps once into one file.

    Volumes at 2 mm for 3D; for 2D slices with pixels of 1 mm, ``(C, i, j, 1)`` each.
    """
    import nibabel as nib

    spacing = 2.0 if dims == 3 else 1.0

    def load(file: Path, mode: str = "bilinear") -> tuple[Tensor, np.ndarray]:
        image = nib.load(file)
        array = torch.from_numpy(image.get_fdata(dtype=np.float32))[None]
        affine, shape = rescaled_affine(image.affine, array.shape[1:], spacing)
        voxels = torch.from_numpy(np.linalg.inv(image.affine) @ affine)
        return resample(array[None], voxels, shape, mode=mode, fill=None)[0], affine  # type: ignore[arg-type]

    labels = []
    files = sorted((data / "3d_brain_labelmaps").glob("*.nii.gz"))
    files = [f for f in files if f.name[:-7][-2:] not in EVALUATION_BRAINS or "lab2im" in f.name]
    files.append(data / "3d_abdomen_ct_mr/totalseg_abdomen_ct_labels_3mm.nii.gz")
    for file in files:
        one = load(file, "nearest")[0][0].long()
        numbered = torch.unique(one, return_inverse=True)[1].to(torch.uint8)
        labels += [numbered] if dims == 3 else [x[0] for x in _slices(numbered[None], (0, 1, 2))]
    pairs = []
    for folder in sorted((data / "3d_sarcoma_ct_mr_pet").iterdir()):
        if folder.name in EVALUATION_SARCOMA:
            continue
        ct, affine = load(next(folder.glob("*_ct.nii.gz")))
        body = (ct > -300).float()
        others = [("pet", next(folder.glob("*_pet-suv*")))]
        if folder.name in FAIR_MR:
            others.append(("mr", next(folder.glob("*_mr-*"))))
        for modality, file in others:
            image = nib.load(file)
            voxels = torch.from_numpy(np.linalg.inv(image.affine) @ affine)
            array = torch.from_numpy(image.get_fdata(dtype=np.float32))[None, None]
            moved = resample(array, voxels, ct.shape[1:], fill=0.0)[0]
            both = [NormalizeModality("ct")(ct), NormalizeModality(modality)(moved), body]
            whole = torch.cat([torch.as_tensor(x).float() for x in both]).half()
            pairs += [whole] if dims == 3 else _slices(whole, (2,), shown=moved[0] > 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"labels": labels, "pairs": pairs}, path)


def _slices(
    image: Tensor, axes: tuple[int, ...], *, shown: Tensor | None = None, every: int = 6
) -> list[Tensor]:
    """Every so many slices ``(C, i, j, 1)`` of a volume ``(C, i, j, k)`` that show enough."""
    shown = image[-1] > 0 if shown is None else shown
    out = []
    for axis in axes:
        for k in range(0, image.shape[1 + axis], every):
            where = shown.select(axis, k).nonzero()
            if len(where) < 5000:
                continue
            low, high = (where.amin(0) - 8).clamp_min(0).tolist(), (where.amax(0) + 9).tolist()
            box = (slice(None), *[slice(a, b) for a, b in zip(low, high, strict=True)])
            out.append(image.select(1 + axis, k)[box][..., None].clone())
    return out


def loss_of(
    network: RegistrationNet, batch: dict[str, Tensor], *, twice: bool
) -> tuple[Tensor, dict[str, float]]:
    """Distance to the true field after one pass (or two), the search's own error, smoothness."""
    fixed, moving, truth, weight = (batch[k] for k in ("fixed", "moving", "ddf", "weight"))
    first, belief = network.ddf_and_match(fixed, moving)
    error = _distance(first, truth, weight)
    match = _match_loss(belief, truth, weight, network.radius)
    rough = sum(first.diff(n=2, dim=a).square().mean() for a in range(2, first.ndim))
    loss = error + 0.3 * match + 0.5 * rough
    with torch.no_grad():
        start = _distance(torch.zeros_like(truth), truth, weight)
    numbers = {"start": start, "first": error, "match": match}
    if twice:
        # The second pass takes the first one's result as given: the net has to improve on it.
        seen = first.detach()
        second = compose(network(fixed, warp(moving, seen, fill=None)), seen)
        again = _distance(second, truth, weight)
        loss = loss + again
        numbers["gain"] = again - error
    return loss, {k: float(v.detach()) for k, v in numbers.items()}


def _match_loss(belief: Tensor, truth: Tensor, weight: Tensor, radius: int) -> Tensor:
    """Negative log belief in the true shift (its neighbours share linearly), inside the body."""
    d = truth.shape[1]
    lattice = belief.shape[2:]
    grid = tuple(slice(None, n * 4, 4) for n in truth.shape[2:])
    shift = (truth[(slice(None), slice(None), *grid)] / 4).clamp(-radius, radius) + radius
    here = weight[(slice(None), slice(None), *grid)]
    crop = tuple(slice(min(a, b)) for a, b in zip(lattice, shift.shape[2:], strict=True))
    belief, shift, here = (x[(slice(None), slice(None), *crop)] for x in (belief, shift, here))
    low = shift.floor().clamp(0, 2 * radius - 1)
    part = shift - low
    total = torch.zeros_like(here)
    for corner in range(2**d):
        index, share = 0, torch.ones_like(here)
        for axis in range(d):
            up = corner >> axis & 1
            index = index * (2 * radius + 1) + (low[:, axis : axis + 1] + up).long()
            share = share * (part[:, axis : axis + 1] if up else 1 - part[:, axis : axis + 1])
        total = total + share * belief.gather(1, index).exp()
    return (-(total + 1e-4).log() * here).sum() / here.sum().clamp_min(1e-6)


def _distance(found: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean length of the difference, voxels."""
    length = ((found - truth).square().sum(1, keepdim=True) + 1e-3).sqrt()
    return (length * weight).sum() / weight.sum()


def train(options: argparse.Namespace) -> None:
    """Train until the hours are over; log a line and save every 100 steps."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    cache = options.out / f"cache_{options.spatial_dims}d.pt"
    if not cache.exists():
        build_cache(options.data, cache, options.spatial_dims)
    network = RegistrationNet(options.spatial_dims, options.channels, radius=options.radius)
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.lr, weight_decay=1e-4)
    step, spent, log = 0, 0.0, []
    if options.resume:
        state = torch.load(options.resume, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent = state["step"], 0.0 if options.new_schedule else state["spent"]
    pairs = Pairs(cache, options.size, options.spatial_dims, options.seed + step)
    stream = iter(DataLoader(pairs, batch_size=options.batch, num_workers=options.workers))
    begin, last = time.time() - spent, time.time()
    budget = options.hours * 3600
    generator, batch = torch.Generator().manual_seed(options.seed + step), None
    while time.time() - begin < budget:
        done = (time.time() - begin) / budget
        warmup = min(1.0, (step + 1) / 100)
        for group in optimizer.param_groups:
            group["lr"] = options.lr * warmup * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        # a pair takes as long to draw as to learn from: each is used twice
        batch = turned(batch, generator) if batch and step % 2 else next(stream)
        # grids and the integration stay in float32: autocast halves convolutions only
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            loss, numbers = loss_of(network, batch, twice=step % 4 == 3)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        step += 1
        log.append(numbers)
        if step % 100 == 0:
            names = ("start", "first", "match", "gain")
            mean = {k: float(np.mean([n[k] for n in log if k in n])) for k in names}
            line = {"step": step, "s": round(time.time() - last, 1), **mean}
            with (options.out / "log.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            log, last = [], time.time()
            state = {
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step,
                "spent": time.time() - begin,
            }
            torch.save(state, options.out / "next.pt")
            (options.out / "next.pt").rename(options.out / "last.pt")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--hours", type=float, default=1.5)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--new-schedule", action="store_true", help="learning rate from the top")
    parser.add_argument("--bf16", action="store_true", help="a third of the time on AVX-512 BF16")
    parser.add_argument("--spatial-dims", type=int, default=3)
    parser.add_argument("--channels", type=int, nargs=4, default=[16, 32, 32, 48])
    parser.add_argument("--radius", type=int, default=2)
    parser.add_argument("--size", type=int, default=65)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=1)
    train(parser.parse_args())
