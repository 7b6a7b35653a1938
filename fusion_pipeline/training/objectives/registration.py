"""Known fields: how far the predicted displacement is from the truth (METHOD 3)."""

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from fusion_pipeline.geometry import compose, warp
from fusion_pipeline.metrics import DiceScore, TargetRegistrationError
from fusion_pipeline.networks.multimodal_net import MultimodalNet
from fusion_pipeline.networks.registration_net import RegistrationNet
from fusion_pipeline.training.batch import Batch
from fusion_pipeline.training.objectives.objective import Outputs

_STRIDE = 4  # voxels between the points that the network's search compares
# what a sample has to bring for a score of it
TRUTH_OF_SCORE = {
    "error_mm_before": "ddf",
    "error_mm": "ddf",
    "dice_before": "labels",
    "dice": "labels",
}
_AIR = 0.05  # what a voxel outside the body weighs beside one inside


class RegistrationObjective:
    """Distance to a known field, of a first pass and of a second one on the first one's result.

    The second pass takes the first one's field as given, so that the network learns to improve what
    it left. Beside the distance: how sure the search was of the true shift, and second differences
    of the field.

    Args:
        match: weight of the search's negative log likelihood of the true shift.
        smoothness: weight of the field's mean square second difference, per voxel.
        second_pass_every: steps from one with a second pass to the next; 0: none.
    """

    phase = "registration"
    stages = ("registration",)
    parts: tuple[str, ...] = ("distance", "match", "smoothness")
    truths: Mapping[str, str] = TRUTH_OF_SCORE

    def __init__(
        self, match: float = 0.3, smoothness: float = 0.5, second_pass_every: int = 4
    ) -> None:
        self.match = match
        self.smoothness = smoothness
        self.second_pass_every = second_pass_every

    def start(self, network: MultimodalNet) -> None:
        """Nothing to set."""

    def losses(
        self, network: MultimodalNet, batch: Batch, step: int
    ) -> tuple[dict[str, Tensor], Outputs]:
        """See `Objective`; every moving image is registered to the first image."""
        if batch.ddf is None:
            raise ValueError("registration: expected samples with a known field, got some without")
        every = self.second_pass_every
        twice = every > 0 and step % every == every - 1
        parts: dict[str, Tensor] = {}
        fields = []
        weight = body_weight(batch)
        moving = batch.image.shape[1] - 1
        for m in range(moving):
            pair = batch.image[:, :1], batch.image[:, m + 1 : m + 2]
            one, ddf = self._pair(network.registration, *pair, batch.ddf[:, m], weight, twice=twice)
            fields.append(ddf)
            for name, value in one.items():
                parts[name] = parts.get(name, 0.0) + value / moving
        return parts, Outputs(ddf=torch.stack(fields, 1), warped=warped(batch, fields))

    def _pair(
        self,
        network: RegistrationNet,
        fixed: Tensor,
        moving: Tensor,
        truth: Tensor,
        weight: Tensor,
        *,
        twice: bool,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The parts for one moving image, and the field of the first pass."""
        ddf, belief = network.ddf_and_match(fixed, moving)
        rough = sum(ddf.diff(n=2, dim=a).square().mean() for a in range(2, ddf.ndim))
        parts = {
            "distance": distance(ddf, truth, weight).mean(),
            "match": self.match * match_loss(belief, truth, weight, network.radius).mean(),
            "smoothness": self.smoothness * torch.as_tensor(rough),
        }
        if twice:
            first = ddf.detach()
            second = compose(network(fixed, warp(moving, first, fill=None)), first)
            parts["second_pass"] = distance(second, truth, weight).mean()
        return parts, ddf

    def scores(self) -> MetricCollection:
        """Error in mm, 95th percentile and worst tenth left out; overlap of labels."""
        return registration_scores()

    def update(self, scores: MetricCollection, batch: Batch, outputs: Outputs) -> None:
        """See `Objective`."""
        update_registration_scores(scores, batch, outputs)


def registration_scores() -> MetricCollection:
    """Error in mm and label overlap of the pairs, before and after."""
    return MetricCollection(
        {
            "error_mm_before": TargetRegistrationError(),
            "error_mm": TargetRegistrationError(),
            "dice_before": DiceScore(),
            "dice": DiceScore(),
        },
        compute_groups=False,  # before and after are the same measure of other fields
    )


def update_registration_scores(scores: MetricCollection, batch: Batch, outputs: Outputs) -> None:
    """Add each pair of the batch that has a truth."""
    if outputs.ddf is None:
        return
    for when, ddf in (("_before", torch.zeros_like(outputs.ddf)), ("", outputs.ddf)):
        scores[f"error_mm{when}"].update(*vectors_mm(batch, ddf))
        scores[f"dice{when}"].update(*label_maps(batch, ddf))


def warped(batch: Batch, fields: list[Tensor]) -> Tensor:
    """``(B, M, *S)`` the reference and the moving images, warped."""
    moved = [warp(batch.image[:, m + 1 : m + 2], ddf, fill=None) for m, ddf in enumerate(fields)]
    return torch.cat([batch.image[:, :1], *moved], 1)


def body_weight(batch: Batch) -> Tensor:
    """``(B, 1, *S)``: 1 in the reference's body, a little outside."""
    if batch.body is None:
        return torch.ones_like(batch.image[:, :1])
    return _AIR + (1 - _AIR) * batch.body[:, :1]


def distance(ddf: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """``(B,)`` weighted mean length of the difference of two fields ``(B, d, *S)``, voxels."""
    length = ((ddf - truth).square().sum(1, keepdim=True) + 1e-3).sqrt()
    return (length * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp_min(1e-6)


def match_loss(belief: Tensor, truth: Tensor, weight: Tensor, radius: int) -> Tensor:
    """Negative log likelihood of the true shift in the search's window.

    Args:
        belief: ``(B, (2 radius + 1)^d, *S / 4)`` log probabilities of the shifts.
        truth: ``(B, d, *S)`` voxels; its share goes to the neighbouring shifts, linearly.
        weight: ``(B, 1, *S)``.
        radius: steps of four voxels that the window reaches.

    Returns:
        ``(B,)``.
    """
    d = truth.shape[1]
    grid = (slice(None), slice(None), *[slice(None, n * _STRIDE, _STRIDE) for n in truth.shape[2:]])
    shift = (truth[grid] / _STRIDE).clamp(-radius, radius) + radius
    here = weight[grid]
    sides = zip(belief.shape[2:], shift.shape[2:], strict=True)
    both = (slice(None), slice(None), *[slice(min(a, b)) for a, b in sides])
    belief, shift, here = belief[both], shift[both], here[both]
    low = shift.floor().clamp(0, 2 * radius - 1)
    part = shift - low
    total = torch.zeros_like(here)
    for corner in itertools.product((0, 1), repeat=d):
        index = torch.zeros_like(low[:, :1], dtype=torch.long)
        share = torch.ones_like(here)
        for axis, up in enumerate(corner):
            one = slice(axis, axis + 1)
            index = index * (2 * radius + 1) + (low[:, one] + up).long()
            share = share * (part[:, one] if up else 1 - part[:, one])
        total = total + share * belief.gather(1, index).exp()
    # the least likelihood that counts: one wrong voxel must not rule a batch
    loss = -(total + 1e-4).log() * here
    return loss.flatten(1).sum(1) / here.flatten(1).sum(1).clamp_min(1e-6)


def vectors_mm(batch: Batch, ddf: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """True and predicted displacements in the reference's body; without one, everywhere.

    Args:
        batch: M images of B samples; without a truth there is no pair.
        ddf: ``(B, M - 1, d, *S)`` voxels, as predicted.

    Returns:
        For each pair of reference and moving image, ``(n, d)`` mm each.
    """
    true: list[Tensor] = []
    predicted: list[Tensor] = []
    if batch.ddf is None:
        return true, predicted
    for b, m in itertools.product(range(ddf.shape[0]), range(ddf.shape[1])):
        inside = reference_body(batch)[b]
        true.append(batch.ddf[b, m][:, inside].T * batch.spacing[b])
        predicted.append(ddf[b, m][:, inside].T * batch.spacing[b])
    return true, predicted


def reference_body(batch: Batch) -> Tensor:
    """``(B, *S)`` bool: the reference's body, as drawn or as labelled; else everywhere."""
    if batch.body is not None:
        return batch.body[:, 0] > 0.5
    if batch.labels is not None:
        return batch.labels[:, 0] > 0
    return torch.ones_like(batch.image[:, 0], dtype=torch.bool)


def label_maps(batch: Batch, ddf: Tensor) -> tuple[Tensor, Tensor]:
    """The reference's labels and the moving image's, warped by the nearest label.

    Args:
        batch: M images of B samples; without labels there is no pair.
        ddf: ``(B, M - 1, d, *S)`` voxels, as predicted.

    Returns:
        ``(B · (M - 1), 1, *S)`` each, a pair of reference and moving image after the other.
    """
    if batch.labels is None:
        nothing = ddf.new_empty((0, 1, *ddf.shape[3:]))
        return nothing, nothing
    fixed, moving = batch.labels[:, :1].expand_as(batch.labels[:, 1:]), batch.labels[:, 1:]
    pairs = moving.flatten(0, 1)[:, None].float()
    return fixed.flatten(0, 1)[:, None], warp(pairs, ddf.flatten(0, 1), mode="nearest")
