"""How a refusal reads, and the silence of the libraries that read files."""

import logging
import os
import struct
import sys
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import cast

import SimpleITK as sitk
from isal import igzip_lib
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from pydicom.errors import BytesLengthException, InvalidDicomError

from fusion_pipeline.data.image import InputError

# What nibabel, SimpleITK, pydicom and Pillow raise on a file that is not what its name says.
READ_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    RuntimeError,
    MemoryError,
    SyntaxError,
    struct.error,
    zlib.error,
    cast("type[Exception]", igzip_lib.IsalError),  # its stub says that it is an instance
    ImageFileError,
    HeaderDataError,
    InvalidDicomError,
    BytesLengthException,
)

MEMORY_ADVICE = "give the image at coarser voxels or cropped, or use a machine with more memory"
# what torch and ITK say in a plain RuntimeError
_NO_MEMORY = ("not enough memory", "can't allocate memory", "out of memory", "allocate memory")

_SILENT = logging.CRITICAL + 1


def where(case_id: str, key: str, path: str | Path) -> str:
    """Name a file as every message does: ``case 'a', ct (folder/ct.nii.gz)``."""
    return (f"case {case_id!r}, " if case_id else "") + f"{key} ({path})"


def one_line(text: object, limit: int = 160) -> str:
    r"""A foreign message on one line, shortened.

    >>> one_line("a\n  b")
    'a b'
    """
    line = " ".join(str(text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def refusal(
    place: str, expected: str, came: str, advice: str, kind: type[InputError] = InputError
) -> InputError:
    """The one line that a user can act on.

    >>> print(refusal("ct (a.nii)", "a file", "nothing there", "check the path"))
    ct (a.nii): expected a file, got nothing there; check the path
    """
    return kind(one_line(f"{place}: expected {expected}, got {came}; {advice}", limit=4000))


def is_memory_error(error: BaseException) -> bool:
    """Whether an error says that memory is lacking: Python's, NumPy's, torch's or ITK's.

    >>> is_memory_error(MemoryError()), is_memory_error(RuntimeError("CUDA out of memory."))
    (True, True)
    """
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _NO_MEMORY)


def no_memory(case_id: str = "") -> str:
    """What a user is told where memory ends.

    >>> no_memory("p1").partition(";")[0]
    "case 'p1': expected room for its images in memory, got an error for the lack of it"
    """
    prefix = f"case {case_id!r}: " if case_id else ""
    return (
        f"{prefix}expected room for its images in memory, got an error for the lack of it; "
        f"{MEMORY_ADVICE}"
    )


@contextmanager
def one_line_refusals() -> Iterator[None]:
    """Let a refusal end ``python -m monai.bundle`` with its one line and exit code 2.

    MONAI wraps whatever a component raises in its own errors and a long traceback; only what is no
    ``Exception`` passes. In any other program the refusal rises as it is.
    """
    try:
        yield
    except InputError as error:
        if not monai_is_the_program():
            raise
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from error


def monai_is_the_program() -> bool:
    """The process was started as ``python -m monai.bundle``."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec is not None and spec.name == "monai.bundle.__main__"


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the warnings of nibabel, pydicom, Pillow and ITK from the user's terminal."""
    names = ("nibabel.global", "pydicom", "PIL", "monai")
    loud = [one for name in names if (one := logging.getLogger(name)).level != _SILENT]
    levels = [logger.level for logger in loud]
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    try:
        _set_levels(loud, [_SILENT] * len(loud))
        sitk.ProcessObject.SetGlobalWarningDisplay(False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)
        _set_levels(loud, levels)


def _set_levels(loggers: Sequence[logging.Logger], levels: Sequence[int]) -> None:
    """Levels of several loggers; `setLevel` empties the caches of all loggers, so it is last."""
    for logger, level in zip(loggers, levels, strict=True):
        logger.level = level
    if loggers:
        loggers[-1].setLevel(levels[-1])


@contextmanager
def muted() -> Iterator[None]:
    """Drop what ITK's C libraries (MetaIO, libpng, libjpeg) print past Python, for one read."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    with ExitStack() as undo:
        nowhere = undo.enter_context(Path(os.devnull).open("w"))
        for descriptor in (1, 2):
            with suppress(OSError):  # a service may have closed them
                saved = os.dup(descriptor)
                undo.callback(os.close, saved)
                undo.callback(os.dup2, saved, descriptor)
                os.dup2(nowhere.fileno(), descriptor)
        yield


__all__ = [
    "MEMORY_ADVICE",
    "READ_ERRORS",
    "is_memory_error",
    "monai_is_the_program",
    "muted",
    "no_memory",
    "one_line",
    "one_line_refusals",
    "quiet",
    "refusal",
    "where",
]
