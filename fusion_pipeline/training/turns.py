"""The same anatomy with its axes exchanged and mirrored: another example at no cost."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fusion_pipeline.synthesis.noise import chance
from fusion_pipeline.training.batch import Batch, Sample

Images = TypeVar("Images", Sample, Batch)


@dataclass(frozen=True)
class Turn:
    """A change of the spatial axes, the same for all images of a sample.

    Attributes:
        order: axis ``k`` of the result is axis ``order[k]`` of what is turned.
        mirrored: axes of the result that run backwards.
    """

    order: tuple[int, ...]
    mirrored: tuple[int, ...]


def random_turn(shape: Sequence[int], generator: torch.Generator) -> Turn:
    """Each axis mirrored as likely as not; axes exchanged where all sides are equal.

    Args:
        shape: spatial shape, which the turn keeps.
        generator: the randomness.
    """
    d = len(shape)
    order = tuple(range(d))
    if len(set(shape)) == 1:
        order = tuple(torch.randperm(d, generator=generator).tolist())
    return Turn(order, tuple(axis for axis in range(d) if chance(generator, 0.5)))


def turned(values: Tensor, turn: Turn) -> Tensor:
    """Values ``(..., *S)`` along the turned axes."""
    leading = values.ndim - len(turn.order)
    order = (*range(leading), *(leading + axis for axis in turn.order))
    return values.permute(order).flip([leading + axis for axis in turn.mirrored]).contiguous()


def turned_field(ddf: Tensor, turn: Turn) -> Tensor:
    """A displacement field ``(..., d, *S)``: its components are turned with the axes."""
    components = ddf.ndim - len(turn.order) - 1
    signs = [-1.0 if axis in turn.mirrored else 1.0 for axis in range(len(turn.order))]
    sign = ddf.new_tensor(signs).reshape(-1, *[1] * len(turn.order))
    return turned(ddf, turn).index_select(components, torch.tensor(turn.order)) * sign


def turned_images(images: Images, turn: Turn) -> Images:
    """All images, label maps and fields of a sample or batch, turned alike."""
    changed: dict[str, Any] = {}
    for one in fields(images):
        value = getattr(images, one.name)
        if isinstance(value, Tensor):
            turn_it = turned_field if one.name == "ddf" else turned
            changed[one.name] = turn_it(value, turn)
    return replace(images, **changed)


class UsedTwice:
    """Each batch of a loader, then the same one turned: drawing costs as much as learning from it.

    Args:
        loader: of batches; its length counts those that were done before.
        seed: of the turns, with the number of the batch: all processes turn alike.
        done: batches that an earlier start gave, turned ones included.
    """

    def __init__(self, loader: DataLoader[Sample], *, seed: int, done: int = 0) -> None:
        self.loader = loader
        self.seed = seed
        self.done = done

    def __len__(self) -> int:
        return 2 * len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        for number, batch in enumerate(self.loader, start=self.done // 2):
            if 2 * number >= self.done:
                yield batch
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
            yield turned_images(batch, random_turn(batch.image.shape[2:], generator))
