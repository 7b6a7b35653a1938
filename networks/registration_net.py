"""The registration network: contrast-blind features, a local search, a LocalNet-style decoder."""

from collections.abc import Sequence
from itertools import product

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv, Norm
from torch import Tensor, nn
from torch.compiler import is_exporting

from fusion_pipeline.geometry import integrate, resize, resize_ddf
from fusion_pipeline.geometry.filters import averaged, box_sum_same, halved
from fusion_pipeline.losses.mind import mind_ssc

_LEVELS = 4


class RegistrationNet(nn.Module):
    """Predict a stationary velocity and integrate it, ``D = exp(F_θ(I_r, I_m))`` (METHOD 3.1).

    Both images pass one feature extractor (self-similarities and a few learned channels on half the
    resolution). The features are compared over a window of shifts on a quarter of the resolution;
    the soft minimum of that comparison is a first displacement. A decoder in the manner of LocalNet
    sums velocities predicted on four levels onto it. Comparing features instead of regressing from
    intensities is what makes a small network trained on paintings work on real contrasts.

    Convention:
        - direction: pull-back, on the fixed grid; unit: voxels of the given lattice
        - lattices: every level keeps corner voxels on corner voxels (sizes ``16 n + 1``), so that
          fields of different levels add up without a shift; other sizes are padded inside

    Args:
        spatial_dims: 2 or 3.
        channels: feature channels on 1/2, 1/4, 1/8 and 1/16 of the resolution.
        learned_features: learned descriptor channels beside the self-similarities.
        radius: the search window reaches ``4 · radius`` voxels.
        integration_steps: squarings of the velocity field.

    References:
        Hu et al., "Weakly-supervised convolutional neural networks for multimodal image
        registration", MedIA 2018 (LocalNet). Heinrich, "Closing the gap between deep and
        conventional image registration using probabilistic dense displacement networks",
        MICCAI 2019 (soft minimum over shifts). Hoffmann et al., "SynthMorph", IEEE TMI 2022.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        channels: Sequence[int] = (16, 32, 32, 48),
        learned_features: int = 12,
        radius: int = 2,
        integration_steps: int = 6,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"expected spatial_dims 2 or 3, got {spatial_dims}")
        if len(channels) != _LEVELS:
            raise ValueError(f"expected {_LEVELS} channel numbers, got {len(channels)}")
        self.spatial_dims = spatial_dims
        self.radius = radius
        self.integration_steps = integration_steps
        conv = Conv[Conv.CONV, spatial_dims]
        similarities = 12 if spatial_dims == 3 else 4
        described = similarities + learned_features
        shifts = (2 * radius + 1) ** spatial_dims
        self.describe = nn.Sequential(
            _block(spatial_dims, similarities + 1, 24),
            _block(spatial_dims, 24, 24),
            conv(24, learned_features, 1),
        )
        first, second, third, fourth = channels
        self.encode = nn.ModuleList(
            [
                _block(spatial_dims, 2 * described, first),
                _block(spatial_dims, first, second, stride=2),
                _block(spatial_dims, 2 * second, third, stride=2),
                _block(spatial_dims, third, fourth, stride=2),
            ]
        )
        self.search = nn.Sequential(
            conv(shifts + spatial_dims, second, 1), _block(spatial_dims, second, second)
        )
        self.bottom = _block(spatial_dims, fourth, fourth)
        self.decode = nn.ModuleList(
            [
                _block(spatial_dims, fourth + third, third),
                _block(spatial_dims, third + 2 * second, second),
                _block(spatial_dims, second + first, first),
            ]
        )
        self.heads = nn.ModuleList(
            [conv(c, spatial_dims, 3, padding=1) for c in (fourth, third, second, first)]
        )
        # untrained, the heads add nothing and the descriptors are the self-similarities alone
        for layer in (*self.heads, self.describe[-1]):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)
        self.log_sharpness = nn.Parameter(torch.tensor(4.0))
        # how far the near average of the shifts is believed over the far one; at first hardly
        self.trust = conv(second, 1, 1)
        nn.init.zeros_(self.trust.weight)
        self.trust.bias = nn.Parameter(torch.full((1,), -3.0))

    def forward(self, fixed: Tensor, moving: Tensor) -> Tensor:
        """The displacement field of a pair.

        Args:
            fixed: ``(B, 1, *S)`` normalized image.
            moving: ``(B, 1, *S)`` normalized image on the same lattice.

        Returns:
            ``ddf`` ``(B, d, *S)`` voxels, float32.

        Raises:
            ValueError: the two images differ in shape.
        """
        return self.ddf_and_match(fixed, moving)[0]

    def ddf_and_match(self, fixed: Tensor, moving: Tensor) -> tuple[Tensor, Tensor]:
        """The field and what the search alone believes, which training judges as well.

        Args:
            fixed: ``(B, 1, *S)`` normalized image.
            moving: ``(B, 1, *S)``.

        Returns:
            ``ddf`` ``(B, d, *S)`` voxels, and the logarithm of the belief in each shift,
            ``(B, (2 r + 1)^d, *Q)`` on a quarter of the padded lattice; shifts run row by row from
            −r to r along each axis, in voxels of that lattice.
        """
        if fixed.shape != moving.shape:
            raise ValueError(
                f"expected both images on one lattice, got fixed {tuple(fixed.shape)} and "
                f"moving {tuple(moving.shape)}"
            )
        velocity, belief = self.match(self.features(fixed), self.features(moving))
        return self.displacement(velocity, fixed.shape[2:]), belief

    def displacement(self, velocity: Tensor, shape: Sequence[int]) -> Tensor:
        """The displacement field that a velocity from `match` leads to.

        Args:
            velocity: ``(B, d, *H)`` voxels of half the padded lattice.
            shape: spatial shape of the images.

        Returns:
            ``(B, d, *S)`` voxels.
        """
        ddf = resize_ddf(integrate(velocity, self.integration_steps), _padded(shape))
        if is_exporting():  # a slice would tell sizes that need no padding from those that do
            return _extended(ddf, shape)
        return ddf[(slice(None), slice(None), *[slice(n) for n in shape])]

    def match(self, fixed: Tensor, moving: Tensor) -> tuple[Tensor, Tensor]:
        """The velocity between two images by their `features`.

        Args:
            fixed: ``(B, C, *H)``.
            moving: ``(B, C, *H)``.

        Returns:
            ``(B, d, *H)`` in voxels of half the padded lattice, and the belief of `ddf_and_match`.
        """
        skip = self.encode[0](torch.cat([fixed, moving], 1))
        quarter = self.encode[1](skip)
        cost, shift, spread, belief = self._search(halved(fixed), halved(moving))
        found = self.search(torch.cat([cost, shift], 1))
        quarter = torch.cat([quarter, found], 1)
        eighth = self.encode[2](quarter)
        x = self.bottom(self.encode[3](eighth))
        velocity = self.heads[0](x)
        for decode, head, below in zip(
            self.decode, self.heads[1:], (eighth, quarter, skip), strict=True
        ):
            size = below.shape[2:]
            x = decode(torch.cat([resize(x, size), below], 1))
            velocity = resize_ddf(velocity, size) + head(x)
            if below is quarter:
                far, near = _agreed(shift, spread, 8), _agreed(shift, spread, 2)
                velocity = velocity + far + torch.sigmoid(self.trust(x)) * (near - far)
        return velocity.float(), belief

    def features(self, image: Tensor) -> Tensor:
        """Contrast-blind descriptors on half the padded lattice.

        Args:
            image: ``(B, 1, *S)`` normalized image.

        Returns:
            ``(B, C, *H)`` with ``H = (padded S + 1) / 2``.
        """
        padded = _extended(image, _padded(image.shape[2:]))
        similar = halved(mind_ssc(padded))
        learned = self.describe(torch.cat([similar, halved(padded)], 1))
        return torch.cat([similar, torch.tanh(learned)], 1)

    def _search(self, fixed: Tensor, moving: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compare features over all shifts: costs, soft minimum, its variance, log belief."""
        d, r = self.spatial_dims, self.radius
        padded = F.pad(moving, [r] * (2 * d), mode="replicate")
        size = fixed.shape[2:]
        shifts = list(product(range(2 * r + 1), repeat=d))
        costs = []
        for start in shifts:
            part = tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))
            costs.append((fixed - padded[(slice(None), slice(None), *part)]).square().mean(1))
        cost = torch.stack(costs, 1)
        count = box_sum_same(torch.ones_like(cost[:1, :1]), 3)
        for _ in range(2):  # single voxels decide nothing; a neighbourhood of five does
            cost = box_sum_same(cost, 3) / count
        belief = torch.log_softmax(-self.log_sharpness.exp() * cost, dim=1)
        offsets = cost.new_tensor(shifts) - r
        shift = torch.einsum("bn...,nc->bc...", belief.exp(), offsets)
        squares = torch.einsum("bn...,n->b...", belief.exp(), offsets.square().sum(1))[:, None]
        spread = squares - shift.square().sum(1, keepdim=True)
        return 10.0 * (cost - cost.mean(1, keepdim=True)), shift, spread, belief


