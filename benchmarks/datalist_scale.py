"""Seconds and memory of starting with a large datalist: reading it, checking headers, a fold.

Usage: ``python benchmarks/datalist_scale.py --cases 10000 --workers 2``. Writes one CT and one MR
per case, gzipped headers with few voxels: the check reads as much of them as of large files.
"""

import argparse
import json
import logging
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import nibabel as nib
import numpy as np

from fusion_pipeline.data import read_datalist
from fusion_pipeline.training.checked_cases import checked_cases
from fusion_pipeline.training.folds import fold

T = TypeVar("T")


def write_cohort(folder: Path, count: int, broken: int) -> Path:
    """A datalist of so many cases, each with files of its own; the last ones are cut short."""
    rng = np.random.default_rng(0)
    for key in ("ct", "mr"):
        array = rng.integers(0, 1000, (12, 13, 11)).astype(np.int16)
        nib.save(nib.Nifti1Image(array, np.diag([2.0, 2.0, 2.5, 1.0])), folder / f"{key}.nii.gz")
    whole = {key: (folder / f"{key}.nii.gz").read_bytes() for key in ("ct", "mr")}
    entries = []
    for n in range(count):
        case = folder / f"p{n}"
        case.mkdir()
        for key, content in whole.items():
            cut = n >= count - broken and key == "mr"
            (case / f"{key}.nii.gz").write_bytes(content[: len(content) // 2] if cut else content)
        entries.append({"id": f"p{n}", "target": n % 3, "ct": f"p{n}/ct.nii.gz"})
        entries[-1]["mr"] = f"p{n}/mr.nii.gz"
    path = folder / "datalist.json"
    path.write_text(json.dumps({"training": entries}))
    return path


def peak_mib() -> float:
    """Most memory of this process and of its largest child so far, MiB."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(resource.getrusage(one).ru_maxrss for one in who) / 1024


def cpu_s() -> float:
    """Seconds of processor time of this process and its ended children."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def timed(name: str, step: Callable[[], T]) -> T:
    """Run a step and print what it took."""
    start, before = time.perf_counter(), cpu_s()
    result = step()
    took, busy = time.perf_counter() - start, cpu_s() - before
    print(f"{name}: {took:.2f} s ({busy:.2f} s CPU), peak {peak_mib():.0f} MiB")
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--broken", type=int, default=10)
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--folder", type=Path, default=None, help="where the files are written")
    args = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        path = write_cohort(folder, args.cases, args.broken)
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"before: {own:.0f} MiB (imports)")
        cases = timed("read the datalist", lambda: read_datalist(path, "training"))
        usable = timed(
            "check the headers", lambda: checked_cases(cases, folder, workers=args.workers)
        )
        timed("one fold of 5", lambda: fold(usable, 5, 2))
        print(f"usable: {len(usable)} of {args.cases}")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
