"""Fuse any number of harmonized images by attention over channels, space and modalities."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from torch import Tensor, nn
from torch.compiler import is_exporting

from fusion_pipeline.geometry.filters import block_mean, box_mean, box_sum_adjoint
from fusion_pipeline.geometry.shares import masked_softmax, range_by_share, softmax_by_share
from fusion_pipeline.networks.kinds import KINDS, kind_indices

STRIDE = 4  # voxels of the input in one coarse voxel, along each axis
_AIR = 0.06  # what is no brighter shows nothing
# Voxels whose means part an image into details at three scales and what is left.
_WINDOWS = (3, 7, 19)
LEVELS = len(_WINDOWS) + 1
_LINEAR = {2: "bilinear", 3: "trilinear"}
_FILLED_BY = (11, 3, 1)  # windows in coarse voxels whose means go on beyond a field of view
_CONTRAST = 7  # voxels of the window in which contrast is measured
# brings the energy of details to the size of the other features, so that it is learned as fast
_GAIN = 8.0


class FusionOutput(NamedTuple):
    """What the fusion network gives.

    Attributes:
        fused: ``(B, 1, *S)`` in [0, 1].
        weights: ``(B, M, *S)``, positive, summing to 1 over the modalities present at a voxel, 0
            outside a modality's field of view; in the order of the input. Means over the scales.
    """

    fused: Tensor
    weights: Tensor


class FusionNet(nn.Module):
    """Encode each modality, weigh by attention, sum the details of all scales (METHOD 5.1, 5.2).

    ``F_k = E_kind(I_k)``; at the coarse level channels are gated by their mean over what the image
    shows, the modalities of each voxel look at each other (self-attention over modalities), and a
    decoder with skips turns ``F_k``, the image, its contrast and the energy of its details into one
    logit per voxel and scale (attention over space). Their softmax over the modalities in view is
    ``w_k^l``. ``fused = Σ_l Σ_k w_k^l D_k^l``, where ``D_k^l`` are the details of image k between
    means of 1, 3, 7 and 19 voxels, and what the largest mean leaves. For one image they sum to
    itself. So the fused image is linear in its sources, within whose range it stays, and nothing is
    invented.

    The weights follow the harmonized images, the details are those of the images as displayed: so
    a protocol decides neither what is chosen nor how it looks.

    Where a field of view ends, an image's share takes its weight away. Beyond it, features are made
    of the mean of the voxels nearby, and the other images attend to them for some 20 voxels: so no
    weight follows a border.

    Logits begin at zero: an untrained network is the average. The result does not depend on the
    order of the modalities, to the last bit, since sums run in an order of the network's own.

    Args:
        spatial_dims: 2 or 3.
        channels: features at full, half and quarter resolution. Not 8: there torch's 3D convolution
            is ten times slower on a CPU than with 9, 10 or 12 input channels.
    """

    def __init__(self, spatial_dims: int = 3, channels: Sequence[int] = (12, 16, 32)) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"expected 2 or 3 spatial dimensions, got {spatial_dims}")
        if len(channels) != 3:
            raise ValueError(f"expected channels of three levels, got {tuple(channels)}")
        self.spatial_dims = spatial_dims
        fine, _, coarse = channels
        conv = Conv[Conv.CONV, spatial_dims]
        self.encoders = nn.ModuleDict({k: _Encoder(spatial_dims, channels) for k in KINDS})
        self.modality_attention = _ModalityAttention(spatial_dims, coarse)
        self.decoder = _Decoder(spatial_dims, channels)
        # image, contrast, and the energy of the details at each scale
        self.logit = conv(fine + 2 + len(_WINDOWS), LEVELS, 1)
        nn.init.zeros_(self.logit.weight)
        nn.init.zeros_(self.logit.bias)

    def forward(
        self,
        images: Tensor,
        kinds: str | Sequence[str],
        field_of_view: Tensor | None = None,
        summary: Tensor | None = None,
        displayed: Tensor | None = None,
    ) -> FusionOutput:
        """Fuse.

        Args:
            images: ``(B, M, *S)`` harmonized, in [0, 1]; M ≥ 1 images in any order.
            kinds: one for all, or M of ``ct``, ``mr``, ``emission``.
            field_of_view: ``(B, M, *S)``: 0 outside each image's view, inside the share of its
                weight that the image keeps, up to 1; all of it by default.
            summary: ``(B, M, C + 1)`` of the whole images where these are a part of them, see
                `summarize`; by default of these.
            displayed: ``(B, M, *S)`` in [0, 1], the same images as a reader displays them: what is
                summed. By default the harmonized ones.

        Returns:
            The fused image and the weights; both 0 outside every field of view.

        Raises:
            ValueError: shapes that do not fit, or shares outside 0..1.
        """
        index, images, kept = self._check(images, kinds, field_of_view)
        if summary is not None and summary.shape[:2] != images.shape[:2]:
            raise ValueError(
                f"expected a summary of {images.shape[1]} images, got {tuple(summary.shape)}"
            )
        if displayed is not None and displayed.shape != images.shape:
            raise ValueError(
                f"expected displayed images of the shape {tuple(images.shape)}, "
                f"got {tuple(displayed.shape)}"
            )
        given = images if displayed is None else displayed.to(images) * (kept > 0)
        order = canonical_order(images, index)
        picked, kept, given = (
            torch.stack([x[:, m] for m in order], 1) for x in (images, kept, given)
        )
        if summary is not None:
            summary = torch.stack([summary[:, m] for m in order], 1)
        kinds = [KINDS[index[m]] for m in order]
        fused, weights = self._fuse(picked, given, kinds, kept, summary)
        back = sorted(range(len(order)), key=order.__getitem__)
        return FusionOutput(fused, torch.stack([weights[:, m] for m in back], 1))

    def features(
        self, images: Tensor, kinds: str | Sequence[str], field_of_view: Tensor | None = None
    ) -> Tensor:
        """The fused features, ``F = Σ_k w_k F_k``: what other heads may read (METHOD 5.1).

        Args:
            images: as in `forward`.
            kinds: as in `forward`.
            field_of_view: as in `forward`.

        Returns:
            ``(B, C, *S)``, C the features at full resolution; ``F_k`` are the decoder's of image k,
            ``w_k`` the weights of `forward`.

        Raises:
            ValueError: as in `forward`.
        """
        index, images, kept = self._check(images, kinds, field_of_view)
        order = canonical_order(images, index)
        picked, share = (torch.stack([x[:, m] for m in order], 1) for x in (images, kept))
        names = [KINDS[index[m]] for m in order]
        weights = self._fuse(picked, picked, names, share, None)[1]
        padded = _padded_to_stride(picked)
        in_view = (_padded_to_stride(share) > 0).to(images.dtype)
        decoded = self._decoded(padded, names, in_view, None)
        within = (slice(None), slice(None), *(slice(n) for n in images.shape[2:]))
        return torch.stack(
            [weights[:, m : m + 1] * one[within] for m, one in enumerate(decoded)]
        ).sum(0)

    def summarize(
        self,
        images: Tensor,
        kinds: str | Sequence[str],
        field_of_view: Tensor | None = None,
        where: Tensor | None = None,
    ) -> Tensor:
        """What gates the channels: the summaries of the parts of images add up to the whole's.

        Args:
            images: as in `forward`.
            kinds: as in `forward`.
            field_of_view: as in `forward`.
            where: ``(B, 1, *S)`` 0/1: what counts; everything by default.

        Returns:
            ``(B, M, C + 1)``: per image, the sum of each coarse channel, weighed by how bright the
            image is there, less 0.06, and the sum of these weights. Air and what lies outside an
            image's field of view have no weight.

        Raises:
            ValueError: as in `forward`.
        """
        index, images, kept = self._check(images, kinds, field_of_view)
        in_view = (kept > 0).to(images.dtype)
        counted = in_view if where is None else in_view * where
        images, in_view, counted = (_padded_to_stride(x) for x in (images, in_view, counted))
        filled = _filled(images, in_view)
        coarse = [
            self.encoders[KINDS[index[m]]](filled[:, m : m + 1])[-1] for m in range(images.shape[1])
        ]
        return _summary(torch.stack(coarse, 1), images, counted)

    def _fuse(
        self,
        images: Tensor,
        displayed: Tensor,
        kinds: Sequence[str],
        kept: Tensor,
        summary: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Fuse images that are in order and zero outside their fields of view."""
        shape = images.shape[2:]
        images, displayed, kept = (_padded_to_stride(x) for x in (images, displayed, kept))
        in_view = (kept > 0).to(images.dtype)
        features = self._decoded(images, kinds, in_view, summary)
        details = _details(displayed, in_view)
        covered = _box_mean(in_view, _CONTRAST).clamp_min(1e-3)
        salience = [
            displayed,
            _contrast(displayed, in_view, covered),
            *(_energy(d, in_view, covered) for d in details[:-1]),
        ]
        logits = torch.stack(
            [
                _bounded(self.logit(torch.cat([f, *(s[:, m : m + 1] for s in salience)], 1)))
                for m, f in enumerate(features)
            ],
            1,
        )
        fused, mean = torch.zeros_like(images[:, :1]), torch.zeros_like(images)
        for level, detail in enumerate(details):
            weights = softmax_by_share(logits[:, :, level], kept)
            fused = fused + (weights * detail).sum(1, keepdim=True)
            mean = mean + weights / len(details)
        # where scales weigh differently their sum could leave the range: air would not stay black
        low, high = range_by_share(displayed, kept)
        fused = torch.minimum(torch.maximum(fused, low), high)
        within = [slice(None)] * 2 + [slice(n) for n in shape]
        return fused[tuple(within)], mean[tuple(within)]

    def _decoded(
        self, images: Tensor, kinds: Sequence[str], in_view: Tensor, summary: Tensor | None
    ) -> list[Tensor]:
        """Per image the decoder's features ``(B, C, *S)``, of a shape that the stride divides."""
        filled = _filled(images, in_view)
        levels = [self.encoders[kind](filled[:, m : m + 1]) for m, kind in enumerate(kinds)]
        del filled
        coarse = torch.stack([level[-1] for level in levels], 1)
        if summary is None:
            summary = _summary(coarse, images, in_view)
        gates = self._gates(summary, kinds)
        coarse = coarse * gates.view(*gates.shape, *[1] * self.spatial_dims)
        mixed = self.modality_attention(coarse, _attention_mask(in_view))
        return [self.decoder([*level[:-1], mixed[:, m]]) for m, level in enumerate(levels)]

    def _gates(self, summary: Tensor, kinds: Sequence[str]) -> Tensor:
        """``(B, M, C)`` in 0..1, by the mean channels of each image."""
        means = summary[..., :-1] / summary[..., -1:].clamp_min(1e-6)
        gates = [
            self.encoders[kind].get_submodule("gate")(means[:, m]) for m, kind in enumerate(kinds)
        ]
        return torch.stack(gates, 1)

    def _check(
        self, images: Tensor, kinds: str | Sequence[str], field_of_view: Tensor | None
    ) -> tuple[list[int], Tensor, Tensor]:
        """The kinds as numbers, the images, zero outside their view, and their shares."""
        if images.ndim != self.spatial_dims + 2:
            raise ValueError(
                f"expected images (B, M, *S) with {self.spatial_dims} spatial axes, "
                f"got {tuple(images.shape)}"
            )
        if field_of_view is not None and field_of_view.shape != images.shape:
            raise ValueError(
                f"expected field_of_view of the images' shape {tuple(images.shape)}, "
                f"got {tuple(field_of_view.shape)}"
            )
        index = kind_indices(kinds, images.shape[1])
        kept = torch.ones_like(images) if field_of_view is None else field_of_view.to(images.dtype)
        if not is_exporting() and not bool(((kept >= 0) & (kept <= 1)).all()):
            raise ValueError("expected field_of_view between 0 and 1")
        return index, torch.where(kept > 0, images, 0.0), kept


