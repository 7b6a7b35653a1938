"""What decides a run's output, as one digest: `--resume` compares it."""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from glob import escape, glob
from pathlib import Path

import numpy as np
from monai.transforms import Compose
from torch import Tensor, nn

import fusion_pipeline
from fusion_pipeline.data import Case, CaseFiles, InMemory, Source, as_meta_tensor, files_in
from fusion_pipeline.data.dicom_files import read_header
from fusion_pipeline.geometry.affines import Matrix

_CHUNK = 1 << 20  # bytes read at a time
_NO_SETTINGS = ("R", "_tracing")  # MONAI's random state and thread
_RESULTS = (".nii.gz", ".png", ".h5", ".json", ".html", ".csv", ".lock", ".json.replaced")
_DATA_FILE = re.compile(rb"\s*(?:ElementDataFile\s*[=:]|data ?file\s*:)(.*)", re.IGNORECASE)


@dataclass(frozen=True)
class RunFingerprint:
    """What decides a run's output beside the case; picklable and small, for DataLoader workers.

    Attributes:
        settings: of the inferer.
        weights: digest of the network, see `weights_digest`.
        preprocessing: what each image goes through.
        files: what is written beyond the files of every run; empty: nothing.
    """

    settings: Mapping[str, object]
    weights: str
    preprocessing: Compose
    files: str = ""

    def __call__(self, case: Case | CaseFiles) -> str:
        """Digest of a case's content, the settings, preprocessing, weights and the package's code.

        Files count by their content and not by their path, so that a moved patient stays the same.

        Returns:
            32 hexadecimal digits.
        """
        digest = hashlib.blake2b(digest_size=16)
        parts = _of_case(case) if isinstance(case, Case) else _of_files(case)
        steps = [transform_settings(step) for step in self.preprocessing.transforms]
        run = f"{code_digest()} {sorted(self.settings.items())} {steps} {self.weights}{self.files}"
        for part in (run.encode(), *parts):
            digest.update(part)
        return digest.hexdigest()


def weights_digest(network: nn.Module) -> str:
    """Digest of a network's state, on any device.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


@cache
def code_digest(*parts: str) -> str:
    """Digest of the package's modules: between two releases the version does not change.

    Args:
        parts: folders and modules of the package that count, such as ``data`` or ``geometry``;
            all where none is named.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=16)
    package, *beside = map(Path, fusion_pipeline.__path__)  # beside it: a checkout without links
    roots = [package, *(folder / name for folder in beside for name in ("networks", "transforms"))]
    modules = {
        Path(folder) / name
        for root in roots
        for folder, _, names in os.walk(root, followlinks=True)  # two folders are links
        for name in names
        if name.endswith(".py")
    }
    for path in sorted(modules):
        name = path.relative_to(package.parent).as_posix()
        if not parts or any(f"/{part}" in f"/{name}" for part in parts):
            digest.update(name.encode() + path.read_bytes())
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    """The numbers of a tensor."""
    return np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes()


def transform_settings(step: object, depth: int = 8) -> str:
    """A transform's class and all its settings, those of objects inside it as well.

    Args:
        step: a transform, or anything that it holds.
        depth: how many objects within objects count; the class of those further in counts alone.
    """
    if isinstance(step, str | bytes | int | float | complex | type | None):
        return repr(step)
    if depth == 0:
        return type(step).__qualname__
    if isinstance(step, Tensor | np.ndarray):
        return hashlib.blake2b(np.ascontiguousarray(step).tobytes(), digest_size=16).hexdigest()
    if isinstance(step, list | tuple):
        return f"[{', '.join(transform_settings(x, depth - 1) for x in step)}]"
    if isinstance(step, Mapping):
        pairs = [
            (transform_settings(k, depth - 1), transform_settings(v, depth - 1))
            for k, v in step.items()
        ]
        return str(sorted(pairs))
    code = getattr(step, "__code__", None)
    if code is not None:  # a function
        return f"{step.__module__}.{step.__qualname__} {code.co_code!r} {code.co_consts!r}"  # type: ignore[attr-defined]
    settings = getattr(step, "__dict__", {}).items()
    facts = {name: value for name, value in settings if name not in _NO_SETTINGS}
    return (
        f"{type(step).__module__}.{type(step).__qualname__}({transform_settings(facts, depth - 1)})"
    )


