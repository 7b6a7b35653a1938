"""What decides a run's output, as one digest: `--resume` compares it."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from fusion_pipeline import __version__
from fusion_pipeline.data import Case, CaseFiles

_CHUNK = 1 << 20


def fingerprint(case: Case | CaseFiles, settings: Mapping[str, object], network: nn.Module) -> str:
    """Digest of a case's content, the settings and the weights.

    Files count by their content and not by their path, so that a moved patient stays the same.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=16)
    parts = _of_case(case) if isinstance(case, Case) else _of_files(case)
    for part in (f"{__version__} {sorted(settings.items())}".encode(), *parts):
        digest.update(part)
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    """The numbers of a tensor."""
    return np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes()


def _of_case(case: Case) -> Iterable[bytes]:
    """Images, masks and wishes of a case in memory."""
    yield f"{case.id} {case.reference} {sorted(case.transforms.items())}".encode()
    for images in (case.images, case.masks):
        for key, image in images.items():
            yield f"{key} {image.units} {image.shape}".encode()
            yield image.affine.tobytes()
            yield _bytes(image.array)


def _of_files(case: CaseFiles) -> Iterable[bytes]:
    """Content of the files, truths included, and wishes of a case on disk."""
    yield f"{case.id} {case.reference} {sorted(case.transforms.items())}".encode()
    truths = (case.labels, case.landmarks, case.displacements)
    for paths in (case.images, case.masks, *truths):
        for key, path in paths.items():
            yield key.encode()
            yield from _content(str(path))


def _content(path: str) -> Iterable[bytes]:
    """The bytes of a file, or of all files of a folder (``folder::SeriesInstanceUID`` as well)."""
    folder, _, series = path.partition("::")
    yield series.encode()
    root = Path(folder)
    for file in sorted(root.rglob("*")) if root.is_dir() else [root]:
        if file.is_file():
            yield str(file.relative_to(root)).encode()
            with file.open("rb") as stream:
                while chunk := stream.read(_CHUNK):
                    yield chunk