class _Encoder(nn.Module):
    """Three levels of features, and what gates the channels of the coarsest."""

    def __init__(self, spatial_dims: int, channels: Sequence[int]) -> None:
        super().__init__()
        conv = Conv[Conv.CONV, spatial_dims]
        fine, middle, coarse = channels
        self.fine = conv(1, fine, 3, padding=1)
        self.middle = conv(fine, middle, 3, stride=2, padding=1)
        self.coarse = nn.Sequential(
            conv(middle, coarse, 3, stride=2, padding=1),
            nn.LeakyReLU(0.1),
            conv(coarse, coarse, 3, padding=1),
        )
        self.gate = nn.Sequential(
            nn.Linear(coarse, coarse // 2),
            nn.ReLU(),
            nn.Linear(coarse // 2, coarse),
            nn.Sigmoid(),
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """``(B, 1, *S)`` to features at full, half and quarter resolution."""
        fine = F.leaky_relu(self.fine(image), 0.1)
        middle = F.leaky_relu(self.middle(fine), 0.1)
        return [fine, middle, F.leaky_relu(self.coarse(middle), 0.1)]


class _ModalityAttention(nn.Module):
    """Self-attention among the modalities of one voxel; their order changes nothing."""

    def __init__(self, spatial_dims: int, channels: int) -> None:
        super().__init__()
        conv = Conv[Conv.CONV, spatial_dims]
        self.query = conv(channels, channels, 1)
        self.key = conv(channels, channels, 1)
        self.value = conv(channels, channels, 1)
        self.out = conv(channels, channels, 3, padding=1)

    def forward(self, features: Tensor, attention_mask: Tensor) -> Tensor:
        """``(B, M, C, *S)`` and the mask of the keys ``(B, M, *S)``, 0..1, to the same shape."""
        count, channels = features.shape[1], features.shape[2]
        query, key, value = (
            torch.stack([part(features[:, m]) for m in range(count)], 1)
            for part in (self.query, self.key, self.value)
        )
        mixed = []
        for m in range(count):
            score = (query[:, m : m + 1] * key).sum(2) / channels**0.5
            weight = masked_softmax(score, attention_mask)
            attended = (weight.unsqueeze(2) * value).sum(1)
            mixed.append(features[:, m] + self.out(F.leaky_relu(attended, 0.1)))
        return torch.stack(mixed, 1)


class _Decoder(nn.Module):
    """From three levels back to full resolution, with skips."""

    def __init__(self, spatial_dims: int, channels: Sequence[int]) -> None:
        super().__init__()
        conv = Conv[Conv.CONV, spatial_dims]
        fine, middle, coarse = channels
        self.mode = _LINEAR[spatial_dims]
        self.narrow = conv(coarse, middle, 1)
        self.middle = conv(middle, middle, 3, padding=1)
        self.narrower = conv(middle, fine, 1)
        self.fine = conv(fine, fine, 3, padding=1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Features at full, half and quarter resolution to ``(B, fine, *S)``."""
        fine, middle, coarse = levels
        up = self._enlarge(self.narrow(coarse), middle)
        middle = F.leaky_relu(self.middle(middle + up), 0.1)
        return F.leaky_relu(self.fine(fine + self._enlarge(self.narrower(middle), fine)), 0.1)

    def _enlarge(self, features: Tensor, like: Tensor) -> Tensor:
        """To the shape of another level."""
        return F.interpolate(features, size=like.shape[2:], mode=self.mode, align_corners=False)


def _details(images: Tensor, in_view: Tensor) -> list[Tensor]:
    """``(B, M, *S)`` of each scale, from fine to coarse; they sum to the images.

    Means are those of what is in view, whose border is no detail.
    """
    parts, finer = [], images
    for window in _WINDOWS:
        covered = _box_mean(in_view, window).clamp_min(1e-3)
        local = _box_mean(images, window) / covered * in_view
        parts.append(finer - local)
        finer = local
    return [*parts, finer]


def _energy(detail: Tensor, in_view: Tensor, covered: Tensor) -> Tensor:
    """How strong the details are around each voxel, within its field of view.

    Args:
        detail: ``(B, M, *S)``.
        in_view: ``(B, M, *S)`` 0/1.
        covered: ``(B, M, *S)``, the mean of that around each voxel.
    """
    return _GAIN * _box_mean(detail.abs(), _CONTRAST) / covered * in_view


def _contrast(images: Tensor, in_view: Tensor, covered: Tensor) -> Tensor:
    """Local standard deviation of each image within its field of view; arguments as `_energy`."""
    mean = _box_mean(images, _CONTRAST) / covered
    variance = _box_mean(images.square(), _CONTRAST) / covered - mean.square()
    return variance.clamp_min(1e-8).sqrt() * in_view


def _attention_mask(in_view: Tensor) -> Tensor:
    """How far the other images attend to an image, 0..1, at coarse voxels.

    1 within its field of view, or what the others make of it would tell where that ends; less and
    less beyond, so that no window attends to what another does not.
    """
    covered = block_mean(in_view, STRIDE)
    return torch.where(covered > 0, 1.0, (4 * _box_mean(covered, _FILLED_BY[0])).clamp_max(1.0))


def _filled(images: Tensor, in_view: Tensor) -> Tensor:
    """Images that go on beyond their fields of view with the mean nearby.

    So the features do not tell where a field of view ends: from them, weights could learn to rise
    or fall along its border.
    """
    if not is_exporting() and bool((in_view > 0).all()):  # the same without the work
        return images
    sums, covers = block_mean(images, STRIDE), block_mean(in_view, STRIDE)
    axes = list(range(2, images.ndim))
    around = sums.sum(axes, keepdim=True) / covers.sum(axes, keepdim=True).clamp_min(1e-6)
    for window in _FILLED_BY:  # the near over the far
        covered = _box_mean(covers, window)
        near = _box_mean(sums, window) / covered.clamp_min(1e-6)
        around = torch.where(covered > 1e-6, near, around)
    mode = _LINEAR[images.ndim - 2]
    around = F.interpolate(around, size=images.shape[2:], mode=mode, align_corners=False)
    return torch.where(in_view > 0, images, around)


def _box_mean(images: Tensor, window: int) -> Tensor:
    """Mean over boxes, zeros beyond the border."""
    if is_exporting():  # a graph holds torch's own operators
        return box_mean(images, window, zeros_beyond=True)
    return box_sum_adjoint(images, window) / window ** (images.ndim - 2)


def canonical_order(images: Tensor, index: Sequence[int]) -> list[int]:
    """An order that depends on what the images are and not on where they stand.

    An exported graph cannot sort by values: there images of one kind keep their order, and another
    order may change the last bits.
    """
    if is_exporting():
        return sorted(range(images.shape[1]), key=lambda m: index[m])
    sums = [images[:, m].detach().contiguous().double().sum() for m in range(images.shape[1])]
    brightness = torch.stack(sums).tolist()  # one wait for the device
    return sorted(range(images.shape[1]), key=lambda m: (index[m], brightness[m]))


def _bounded(logits: Tensor) -> Tensor:
    """Within ±8, so that no modality's weight is lost to rounding.

    The factor makes the last layer learn as fast as the others, whose output is small.
    """
    return 8.0 * torch.tanh(4.0 * logits / 8.0)


def _summary(coarse: Tensor, images: Tensor, in_view: Tensor) -> Tensor:
    """``(B, M, C, *S)`` summed over ``*S``, weighed by what each image shows; and the weights."""
    shown = block_mean((images - _AIR).clamp_min(0) * in_view, STRIDE).flatten(2)
    sums = (coarse.flatten(3) * shown.unsqueeze(2)).sum(3)
    return torch.cat([sums, shown.sum(2, keepdim=True)], 2)


def _padded_to_stride(values: Tensor) -> Tensor:
    """Zeros at the far end of each axis, up to a multiple of the stride.

    So the levels lie on one another, and a part that begins at a multiple of the stride gives what
    the whole gives there.
    """
    beyond = [p for n in values.shape[:1:-1] for p in (0, -n % STRIDE)]
    return F.pad(values, beyond) if any(beyond) else values
