"""What feeds the training: painted samples, and real cases beside them."""

from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl
from monai.transforms import Compose
from torch.utils.data import ConcatDataset, DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from fusion_pipeline.data import CaseFiles, InputError, one_line_refusals, read_datalist
from fusion_pipeline.pipeline import spatial_dims_of_cases
from fusion_pipeline.training.samples import CaseSamples, PaintedSamples, Sample, collate

_VALIDATION_SEED = 1_000_000


class MultimodalData(pl.LightningDataModule):
    """Painted samples, new ones in each epoch, and the cases of a datalist.

    Args:
        shape: spatial shape of a sample, 2 or 3 numbers. No size is refused; the registration
            network pads to sizes ``16 n + 1`` from 33 up, so that 49 or 97 waste nothing.
        samples_per_epoch: painted samples.
        validation_samples: painted samples, always the same.
        datalist: JSON file whose ``training`` and ``validation`` cases are used as well.
        preprocessing: what each image of a case goes through; needed with a datalist.
        modalities: images per painted sample.
        max_voxels: longest displacement of a painted sample.
        spacing: mm of the lattice.
        batch_size: with real cases of mixed kinds: 1.
        workers: processes that make samples.
        seed: start of the randomness.

    Raises:
        InputError: nothing to train on or to validate with, or a malformed datalist.
    """

    @one_line_refusals()
    def __init__(  # noqa: PLR0913 - each is a setting of its own; the bundle's config names them
        self,
        shape: Sequence[int],
        *,
        samples_per_epoch: int = 200,
        validation_samples: int = 8,
        datalist: Path | str | None = None,
        preprocessing: Compose | None = None,
        modalities: int = 2,
        max_voxels: float = 6.0,
        spacing: float = 2.0,
        batch_size: int = 1,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if modalities < 2:
            raise InputError(
                f"training: expected two or more modalities, got {modalities}; raise modalities"
            )
        self.shape = tuple(shape)
        self.samples_per_epoch = samples_per_epoch
        self.validation_samples = validation_samples
        self.modalities = modalities
        self.max_voxels = max_voxels
        self.spacing = spacing
        self.batch_size = batch_size
        self.workers = workers
        self.seed = seed
        self.preprocessing = preprocessing
        self.training = [] if datalist is None else read_datalist(datalist, "training")
        # painted samples can validate alone
        self.validation = (
            []
            if datalist is None
            else read_datalist(datalist, "validation", may_be_empty=validation_samples > 0)
        )
        wanted = len(self.shape)
        given = spatial_dims_of_cases([*self.training, *self.validation], unread=wanted)
        if given != wanted:
            raise InputError(
                f"datalist {datalist}: expected {wanted}D cases, as the shape {list(self.shape)} "
                f"of a sample, got {given}D; use the bundle of their dimension"
            )
        if datalist is not None and preprocessing is None:
            raise InputError("training: expected preprocessing for the datalist's cases, got none")
        if not (samples_per_epoch or self.training) or not (validation_samples or self.validation):
            raise InputError(
                "training: expected samples to train on and to validate with, got none; raise "
                "samples_per_epoch and validation_samples, or give a datalist"
            )

    def train_dataset(self, epoch: int = 0) -> Dataset[Sample]:
        """The samples of one epoch."""
        return self._samples(self.samples_per_epoch, self.seed + epoch, self.training)

    def val_dataset(self) -> Dataset[Sample]:
        """The samples that each validation sees."""
        return self._samples(self.validation_samples, _VALIDATION_SEED, self.validation)

    def train_dataloader(self) -> DataLoader[Sample]:
        """Called anew for each epoch (see `build_trainer`)."""
        epoch = 0 if self.trainer is None else self.trainer.current_epoch
        # larger batches are groups of equal kinds, which shuffling would tear apart
        return self._loader(self.train_dataset(epoch), shuffle=self.batch_size == 1, epoch=epoch)

    def val_dataloader(self) -> DataLoader[Sample]:
        """Always the same samples in the same order."""
        return self._loader(self.val_dataset())

    @property
    def _world(self) -> tuple[int, int]:
        """How many processes train together, and which one this is."""
        return (
            (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)
        )

    def _samples(self, count: int, seed: int, cases: Sequence[CaseFiles]) -> Dataset[Sample]:
        """Painted samples, then patches of the cases."""
        parts: list[Dataset[Sample]] = []
        if count:
            painted = PaintedSamples(
                count,
                self.shape,
                modalities=self.modalities,
                max_voxels=self.max_voxels,
                spacing=self.spacing,
                seed=seed,
                # the processes take turns within a group: each gets a batch of equal kinds
                group=self.batch_size * self._world[0],
            )
            parts.append(painted)
        if cases and self.preprocessing is not None:
            real = CaseSamples(
                cases, self.shape, self.preprocessing, spacing=self.spacing, seed=seed
            )
            parts.append(real)
        return ConcatDataset(parts)

    def _loader(
        self, dataset: Dataset[Sample], *, shuffle: bool = False, epoch: int = 0
    ) -> DataLoader[Sample]:
        """Each process's share of the samples."""
        count, rank = self._world
        sampler: DistributedSampler[Sample] = DistributedSampler(
            dataset, num_replicas=count, rank=rank, shuffle=shuffle, seed=self.seed + epoch
        )
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.workers,
            collate_fn=collate,
        )
