"""What a run costs: wall and CPU seconds per stage, peak memory; and where it is."""

import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import psutil

# `INFO` when a stage begins, `DEBUG` when it ends
logger = logging.getLogger("fusion_pipeline.progress")


def announce(step: str, case: str = "") -> None:
    """Log what begins, such as ``register mr_t1``; nothing is timed."""
    logger.info("%s%s", f"{case}: " if case else "", step)


def announce_end() -> None:
    """Log that what was announced last has ended."""
    logger.debug("ended")


class Clock:
    """Collects wall and CPU seconds under the names of the stages, and logs where the run is.

    Args:
        timings: what was collected so far.
        case: its id, for the log.

    Attributes:
        timings: ``{"register": {"wall_s": 3.1, "cpu_s": 5.9}, …}``, in the order of the stages.
    """

    def __init__(
        self, timings: Mapping[str, Mapping[str, float]] | None = None, case: str = ""
    ) -> None:
        self.case = case
        self.timings = {name: dict(spent) for name, spent in (timings or {}).items()}

    @contextmanager
    def stage(self, name: str, *, has_steps: bool = False) -> Iterator[None]:
        """Time what happens inside; a name used twice adds up.

        Args:
            name: of the stage.
            has_steps: what happens inside announces its own steps.
        """
        if not has_steps:
            announce(name, self.case)
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            spent = self.timings.setdefault(name, {"wall_s": 0.0, "cpu_s": 0.0})
            spent["wall_s"] += time.perf_counter() - wall
            spent["cpu_s"] += time.process_time() - cpu
            announce_end()


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, in MiB."""
    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset) / 1024**2
    import resource  # does not exist on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak) / (1024**2 if sys.platform == "darwin" else 1024)  # bytes there, else KiB