def _of_case(case: Case) -> Iterable[bytes]:
    """Images, masks and wishes of a case in memory."""
    yield f"{case.id} {case.reference}".encode()
    for key, series in case.series.items():
        yield f"{key} {series.transform} {series.image.units}".encode()
        for image in (series.image, series.mask):
            yield b"-" if image is None else _of_image(image.array, image.affine)
        if series.initial_transform is not None:
            yield np.asarray(series.initial_transform).tobytes()


def _of_image(array: Tensor, affine: Matrix) -> bytes:
    """Shape, affine and values."""
    return f"{tuple(array.shape)}".encode() + np.asarray(affine).tobytes() + _bytes(array)


def _of_files(case: CaseFiles) -> Iterable[bytes]:
    """Content of the files, truths included, and wishes of a case on disk."""
    yield f"{case.id} {case.reference}".encode()
    for key, series in case.series.items():
        yield f"{key} {series.transform}".encode()
        for role in ("image", "mask", "label", "landmarks", "displacement"):
            source: Source | InMemory | None = getattr(series, role)
            yield role.encode()
            if isinstance(source, InMemory):
                image = as_meta_tensor(source.content)
                yield str(image.meta.get("units", "")).encode()
                yield _of_image(image.as_tensor(), image.affine.numpy())
            elif source is not None:
                yield from _content(source)
        if series.initial_transform is not None:
            yield b"initial_transform"
            yield from _content(series.initial_transform)


def _content(source: Source) -> Iterable[bytes]:
    """The bytes of a file, or of all files of a folder, and which series of it."""
    yield f"{source.series}{source.selectors or ''}".encode()
    parts, root = files_of(source), Path(source.path)
    root = root if root.is_dir() else root.parent
    for file in parts:
        if file.is_file():
            if len(parts) > 1:
                yield os.path.relpath(file, root).encode()
            with file.open("rb") as stream:
                while chunk := stream.read(_CHUNK):
                    yield chunk


def files_of(source: Source) -> list[Path]:
    """The file of a source with those that may hold its voxels, or all in its folder, sorted.

    Results that lie in a folder of DICOM are no part of it.
    """
    path = Path(source.path)
    files = files_in(path)
    return _with_data(path) if files == [path] else [one for one in files if not _is_result(one)]


def _is_result(path: Path) -> bool:
    """Has a name like those that a run writes, and is no DICOM file."""
    return path.name.lower().endswith(_RESULTS) and read_header(path) is None


def _with_data(header: Path) -> list[Path]:
    """A file and those that may hold its voxels, where it is a detached header.

    Those of its name, and those that it names: one too many costs a run, one too few
    a stale result.
    """
    if header.suffix.lower() not in (".mhd", ".nhdr", ".hdr"):
        return [header]
    folder = escape(str(header.parent))
    patterns = [f"{escape(header.stem)}.*", *_data_files(header)]
    # by os.path, for a name may be absolute
    named = [os.path.join(folder, pattern) for pattern in patterns]  # noqa: PTH118
    files = {Path(path) for pattern in named for path in glob(pattern)}  # noqa: PTH207
    return [header, *sorted(files - {header})]


def _data_files(header: Path) -> Iterator[str]:
    """The files that a MetaImage or NRRD header names, as patterns.

    After ``ElementDataFile`` or ``data file``: a name, ``%03d``-like names, or a list on the lines
    below.
    """
    with suppress(OSError), header.open("rb") as stream:
        for line in stream:
            match = _DATA_FILE.match(line)
            if match is None:
                continue
            value = os.fsdecode(match[1].strip())
            if re.fullmatch(r"LIST(\s+\d+)?", value, re.IGNORECASE):
                yield from (escape(os.fsdecode(name.strip())) for name in stream if name.strip())
            elif "%" in value:  # "slice%03d.raw 1 20 1"
                yield re.sub(r"%\d*[di]", "*", escape(re.sub(r"(\s+\d+)+$", "", value)))
            elif value.upper() != "LOCAL":
                yield escape(value)
            return
