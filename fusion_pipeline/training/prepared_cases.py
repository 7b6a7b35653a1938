"""Cases of a datalist, prepared once on an isotropic lattice and cached within a bound."""

import hashlib
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from monai.data import PersistentDataset
from monai.transforms import Compose
from monai.transforms.transform import Transform
from torch import Tensor
from torch.utils.data import get_worker_info

import fusion_pipeline
from fusion_pipeline.data import (
    CaseFiles,
    Image,
    InMemory,
    InputError,
    Series,
    as_meta_tensor,
    cause_of,
    load_case,
    written_whole,
)
from fusion_pipeline.geometry import ddf_from_ddf_mm, resample, rescaled_affine, spacing_of
from fusion_pipeline.geometry.sampling import Mode
from fusion_pipeline.networks.kinds import kind_of
from fusion_pipeline.pipeline.fingerprint import code_digest, files_of, transform_settings
from fusion_pipeline.pipeline.pipeline import split
from fusion_pipeline.register.lattice import Lattice, blurred_for, read_on_lattice
from fusion_pipeline.transforms import NormalizeModality

logger = logging.getLogger(__name__)

_GIB = 1 << 30
IN_MEMORY_GIB = 4.0
_ON_DISK_GIB = 200.0
_LEFT_OVER_S = 3600.0  # s without a write, after which a file written aside belongs to no process
# the code that makes an entry: changes elsewhere in the package keep the cache
_MAKERS = ("data/", "geometry/", "transforms/", "register/", "training/prepared_cases.py")


@dataclass(frozen=True)
class LatticeCase:
    """M images of a case on one isotropic lattice over the reference, the reference first.

    Tensors may be views of a file: read them, do not write into them.

    Attributes:
        id: name of the case.
        image: ``(M, *S)`` float16, z-scored on this lattice as `NormalizeModalityd` does.
        original: ``(M, *S)`` float32, the same in own units: HU, a.u., uptake.
        valid: ``(M, *S)`` bool, field of view of each image.
        body: ``(M, *S)`` bool, within ``valid``.
        kinds: kind of each image, see `networks.kinds`.
        affine: ``(d + 1, d + 1)`` float64, world_from_voxel of the lattice, RAS+ mm.
        spacing: voxel size of the lattice in mm.
        labels: ``(M, *S)`` int32, nearest neighbour; None unless each image has a label map.
        ddf: ``(M - 1, d, *S)`` float16 voxels, the true fields reference → moving; None unless
            each moving image has one.
    """

    id: str
    image: Tensor
    original: Tensor
    valid: Tensor
    body: Tensor
    kinds: tuple[str, ...]
    affine: Tensor
    spacing: float
    labels: Tensor | None = None
    ddf: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial shape of the lattice."""
        return tuple(self.image.shape[1:])


class PreparedCases(PersistentDataset):
    """The cases of a datalist on their lattices: item i is a `LatticeCase`.

    A case is read, preprocessed and resampled when it is first asked for. After that it comes from
    the cache: files in ``cache_dir``, or the memory of the process. An entry counts for the same
    paths, sizes and modification times of all files of a case, the same preprocessing, spacing and
    code. Entries on disk appear whole or not at all, and processes may share the folder; the
    tensors are mapped from the file, so that a patch reads only its own part.
    Of several machines, each needs a folder on a disk of its own: a mapped file that another
    machine removes can no longer be read.

    In memory each worker process of a `DataLoader` holds its share of the bound and loses it when
    it ends, as `MultimodalData`'s do after each epoch: with workers, give a folder.

    Args:
        cases: their files.
        preprocessing: what each image goes through, `NormalizeModalityd` last.
        spacing: voxel size of the lattice in mm; None: the geometric mean of the reference's voxel
            sizes, in 2D its pixel.
        cache_dir: folder of the entries; None: they are held in memory.
        cache_gib: bound of the cache in GiB; the least recently used entries are removed. None:
            4 GiB in memory, 200 GiB in a folder.

    Raises:
        InputError: ``preprocessing`` does not end in the z-score, or the folder cannot be made;
            from an item: one of its files cannot be used.
    """

    def __init__(
        self,
        cases: Sequence[CaseFiles],
        preprocessing: Compose,
        *,
        spacing: float | None,
        cache_dir: Path | str | None = None,
        cache_gib: float | None = None,
    ) -> None:
        default = IN_MEMORY_GIB if cache_dir is None else _ON_DISK_GIB
        self.cache_bytes = int((default if cache_gib is None else cache_gib) * _GIB)
        try:
            super().__init__(
                list(cases),
                OnLattice(preprocessing, spacing),
                cache_dir,
                hash_func=_digest_of_files,
                hash_transform=_digest_of_transforms,
            )
        except OSError as error:
            raise InputError(
                f"cache_dir {cache_dir}: expected a folder that can be written, got "
                f"{error.strerror or error}; choose another folder"
            ) from error
        self._in_memory: OrderedDict[str, dict[str, Any]] = OrderedDict()

    @property
    def cases(self) -> Sequence[CaseFiles]:
        """The files of each case."""
        return self.data

    def set_data(self, data: Sequence[CaseFiles]) -> None:
        """Other cases; the cache stays, since other processes may read the folder."""
        self.data = list(data)

    def __getitem__(self, index: int) -> LatticeCase:
        """One case, from the cache if it is there."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        files: CaseFiles = self.data[index]
        entry = self._cachecheck(files)
        return LatticeCase(**{**entry, "id": files.id, "kinds": tuple(entry["kinds"])})

    def _cachecheck(self, item_transformed: CaseFiles) -> dict[str, Any]:
        """The entry of a case: cached, or made and cached (MONAI's hook)."""
        key = self.hash_func(item_transformed).decode() + self.transform_hash
        cached = self._from_memory(key) if self.cache_dir is None else _from_file(self._path(key))
        if cached is not None:
            return cached
        try:
            entry = self._pre_transform(item_transformed)
        except Exception as error:
            cause = cause_of(error)
            if cause is error:
                raise
            raise cause from error
        if _size(entry) <= self.cache_bytes:
            self._hold(key, entry) if self.cache_dir is None else self._write(key, entry)
        return entry

    def _from_memory(self, key: str) -> dict[str, Any] | None:
        """An entry in memory, now the most recently used."""
        if key in self._in_memory:
            self._in_memory.move_to_end(key)
        return self._in_memory.get(key)

    def _hold(self, key: str, entry: dict[str, Any]) -> None:
        """Hold an entry in memory, and drop the least recently used beyond the bound."""
        self._in_memory[key] = entry
        worker = get_worker_info()
        bound = self.cache_bytes // (1 if worker is None else worker.num_workers)
        total = sum(_size(one) for one in self._in_memory.values())
        while total > bound and self._in_memory:
            _, oldest = self._in_memory.popitem(last=False)
            total -= _size(oldest)

    def _path(self, key: str) -> Path:
        """File of an entry."""
        return Path(self.cache_dir) / f"{key}.pt"

    def _write(self, key: str, entry: dict[str, Any]) -> None:
        """Write an entry aside and rename it; a full disk costs the cache and not the training."""
        path = self._path(key)
        try:
            with written_whole(path) as aside:
                torch.save(entry, aside)
        except (InputError, RuntimeError) as error:  # torch's writer raises the latter
            logger.warning("cache_dir %s: an entry could not be written (%s)", path.parent, error)
        _remove_beyond(path.parent, self.cache_bytes, newest=path)


