"""What a run costs: wall and CPU seconds per stage, peak memory."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import psutil


class Clock:
    """Collects wall and CPU seconds under the names of the stages.

    Args:
        timings: what was collected so far.

    Attributes:
        timings: ``{"register": {"wall_s": 3.1, "cpu_s": 5.9}, …}``, in the order of the stages.
    """

    def __init__(self, timings: Mapping[str, Mapping[str, float]] | None = None) -> None:
        self.timings = {name: dict(spent) for name, spent in (timings or {}).items()}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what happens inside; a name used twice adds up."""
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            spent = self.timings.setdefault(name, {"wall_s": 0.0, "cpu_s": 0.0})
            spent["wall_s"] += time.perf_counter() - wall
            spent["cpu_s"] += time.process_time() - cpu


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, in MiB."""
    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset) / 1024**2
    import resource  # does not exist on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak) / (1024**2 if sys.platform == "darwin" else 1024)  # bytes there, else KiB
