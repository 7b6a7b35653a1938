"""Start processes that share one run; when one of them dies, the others go on."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import TypeVar

import SimpleITK as sitk
import torch
from torch.distributed import TCPStore
from torch.multiprocessing import start_processes

from fusion_pipeline.pipeline.shared_run import STORE_VARIABLE, lost_key

logger = logging.getLogger("fusion_pipeline.run")
_HOST = "127.0.0.1"
Argument = TypeVar("Argument")


def run_processes(work: Callable[[Argument], int], argument: Argument, count: int) -> int:
    """Call ``work(argument)`` in new processes of this machine, `SharedRun`s of one program.

    Args:
        work: importable; returns its exit code.
        argument: can be pickled.
        count: number of processes; the threads of torch and ITK are divided among them.

    Returns:
        The highest exit code; 1 at least where a process was killed.
    """
    # the store lives here, so that no death among the processes takes it from the others
    store = TCPStore(_HOST, 0, is_master=True, wait_for_workers=False)
    started = start_processes(_start, (count, store.port, work, argument), count, join=False)
    processes = started.processes
    running = {process.sentinel: rank for rank, process in enumerate(processes)}
    try:
        while running:
            for sentinel in wait(list(running)):
                rank = running.pop(sentinel)
                processes[rank].join()
                store.set(lost_key(rank), "")
                if processes[rank].exitcode < 0:
                    name = signal.Signals(-processes[rank].exitcode).name
                    logger.error("process %d of %d was ended by %s", rank + 1, count, name)
    finally:
        for process in processes:
            process.terminate()
    return max(process.exitcode if process.exitcode >= 0 else 1 for process in processes)


def _start(
    rank: int, count: int, port: int, work: Callable[[Argument], int], argument: Argument
) -> None:
    """One of the processes; its environment is that of ``torchrun``."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the starter tells the user about it
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        STORE_VARIABLE: f"{_HOST}:{port}",
    }
    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(max(1, threads // count))
    sys.exit(work(argument))
