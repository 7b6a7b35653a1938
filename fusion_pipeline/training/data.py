"""What feeds the training: painted samples, and windows of real cases beside them."""

import shutil
import weakref
from collections.abc import Hashable, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from tempfile import mkdtemp
from typing import TypeVar

import pytorch_lightning as pl
from monai.transforms import Compose
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader

from fusion_pipeline.data import CaseFiles, InputError, one_line_refusals, read_datalist
from fusion_pipeline.training.batch import Sample, collate
from fusion_pipeline.training.cases import CaseSamples, why_not_together
from fusion_pipeline.training.checked_cases import SET_ASIDE, checked_cases
from fusion_pipeline.training.folds import fold as fold_of
from fusion_pipeline.training.folds import patient_of
from fusion_pipeline.training.label_maps import label_map_paths, load_label_map
from fusion_pipeline.training.painted import PaintedSamples, counts_of
from fusion_pipeline.training.prepared_cases import IN_MEMORY_GIB, PreparedCases
from fusion_pipeline.training.sampler import GroupedBatches
from fusion_pipeline.training.turns import UsedTwice

_VALIDATION_SEED = 1_000_000


class MultimodalData(pl.LightningDataModule):
    """Painted samples, new ones in each epoch, and windows of the cases of a datalist.

    Args:
        shape: spatial shape of a sample, 2 or 3 numbers. No size is refused; the registration
            network pads to sizes ``16 n + 1`` from 33 up, so that 49 or 97 waste nothing.
        samples_per_epoch: painted samples.
        validation_samples: painted samples, always the same.
        datalist: JSON file whose ``training`` and ``validation`` cases are used as well.
        preprocessing: what each image of a case goes through; needed with a datalist.
        windows_per_case: windows of each case in an epoch.
        zoom: smallest and largest voxel of a window, in units of ``spacing``.
        modalities: images per sample, or several numbers to draw from.
        motion: move painted images by known fields, which are then the truth. False: samples are
            of aligned images alone, those of cases as well unless ``case_motion``.
        case_motion: move the cases' images likewise, see `CaseSamples`; False: as acquired.
        protocols: give each image by another protocol as well.
        typical: share of painted images in the manner of their kind; the others in any contrast.
        max_voxels: longest displacement of a sample.
        label_maps: a folder or files of label maps to paint beside the made-up bodies. Of several,
            every fifth, or else the last, is for the painted validation samples alone.
        spacing: mm of the lattice.
        batch_size: samples of one process and step.
        workers: processes that make samples.
        twice: use each training batch a second time, turned: axes mirrored, and where all sides are
            equal exchanged. Drawing a registration pair costs as much as learning from it.
        cache_dir: folder that keeps prepared cases from run to run; None: they stay in memory, or
            with workers, who share them, in a temporary folder of the same bound.
        cache_gib: bound of that cache in GiB, see `PreparedCases`.
        folds: split training and validation cases anew, by patient, into so many parts.
        fold: which of them validates, from 0.
        output_dir: gets ``set_aside.csv``, the cases that cannot be used and why.
        seed: start of the randomness.

    Raises:
        InputError: nothing to train on or to validate with, a malformed datalist, or a patient both
            in training and in validation.
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
        windows_per_case: int = 1,
        zoom: Sequence[float] = (1.0, 1.0),
        modalities: int | Sequence[int] = 2,
        motion: bool = True,
        case_motion: bool = False,
        protocols: bool = False,
        typical: float = 0.5,
        max_voxels: float = 6.5,
        label_maps: Path | str | Sequence[Path | str] | None = None,
        spacing: float = 2.0,
        batch_size: int = 1,
        workers: int = 0,
        twice: bool = False,
        cache_dir: Path | str | None = None,
        cache_gib: float | None = None,
        folds: int | None = None,
        fold: int = 0,
        output_dir: Path | str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        try:
            counts_of(modalities)
        except ValueError as error:
            raise InputError(f"training: {error}; raise modalities") from error
        self.shape = tuple(shape)
        self.samples_per_epoch = samples_per_epoch
        self.validation_samples = validation_samples
        self.windows_per_case = windows_per_case
        self.zoom = (float(zoom[0]), float(zoom[1]))
        self.modalities = modalities
        self.motion = motion
        self.case_motion = case_motion
        self.protocols = protocols
        self.typical = typical
        self.max_voxels = max_voxels
        self.spacing = spacing
        self.batch_size = batch_size
        self.workers = workers
        self.twice = twice
        self.seed = seed
        self.label_map_paths = label_map_paths(label_maps)
        self._label_maps: list[Tensor] | None = None
        self.preprocessing = preprocessing
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.cache_gib = cache_gib
        self.output_dir = output_dir
        self.cases = _listed(datalist, folds, fold, may_validate_alone=validation_samples > 0)
        if datalist is not None and preprocessing is None:
            raise InputError("training: expected preprocessing for the datalist's cases, got none")
        training, validation = self.cases
        if not (samples_per_epoch or training) or not (validation_samples or validation):
            raise InputError(
                "training: expected samples to train on and to validate with, got none; raise "
                "samples_per_epoch and validation_samples, or give a datalist"
            )
        self._prepared: tuple[PreparedCases | None, PreparedCases | None] | None = None
        self._stopped = {"epoch": 0, "batches": 0}

    @one_line_refusals()
    def setup(self, stage: str | None = None) -> None:
        """Check the headers of all cases, once; the broken ones are set aside.

        Raises:
            InputError: no case of a part can be used.
        """
        del stage
        if self._prepared is not None:
            return
        usable = {
            id(case) for case in self._checked([case for part in self.cases for case in part])
        }
        painted = (self.samples_per_epoch, self.validation_samples)
        parts = []
        for name, part, count in zip(("training", "validation"), self.cases, painted, strict=True):
            cases = [case for case in part if id(case) in usable]
            if part and not (cases or count):
                raise InputError(
                    f"datalist: expected a usable {name} case, got {len(part)} that are not, see "
                    f"{SET_ASIDE}; mend one, or let painted samples stand in for them"
                )
            parts.append(self._on_lattices(cases))
        self._prepared = parts[0], parts[1]

    def _checked(self, cases: Sequence[CaseFiles]) -> list[CaseFiles]:
        """The cases that can be used."""
        if not cases:
            return []
        together = self._aligned and not self.protocols
        return checked_cases(
            cases,
            self.output_dir,
            spatial_dims=len(self.shape),
            refuse=why_not_together if together else None,
        )

    @property
    def _aligned(self) -> bool:
        """Whether the phase takes images together only where they are aligned."""
        return not (self.motion or self.case_motion)

    def _on_lattices(self, cases: Sequence[CaseFiles]) -> PreparedCases | None:
        """The cases on their lattices; None where there are none."""
        if not cases or self.preprocessing is None:
            return None
        folder, bound = self.cache_dir, self.cache_gib
        if folder is None and self.workers:
            # the loaders are made anew for each epoch, and with them the workers and their memory
            folder, bound = self._shared_folder, IN_MEMORY_GIB if bound is None else bound
        return PreparedCases(
            cases, self.preprocessing, spacing=self.spacing, cache_dir=folder, cache_gib=bound
        )

    @cached_property
    def _shared_folder(self) -> Path:
        """A folder that the workers share; it goes with this object."""
        folder = mkdtemp(prefix="fusion-pipeline-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return Path(folder)

    @property
    def training(self) -> PreparedCases | None:
        """The cases to train on."""
        self.setup()
        return None if self._prepared is None else self._prepared[0]

    @property
    def validation(self) -> PreparedCases | None:
        """The cases to validate with."""
        self.setup()
        return None if self._prepared is None else self._prepared[1]

    def train_dataset(self, epoch: int = 0) -> "Samples":
        """The samples of one epoch."""
        training, _ = _split_maps(self.label_maps, aside=self.validation_samples > 0)
        return self._samples(self.samples_per_epoch, self.seed + epoch, self.training, training)

    def val_dataset(self) -> "Samples":
        """The samples that each validation sees."""
        _, aside = _split_maps(self.label_maps, aside=True)
        return self._samples(self.validation_samples, _VALIDATION_SEED, self.validation, aside)

    def state_dict(self) -> dict[str, int]:
        """How much of an epoch is done, for a checkpoint that is written within it."""
        if self.trainer is None:
            return {}
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.processed
        whole = done >= self.trainer.num_training_batches
        return {"epoch": self.trainer.current_epoch, "batches": 0 if whole else done}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on behind the batches that were done."""
        self._stopped = {**self._stopped, **state_dict}

    def train_dataloader(self) -> "DataLoader[Sample] | UsedTwice":
        """Called anew for each epoch (see `Trainer`)."""
        epoch = 0 if self.trainer is None else self.trainer.current_epoch
        done = self._stopped["batches"] if epoch == self._stopped["epoch"] else 0
        samples, seed = self.train_dataset(epoch), self.seed + epoch
        if not self.twice:
            return self._loader(samples, seed=seed, done=done)
        return UsedTwice(self._loader(samples, seed=seed, done=done // 2), seed=seed, done=done)

    def val_dataloader(self) -> DataLoader[Sample]:
        """Always the same samples in the same order.

        Raises:
            InputError: fewer samples than processes, which would wait for each other.
        """
        samples, world = self.val_dataset(), self._world[0]
        if len(samples) < world:
            raise InputError(
                f"training: expected a validation sample for each of {world} processes, got "
                f"{len(samples)}; raise validation_samples or train on fewer devices"
            )
        return self._loader(samples, seed=None)

    def counts(self) -> dict[str, int]:
        """What there is to train on, for the model card."""
        training, aside = _split_maps(self.label_map_paths, aside=self.validation_samples > 0)
        return {
            "training cases": 0 if self.training is None else len(self.training),
            "validation cases": 0 if self.validation is None else len(self.validation),
            "windows of a case in an epoch": self.windows_per_case,
            "painted samples in an epoch": self.samples_per_epoch,
            "label maps to train on": len(training),
            "label maps to validate with": len(aside),
            "uses of a sample": 2 if self.twice else 1,
        }

    @property
    def label_maps(self) -> list[Tensor]:
        """Read once, before the workers start."""
        if self._label_maps is None:
            self._label_maps = [load_label_map(p, self.spacing) for p in self.label_map_paths]
        return self._label_maps

    @property
    def _world(self) -> tuple[int, int]:
        """How many processes train together, and which one this is."""
        return (
            (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)
        )

    def _samples(
        self,
        count: int,
        seed: int,
        prepared: PreparedCases | None,
        label_maps: Sequence[Tensor],
    ) -> "Samples":
        """Painted samples, then windows of the cases."""
        parts: list[PaintedSamples | CaseSamples] = []
        if count:
            painted = PaintedSamples(
                count,
                self.shape,
                modalities=self.modalities,
                motion=self.motion,
                protocols=self.protocols,
                typical=self.typical,
                max_voxels=self.max_voxels,
                label_maps=label_maps,
                spacing=self.spacing,
                seed=seed,
                # a step of all processes is of one group
                group=self.batch_size * self._world[0],
            )
            parts.append(painted)
        if prepared is not None:
            real = CaseSamples(
                prepared,
                self.shape,
                windows=self.windows_per_case,
                modalities=self.modalities,
                motion=self.case_motion,
                aligned=self._aligned,
                protocols=self.protocols,
                zoom=self.zoom,
                max_voxels=self.max_voxels,
                seed=seed,
            )
            parts.append(real)
        return Samples(parts)

    def _loader(self, dataset: "Samples", *, seed: int | None, done: int = 0) -> DataLoader[Sample]:
        """Each process's share of the samples, in batches of equal kinds."""
        world, rank = self._world
        batches = GroupedBatches(
            dataset.groups(), self.batch_size, world=world, rank=rank, seed=seed, done=done
        )
        return DataLoader(
            dataset, batch_sampler=batches, num_workers=self.workers, collate_fn=collate
        )


class Samples(ConcatDataset[Sample]):
    """Painted samples and windows of cases, one after the other."""

    def __init__(self, parts: Sequence[PaintedSamples | CaseSamples]) -> None:
        super().__init__(parts)
        self.parts = list(parts)

    def groups(self) -> list[Hashable]:
        """Which samples may share a batch: those of the same kinds of which the same is known."""
        return [
            (number, part.batch_key(i))
            for number, part in enumerate(self.parts)
            for i in range(len(part))
        ]

    def truths(self) -> frozenset[str]:
        """What at least one sample brings beside its images."""
        every = (part.truths(i) for part in self.parts for i in range(len(part)))
        return frozenset(chain.from_iterable(every))


Map = TypeVar("Map", Tensor, Path)


def _split_maps(maps: Sequence[Map], *, aside: bool) -> tuple[list[Map], list[Map]]:
    """Label maps to train on and to validate with: whole maps, by number; one alone serves both."""
    validation = list(maps[4::5] or maps[-1:])
    if not aside:
        return list(maps), []
    if len(maps) < 2:
        return list(maps), validation
    kept = {id(one) for one in validation}
    return [one for one in maps if id(one) not in kept], validation


def _listed(
    datalist: Path | str | None,
    folds: int | None,
    number: int,
    *,
    may_validate_alone: bool,
) -> tuple[list[CaseFiles], list[CaseFiles]]:
    """Training and validation cases, as the datalist or the folds split them."""
    if datalist is None:
        return [], []
    training = read_datalist(datalist, "training", may_be_mixed=True)
    # painted samples can validate alone
    may_be_empty = may_validate_alone or folds is not None
    validation = read_datalist(datalist, "validation", may_be_empty=may_be_empty, may_be_mixed=True)
    if folds is not None:
        return fold_of([*training, *validation], folds, number)
    trained = {patient_of(case) for case in training}
    twice = next((case for case in validation if patient_of(case) in trained), None)
    if twice is not None:
        raise InputError(
            f"datalist {datalist}: expected other patients in validation than in training, got "
            f"{patient_of(twice)} in both; remove one, or split by patient with --folds"
        )
    return training, validation