class OnLattice(Transform):
    """Read a case and bring it onto its lattice.

    Args:
        preprocessing: what each image goes through, `NormalizeModalityd` last.
        spacing: see `PreparedCases`.

    Raises:
        InputError: ``preprocessing`` does not end in the z-score.
    """

    def __init__(self, preprocessing: Compose, spacing: float | None) -> None:
        self.spacing = spacing
        self.preprocessing = preprocessing
        self._prepare, self._normalize = split(preprocessing)

    def settings(self) -> str:
        """All that decides the result, as text."""
        return f"{self.spacing} {[transform_settings(x) for x in self.preprocessing.transforms]}"

    def __call__(self, data: CaseFiles) -> dict[str, Any]:
        """The attributes of a `LatticeCase`, as tensors and plain values.

        Raises:
            InputError: a file cannot be used.
        """
        case = load_case(data, self._prepare)
        fixed = case.fixed
        mean = float(np.prod(fixed.spacing)) ** (1 / fixed.spatial_dims)
        lattice = Lattice(
            *rescaled_affine(
                fixed.affine, fixed.shape, mean if self.spacing is None else self.spacing
            )
        )
        arrays = [_arrays(one, lattice, self._normalize) for one in case.series.values()]
        image, original, valid, body = (torch.cat(parts) for parts in zip(*arrays, strict=True))
        truths = [case.series[key].displacement for key in case.moving]
        return {
            "id": case.id,
            "image": image,
            "original": original,
            "valid": valid,
            "body": body,
            "kinds": [kind_of(one.modality) for one in case.images.values()],
            "affine": torch.from_numpy(lattice.affine),
            "spacing": float(spacing_of(lattice.affine)[0]),
            "labels": _labels([one.labels for one in case.series.values()], lattice),
            "ddf": _fields(truths, fixed, lattice),
        }


