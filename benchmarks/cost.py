"""What a pair costs from coarse to fine: CPU seconds and memory against the lattice's voxels.

    python benchmarks/cost.py --data ../shared/data/open --output out/cost

One draw of a mild move is registered on working lattices of 4 to 1 mm, with refinement and without.
Writes ``cost.json``, ``cost.md`` and ``cost.png`` into the folder. Peak memory is that of the whole
process, images and network included.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from registration import ours, timed
from registration_cases import KnownCase, Spec, make, pairs
from registration_table import Row

from fusion_pipeline.metrics import target_registration_error
from fusion_pipeline.register.lattice import working_lattice

_SPACINGS_MM = (4.0, 3.0, 2.0, 1.5, 1.0)
_PAIRS = {"painted CT-T1": "head15", "sarcoma CT-MR": "sts015"}


def measured(case: KnownCase, spacing: float, refine_steps: int | None) -> Row:
    """One run: voxels of the lattice, seconds, memory, error."""
    method = ours(None, refine_steps, "deformable", working_spacing=spacing)
    found, cost = timed(method, case.fixed, case.moving)
    if found is None:
        raise RuntimeError(cost["raised"])
    error = target_registration_error(case.truth, found.map.points(case.points))
    return {
        "spacing_mm": spacing,
        "voxels": int(np.prod(working_lattice(case.fixed, case.moving, spacing).shape)),
        "refined": refine_steps is None,
        "tre_mm": float(error.mean()),
        "before_mm": float(target_registration_error(case.truth, case.points).mean()),
        **cost,
    }


def markdown(rows: list[Row]) -> str:
    """A line for each run."""
    lines = [
        "| pair | spacing, mm | million voxels | refined | CPU s | peak MiB | TRE, mm (before) |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['pair']} | {r['spacing_mm']:g} | {r['voxels'] / 1e6:.2f} "
        f"| {'yes' if r['refined'] else 'no'} | {r['cpu_s']:.1f} | {r['peak_memory_mb']:.0f} "
        f"| {r['tre_mm']:.2f} ({r['before_mm']:.2f}) |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


def plot(rows: list[Row], path: Path) -> None:
    """Seconds and memory against voxels."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for number, pair in enumerate(dict.fromkeys(r["pair"] for r in rows)):
        for refined, line in ((True, "o-"), (False, "o--")):
            mine = [r for r in rows if r["pair"] == pair and r["refined"] == refined]
            voxels = [r["voxels"] / 1e6 for r in mine]
            label = f"{pair}, {'with' if refined else 'without'} refinement"
            for axis, key in zip(axes, ("cpu_s", "peak_memory_mb"), strict=True):
                axis.loglog(voxels, [r[key] for r in mine], line, color=f"C{number}", label=label)
    for axis, title in zip(axes, ("CPU seconds, one thread", "peak memory, MiB"), strict=True):
        axis.set(xlabel="million voxels of the working lattice", title=title)
        axis.grid(alpha=0.3, which="both")
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Run all, coarse first, and write what there is after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data/open"))
    parser.add_argument("--output", type=Path, required=True, help="folder")
    parser.add_argument("--finest", type=float, default=1.0, help="mm; finer lattices are left out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    chosen = [
        pair
        for pair in pairs(options.data, training=False)
        if _PAIRS.get(pair.group) == pair.patient
    ]
    if len(chosen) < len(_PAIRS):
        parser.error(f"{options.data} does not hold all of {_PAIRS}")
    rows: list[Row] = []
    for spacing in [s for s in _SPACINGS_MM if s >= options.finest]:
        for pair in chosen:
            case = make(Spec(pair, "mild", 1))
            for refine_steps in (0, None):
                rows.append({"pair": pair.group, **measured(case, spacing, refine_steps)})
                (options.output / "cost.json").write_text(json.dumps(rows, indent=1) + "\n")
                (options.output / "cost.md").write_text(markdown(rows))
                print(markdown(rows[-1:]).splitlines()[-1], flush=True)
    plot(rows, options.output / "cost.png")


if __name__ == "__main__":
    main()
