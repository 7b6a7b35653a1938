"""A user's own list of ten patients with labels: one command, one page, and how long it takes.

    python benchmarks/own_datalist.py --output out/ten
    python benchmarks/own_datalist.py --output out/ten --dims 2 --against traditional

Prints the seconds of the stages themselves, and of all else: measures, statistics, page.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fusion_pipeline.synthesis import synthetic_patient

_CPU = resource.RUSAGE_CHILDREN


@dataclass(frozen=True)
class Cost:
    """What one run took.

    Attributes:
        cases: that have a result, over all methods.
        wall_s: of the command, from its start to its end.
        cpu_s: likewise.
        stages_wall_s: of that, what the reports give for loading and the three stages.
        stages_cpu_s: likewise.
    """

    cases: int
    wall_s: float
    cpu_s: float
    stages_wall_s: float
    stages_cpu_s: float

    def __str__(self) -> str:
        """In words."""
        stages = f"{self.stages_wall_s:.0f} s ({self.stages_cpu_s:.0f} CPU s)"
        rest_cpu_s = self.cpu_s - self.stages_cpu_s
        rest = f"{self.wall_s - self.stages_wall_s:.0f} s ({rest_cpu_s:.0f} CPU s)"
        whole = f"{self.wall_s:.0f} s ({self.cpu_s:.0f} CPU s)"
        return f"{self.cases} results: {whole}; loading and stages {stages}; all else {rest}"


def write_patients(folder: Path, patients: int, dims: int) -> Path:
    """A datalist of small generated patients, whose labels alone are the truth."""
    entries = []
    for seed in range(patients):
        made = synthetic_patient(seed, spatial_dims=dims).save(folder)
        (entry,) = json.loads(made.read_text(encoding="utf-8"))["testing"]
        labelled = {
            key: value
            for key, value in entry.items()
            if not key.endswith(("_landmarks", "_displacement"))
        }
        entries.append({**labelled, "patient": f"patient {seed}"})
    datalist = folder / "cases.json"
    datalist.write_text(json.dumps({"testing": entries}, indent=1) + "\n", encoding="utf-8")
    return datalist


def timed(datalist: Path, output: Path, options: Sequence[str] = ()) -> Cost:
    """The one command, in a process of its own."""
    command = [sys.executable, "-m", "fusion_pipeline", "evaluate", "--quiet"]
    command += ["--datalist", str(datalist), "--output", str(output), *options]
    before, start = resource.getrusage(_CPU), time.perf_counter()
    subprocess.run(command, check=True)
    wall, after = time.perf_counter() - start, resource.getrusage(_CPU)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    reports = [
        json.loads(path.read_text(encoding="utf-8"))["timings"].values()
        for path in output.glob("cases/*/*/report.json")
    ]
    return Cost(
        cases=len(reports),
        wall_s=wall,
        cpu_s=cpu,
        stages_wall_s=sum(stage["wall_s"] for report in reports for stage in report),
        stages_cpu_s=sum(stage["cpu_s"] for report in reports for stage in report),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--patients", type=int, default=10)
    parser.add_argument("--dims", type=int, choices=(2, 3), default=3)
    parser.add_argument("--against", nargs="+", default=[])
    args = parser.parse_args(arguments)
    datalist = write_patients(args.output / "patients", args.patients, args.dims)
    options = ["--against", *args.against] if args.against else []
    cost = timed(datalist, args.output / "study", options)
    print(cost)
    print(args.output / "study" / "study.html")


if __name__ == "__main__":
    main()
