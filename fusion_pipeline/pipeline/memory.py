"""Memory that a registration gives back and takes again many times a second."""

import ctypes
import os
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h
_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Let this process keep what it frees, in large pages; where this is not glibc, do nothing.

    Images of many channels are made and dropped all the time, and glibc takes each from the system
    and gives it back: a seventh of the CPU time of a head's registration is spent on pages that are
    emptied for it. For programs of our own; what is kept is missing to no one but other processes.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by torch when it first allocates
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, _NEVER)