def _agreed(shift: Tensor, spread: Tensor, reach: int) -> Tensor:
    """The average of a voxel's surroundings, in which certain shifts count most."""
    weight = (spread + 0.05) ** -2
    both = averaged(torch.cat([weight * shift, weight], 1), reach)
    return both[:, :-1] / both[:, -1:]


def _padded(shape: Sequence[int]) -> tuple[int, ...]:
    """The next sizes of the form 16 n + 1, at least 33: all levels keep their corners."""
    unit = 2**_LEVELS
    return tuple(max(2, (n + unit - 2) // unit) * unit + 1 for n in shape)


def _extended(image: Tensor, shape: Sequence[int]) -> Tensor:
    """Continue the last values at the far end of each axis, or cut; by indices, to be exported."""
    for axis, (size, wanted) in enumerate(zip(image.shape[2:], shape, strict=True), start=2):
        index = torch.arange(wanted, device=image.device).clamp_max(size - 1)
        image = image.index_select(axis, index)
    return image


def _block(spatial_dims: int, inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Convolution, normalization per image (batches are small), leaky ReLU."""
    conv = Conv[Conv.CONV, spatial_dims]
    norm = Norm[Norm.INSTANCE, spatial_dims]
    return nn.Sequential(
        conv(inputs, outputs, 3, stride=stride, padding=1, padding_mode="zeros"),
        norm(outputs, affine=True),
        nn.LeakyReLU(0.1, inplace=True),
    )
