"""Which samples make a batch, and which process gets it."""

import itertools
from collections.abc import Hashable, Iterator, Sequence

import torch
from torch.utils.data import Sampler


class GroupedBatches(Sampler[list[int]]):
    """Batches of samples of one group, in an order that depends on the seed alone.

    The steps are the same for any number of processes that share a global batch: process r of w
    gets every w-th sample of it. When training, a group's last batch is filled up with samples of
    its own, so that none is lost and all processes take as many steps. When validating, nothing is
    filled up: each sample counts once, in a batch of its own where there would otherwise be fewer
    batches than processes.

    Args:
        groups: group of each sample; only equal ones share a batch.
        batch_size: samples of a batch of one process.
        world: number of processes.
        rank: number of this process.
        seed: of the order; None: as listed, for validation.
        done: batches that an earlier start of the same epoch made; the length counts them still.
    """

    def __init__(
        self,
        groups: Sequence[Hashable],
        batch_size: int,
        *,
        world: int = 1,
        rank: int = 0,
        seed: int | None = None,
        done: int = 0,
    ) -> None:
        self.groups = list(groups)
        self.batch_size = batch_size
        self.world = world
        self.rank = rank
        self.seed = seed
        self.done = done

    def __len__(self) -> int:
        return len(self._batches())

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches()[self.done :])

    def _batches(self) -> list[list[int]]:
        """This process's batches."""
        if self.seed is None:
            whole = self._cut(range(len(self.groups)), self.batch_size)
            if len(whole) < self.world:  # the losses' mean waits for a batch of each process
                whole = [[index] for index in range(len(self.groups))]
            return whole[self.rank :: self.world]
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(self.groups), generator=generator).tolist()
        size = self.batch_size * self.world
        whole = self._cut(order, size)
        filled = [list(itertools.islice(itertools.cycle(batch), size)) for batch in whole]
        # the cut goes group by group: mix them
        mixed = torch.randperm(len(filled), generator=generator).tolist()
        return [filled[i][self.rank :: self.world] for i in mixed]

    def _cut(self, order: Sequence[int], size: int) -> list[list[int]]:
        """Batches of up to so many samples of one group, in the order of each group's first."""
        by_group: dict[Hashable, list[int]] = {}
        for index in order:
            by_group.setdefault(self.groups[index], []).append(index)
        return [
            members[start : start + size]
            for members in by_group.values()
            for start in range(0, len(members), size)
        ]
