"""Several processes share the cases of one run: each case goes to one of them, all see the end."""

import itertools
import os
import time
from collections.abc import Iterator, Sized

from torch.distributed import HashStore, PrefixStore, Store, TCPStore
from torch.distributed.rendezvous import rendezvous
from torch.utils.data import Sampler

from fusion_pipeline.data import InputError
from fusion_pipeline.data.refusals import one_line

STORE_VARIABLE = "FUSION_PIPELINE_STORE"
_POLL_S = 0.2  # how often a process that waits for the others asks; small beside any case
_runs = itertools.count()


def lost_key(rank: int) -> str:
    """Key of the store under which the launcher says that a process has ended."""
    return f"lost/{rank}"


class SharedRun:
    """One run of the processes of a program; alone, where there is one.

    All that they share lies in a ``torch.distributed`` store: a counter, from which each process
    takes the next case, and what became of each case.

    Args:
        rank: of this process, from 0.
        size: number of processes.
        store: shared by them; None: one of this process alone.
        name: tells this run from others in the same store.

    Attributes:
        writes: this process writes the summary; `wait_for_others` decides.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, store: Store | None = None, name: str = "run"
    ) -> None:
        self.rank = rank
        self.size = size
        self.writes = size == 1
        self._program = HashStore() if store is None else store
        self._store = PrefixStore(name, self._program)

    @classmethod
    def of_this_program(cls) -> "SharedRun":
        """The next run of the processes that ``torchrun`` or ``--jobs`` started; else of this one.

        Raises:
            InputError: several tasks of SLURM without ``torchrun``, or no way to the others.
        """
        _refuse_bare_slurm()
        name = f"run{next(_runs)}"
        rank, size = (int(os.environ.get(key, "-1")) for key in ("RANK", "WORLD_SIZE"))
        if rank < 0 or size <= 1:
            return cls(name=name)
        try:
            if STORE_VARIABLE in os.environ:
                host, _, port = os.environ[STORE_VARIABLE].rpartition(":")
                store: Store = TCPStore(host, int(port), is_master=False)
            else:
                store, rank, size = next(iter(rendezvous("env://")))
        except (ValueError, RuntimeError) as error:
            raise InputError(
                f"process {rank} of {size}: expected the environment that torchrun sets, got "
                f"{one_line(error)}; start it with torchrun"
            ) from error
        return cls(rank, size, store, name)

    def take(self) -> int:
        """Number of the next case: each number, from 0 up, is given to one process."""
        return self._store.add("taken", 1) - 1

    def finish(self, number: int, outcome: str) -> int:
        """Say how a case went.

        Returns:
            How many cases have ended by now, in all processes.
        """
        self._store.set(f"case/{number}", outcome)
        return self._store.add("ended", 1)

    def outcome(self, number: int) -> str | None:
        """What `finish` said about a case; None: its process has not come so far."""
        key = f"case/{number}"
        return self._store.get(key).decode() if self._store.check([key]) else None

    def wait_for_others(self) -> None:
        """Wait until no process works any more; the first of those that are left `writes`.

        The others wait until it has called `close`: a launcher stops all processes as soon as one
        leaves with an error.
        """
        self._store.set(f"done/{self.rank}", "")
        while not self._store.check(["written"]):
            first = next(rank for rank in range(self.size) if not self._is_lost(rank))
            if first == self.rank and self._all("done"):
                self.writes = True
                return
            time.sleep(_POLL_S)

    def close(self) -> None:
        """Let the others go; who writes goes last, since it may hold the store."""
        if self.writes:
            self._store.set("written", "")
        self._store.set(f"gone/{self.rank}", "")
        while self.writes and not self._all("gone"):
            time.sleep(_POLL_S)

    def _all(self, key: str) -> bool:
        """Each process that is left has said so."""
        return all(self._store.check([f"{key}/{r}"]) or self._is_lost(r) for r in range(self.size))

    def _is_lost(self, rank: int) -> bool:
        """The launcher says that this process has ended."""
        return self._program.check([lost_key(rank)])


class CaseQueue(Sampler[int]):
    """Sampler: the next case that no other process of the run has taken, in the datalist's order.

    A process that is fast takes more. `FusionEvaluator` connects it with the other processes; alone
    it gives every case. It has no length, for nobody can tell how many cases it will give.

    Args:
        dataset: the cases.

    >>> list(CaseQueue(["a", "b", "c"]))
    [0, 1, 2]
    """

    def __init__(self, dataset: Sized) -> None:
        self.dataset = dataset
        self.shared: SharedRun | None = None

    def __iter__(self) -> Iterator[int]:
        shared = self.shared or SharedRun()
        while (number := shared.take()) < len(self.dataset):
            yield number


def _refuse_bare_slurm() -> None:
    """Each task of ``srun`` would run all cases."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks != "1" and "RANK" not in os.environ:
        raise InputError(
            f"srun: expected torchrun as the program of the tasks, got {tasks} tasks that do not "
            "know each other; see docs/cohorts.md"
        )
