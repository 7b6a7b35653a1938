"""A small classifier and a small segmentation head, trained and judged fold by fold.

One configuration serves every input, so that a difference of scores is one of inputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss
from monai.networks.layers.factories import Conv, Norm
from monai.networks.nets import DenseNet
from torch import Tensor, nn


@dataclass(frozen=True)
class Recipe:
    """How both are trained. The defaults were set before the study and are the same for all inputs.

    Attributes:
        steps: of AdamW, each on one batch.
        batch_size: cases of a batch.
        learning_rate: at the top of the one-cycle schedule.
        weight_decay: AdamW's.
        seed: of weights, batches and flips.
    """

    steps: int = 150
    batch_size: int = 16
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    seed: int = 0


def classify_by_folds(
    inputs: Tensor, targets: Tensor, folds: Sequence[int], recipe: Recipe | None = None
) -> Tensor:
    """Probability of the positive class, each case by a classifier that did not train on its fold.

    MONAI's DenseNet of three blocks of two layers (16 first features, growth 8).

    Args:
        inputs: ``(N, C, *S)`` float, 2D or 3D.
        targets: ``(N,)`` 0 or 1.
        folds: number of the fold of each case; cases of one patient share it.
        recipe: how it is trained.

    Returns:
        ``(N,)`` in 0..1.

    Raises:
        ValueError: a fold whose training cases are all of one class.
    """
    spatial_dims = inputs.ndim - 2

    def network() -> nn.Module:
        return DenseNet(
            spatial_dims,
            inputs.shape[1],
            1,
            init_features=16,
            growth_rate=8,
            block_config=(2, 2, 2),
        )

    def loss(logits: Tensor, wanted: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits[:, 0], wanted)

    check_classes(targets, folds)
    logits = _by_folds(inputs, targets.float(), folds, network, loss, recipe or Recipe())
    return logits[:, 0].sigmoid()


def segment_by_folds(
    inputs: Tensor, masks: Tensor, folds: Sequence[int], recipe: Recipe | None = None
) -> Tensor:
    """Probability of the lesion at each voxel, by a head that did not train on the case's fold.

    The head is three convolutions of 16 features (dilation 1, 2 and 4), so it looks 7 voxels far,
    with batch normalization: without it 150 steps are too few to mark anything.

    Args:
        inputs: ``(N, C, *S)`` float, 2D or 3D: features of a frozen encoder, or images.
        masks: ``(N, 1, *S)`` 0 or 1; a case may have no lesion.
        folds: as in `classify_by_folds`.
        recipe: how it is trained.

    Returns:
        ``(N, 1, *S)`` in 0..1.
    """
    conv = Conv[Conv.CONV, inputs.ndim - 2]
    norm = Norm[Norm.BATCH, inputs.ndim - 2]

    def network() -> nn.Module:
        layers: list[nn.Module] = []
        channels = inputs.shape[1]
        for dilation in (1, 2, 4):
            layers.append(conv(channels, 16, 3, padding=dilation, dilation=dilation))
            layers += [norm(16), nn.LeakyReLU()]
            channels = 16
        return nn.Sequential(*layers, conv(channels, 1, 1))

    loss = DiceCELoss(sigmoid=True, batch=True)
    return _by_folds(inputs, masks.float(), folds, network, loss, recipe or Recipe()).sigmoid()


def check_classes(targets: Tensor, folds: Sequence[int]) -> None:
    """Refuse a split that leaves a fold nothing to learn from.

    Args:
        targets: ``(N,)`` 0 or 1.
        folds: number of the fold of each case.

    Raises:
        ValueError: the cases outside of a fold are all of one class.
    """
    number = torch.tensor(list(folds))
    for fold in sorted(set(folds)):
        trained = targets[number != fold]
        if len(set(trained.tolist())) < 2:
            raise ValueError(
                f"expected both classes outside of fold {fold}, got {len(trained)} cases of one; "
                "take fewer folds"
            )


def _by_folds(
    inputs: Tensor,
    wanted: Tensor,
    folds: Sequence[int],
    network: Callable[[], nn.Module],
    loss: Callable[[Tensor, Tensor], Tensor],
    recipe: Recipe,
) -> Tensor:
    """Logits of every case, by the network that was trained on the other folds."""
    number = torch.tensor(list(folds))
    logits: list[Tensor | None] = [None] * len(inputs)
    for fold in sorted(set(folds)):
        inside, outside = torch.nonzero(number == fold)[:, 0], torch.nonzero(number != fold)[:, 0]
        standardized = _standardized(inputs, outside)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed + fold)
            trained = _trained(network(), standardized[outside], wanted[outside], loss, recipe)
        with torch.no_grad():
            found = torch.cat([trained(part) for part in standardized[inside].split(64)])
        for case, one in zip(inside.tolist(), found, strict=True):
            logits[case] = one
    return torch.stack([one for one in logits if one is not None])


def _standardized(inputs: Tensor, training: Tensor) -> Tensor:
    """Each channel with mean 0 and deviation 1 over the training cases."""
    axes = [0, *range(2, inputs.ndim)]
    of = inputs[training]
    mean, deviation = of.mean(axes, keepdim=True), of.std(axes, keepdim=True)
    return (inputs - mean) / deviation.clamp_min(1e-6)


def _trained(
    network: nn.Module,
    inputs: Tensor,
    wanted: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    recipe: Recipe,
) -> nn.Module:
    """A network after all steps, ready to predict."""
    optimizer = torch.optim.AdamW(
        network.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps
    )
    network.train()
    order = torch.empty(0, dtype=torch.long)
    for _ in range(recipe.steps):
        if len(order) < 2:  # batch normalization needs two
            order = torch.randperm(len(inputs))
        chosen, order = order[: recipe.batch_size], order[recipe.batch_size :]
        batch, target = _flipped(inputs[chosen], wanted[chosen])
        optimizer.zero_grad()
        loss(network(batch), target).backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def _flipped(batch: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """A batch and its masks (or classes) mirrored along random axes, another for each batch."""
    axes = [axis for axis in range(2, batch.ndim) if float(torch.rand(())) < 0.5]
    if not axes:
        return batch, target
    return batch.flip(axes), target.flip(axes) if target.ndim == batch.ndim else target


__all__ = ["Recipe", "check_classes", "classify_by_folds", "segment_by_folds"]
