"""Which samples each process of a training gets: none twice, none lost."""

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.data import Sampler


def rank_share(length: int, world: int, rank: int) -> range:
    """Indices of one process, for validation.

    `torch.utils.data.DistributedSampler` repeats samples until all shares are equally long, which
    would count some cases twice. Here shares differ by at most one: reduce sums and counts over the
    processes at the end, and do not synchronize within the loop.

    Args:
        length: number of samples.
        world: number of processes.
        rank: of this process, from 0.

    Raises:
        ValueError: no such process.

    >>> [list(rank_share(5, 2, rank)) for rank in (0, 1)]
    [[0, 2, 4], [1, 3]]
    """
    _check_rank(world, rank)
    return range(rank, length, world)


class EndlessBatches(Sampler[list[int]]):
    """Batches of an endless stream of samples, for training; used as a ``batch_sampler``.

    Sample number = step x global batch + position in it, so that any number of processes with the
    same global batch reads the same samples in the same steps, and a resumed run goes on exactly.
    The data set maps a number to a sample, for a list of cases by `shuffled`.

    Args:
        batch_size: samples of one process and batch.
        world: number of processes.
        rank: of this process, from 0.
        start: batches of each process that are done already.

    Raises:
        ValueError: no such process, or an empty batch.
    """

    def __init__(self, batch_size: int, *, world: int = 1, rank: int = 0, start: int = 0) -> None:
        _check_rank(world, rank)
        if batch_size < 1:
            raise ValueError(f"expected a batch size of 1 or more, got {batch_size}")
        self.batch_size = batch_size
        self.world = world
        self.rank = rank
        self.start = start

    def __iter__(self) -> Iterator[list[int]]:
        """Numbers of the samples of each batch of this process."""
        step = self.start
        while True:
            first = (step * self.world + self.rank) * self.batch_size
            yield list(range(first, first + self.batch_size))
            step += 1


def shuffled(number: int, length: int, seed: int = 0) -> int:
    """Which of so many items sample ``number`` of an endless stream is.

    Each pass over the items has each once, in an order of its own.

    Args:
        number: of the sample, from 0.
        length: number of items.
        seed: of the orders.

    Raises:
        ValueError: no items.
    """
    if length < 1:
        raise ValueError(f"expected items to draw from, got {length}")
    passes, position = divmod(number, length)
    return int(_order(length, seed, passes)[position])


@lru_cache(maxsize=4)  # workers run ahead of each other by a pass at most
def _order(length: int, seed: int, passes: int) -> Tensor:
    """The order of one pass."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + passes)
    return torch.randperm(length, generator=generator)


def _check_rank(world: int, rank: int) -> None:
    """Refuse a process that is not one of them."""
    if not 0 <= rank < world:
        raise ValueError(f"expected a rank from 0 to {world - 1}, got {rank}")


__all__ = ["EndlessBatches", "rank_share", "shuffled"]