def _arrays(
    series: Series, lattice: Lattice, normalize: NormalizeModality
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Image, original, field of view and body of one series, ``(1, *S)`` each."""
    prepared = series.prepared
    if prepared is None:
        raise ValueError("expected preprocessing with FieldOfViewd and BodyMaskd, got one without")
    field = prepared.field_of_view.float()
    image = prepared.working
    blurred = blurred_for(image, field, lattice)
    arrays = read_on_lattice(image, field, lattice, blurred=blurred, normalize=normalize)
    original = _resampled(blurred[None], image, lattice, fill=image.fill_value)
    valid = _resampled(field, image, lattice, fill=0.0) > 0.5
    # within ±4 float16 rounds by 0.001 at most
    return arrays.image[0].half(), original, valid, (arrays.body[0] > 0.5) & valid


def _labels(maps: Sequence[Image | None], lattice: Lattice) -> Tensor | None:
    """``(M, *S)`` int32, where each image has a map."""
    given = [one for one in maps if one is not None]
    if len(given) < len(maps):
        return None
    read = [_resampled(one.array, one, lattice, fill=0.0, nearest=True) for one in given]
    return torch.cat(read).round().to(torch.int32)


def _fields(truths: Sequence[Tensor | None], fixed: Image, lattice: Lattice) -> Tensor | None:
    """``(M - 1, d, *S)`` voxels of the lattice, where each moving image has a true field."""
    given = [one for one in truths if one is not None]
    if len(given) < len(truths):
        return None
    read = [_resampled(one, fixed, lattice, fill=None)[None] for one in given]
    return ddf_from_ddf_mm(torch.cat(read), torch.from_numpy(lattice.affine)).half()


def _resampled(
    values: Tensor, image: Image, lattice: Lattice, *, fill: float | None, nearest: bool = False
) -> Tensor:
    """``(C, *S)`` on the grid of ``image``, read on the lattice by the headers."""
    voxels = torch.from_numpy(np.linalg.inv(image.affine) @ lattice.affine)
    mode: Mode = "nearest" if nearest else "bilinear"
    return resample(values[None].float(), voxels, lattice.shape, mode=mode, fill=fill)[0]


def _digest_of_files(files: CaseFiles) -> bytes:
    """What a case is made from: names, and of each file path, size and modification time."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{files.id} {files.reference}".encode())
    for key, series in files.series.items():
        for role in ("image", "label", "displacement"):
            source = getattr(series, role)
            digest.update(f"{key} {role} {'' if source is None else source}".encode())
            if isinstance(source, InMemory):
                image = as_meta_tensor(source.content)
                digest.update(f"{tuple(image.shape)} {image.meta.get('units', '')}".encode())
                digest.update(image.affine.numpy().tobytes())
                digest.update(np.ascontiguousarray(image.as_tensor().numpy()).tobytes())
            elif source is not None:
                for path in files_of(source):
                    digest.update(_state(path))
    return digest.hexdigest().encode()


def _state(path: Path) -> bytes:
    """Absolute path, size and modification time of a file; nothing of a folder or a missing one."""
    with suppress(OSError):
        about = path.stat()
        if path.is_file():
            return f"{path.absolute()} {about.st_size} {about.st_mtime_ns}".encode()
    return b""


def _digest_of_transforms(transforms: Sequence[OnLattice]) -> bytes:
    """How a case is made: preprocessing, spacing, our code and version, MONAI's and torch's."""
    versions = f"{fusion_pipeline.__version__} {monai.__version__} {torch.__version__}"
    settings = [one.settings() for one in transforms]
    text = f"{versions} {code_digest(*_MAKERS)} {settings}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest().encode()


def _size(entry: dict[str, Any]) -> int:
    """Bytes of an entry's tensors."""
    return sum(x.nbytes for x in entry.values() if isinstance(x, Tensor))


def _from_file(path: Path) -> dict[str, Any] | None:
    """An entry on disk, now the most recently used; None where there is none that is whole."""
    try:
        entry: dict[str, Any] = torch.load(path, weights_only=True, mmap=True)
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        logger.warning(
            "cache_dir %s: %s is damaged and made anew (%s)", path.parent, path.name, error
        )
        with suppress(OSError):
            path.unlink()
        return None
    with suppress(OSError):  # another process may have removed it meanwhile; the mapping stays
        os.utime(path)
    return entry


def _remove_beyond(folder: Path, bound: int, newest: Path) -> None:
    """Remove the least recently used entries beyond a bound, and what killed writers left."""
    entries, now = [], time.time()
    for path, size, used in _files_in(folder):
        if not path.name.startswith("."):
            entries.append((path == newest, used, size, path))
        elif now - used > _LEFT_OVER_S:
            with suppress(OSError):
                path.unlink()
    total = sum(size for _, _, size, _ in entries)
    for _, _, size, path in sorted(entries):
        if total <= bound:
            return
        with suppress(OSError):
            path.unlink()
        total -= size


def _files_in(folder: Path) -> Iterable[tuple[Path, int, float]]:
    """Path, bytes and time of last use of each entry; other processes may remove some meanwhile."""
    with os.scandir(folder) as listing:
        for one in listing:
            with suppress(OSError):
                if one.name.endswith(".pt"):
                    about = one.stat()
                    yield Path(one.path), about.st_size, about.st_mtime


__all__ = ["IN_MEMORY_GIB", "LatticeCase", "OnLattice", "PreparedCases"]
