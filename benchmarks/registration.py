"""Target registration error on known-truth cases made from the open data; resumable.

    python benchmarks/registration.py --data ../shared/data/open --output out/registration.json

One image of an aligned pair is moved by a seeded known map (known_truth.py). TRE is measured at
4000 points of the fixed image's body, and again at those of them that the moved image shows. Next
to the JSON comes a Markdown table, with --plot a picture. Cases that are in the JSON already, made
by the same weights and the same code, are not run again.
"""

import argparse
import hashlib
import json
import math
import resource
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import registration_cases
import torch
from registration_cases import SEVERITIES, KnownCase, Pair, Spec, make, pairs, specs
from registration_table import Row, markdown, plot, summary
from torch import nn

import fusion_pipeline
from fusion_pipeline.baselines import (
    ENGINES,
    RegisterByMutualInformation,
    engines,
    mutual_information,
)
from fusion_pipeline.data import Image, InputError, written_whole
from fusion_pipeline.geometry import apply_affine
from fusion_pipeline.metrics import target_registration_error
from fusion_pipeline.pipeline import FusionPipeline
from fusion_pipeline.register import Registration

PEERS = {name: one for name, one in ENGINES.items() if name != "mutual-information"}
_DECIDING = ("register", "networks", "geometry", "transforms", "losses", "metrics")


@dataclass(frozen=True)
class Method:
    """What is measured.

    Attributes:
        name: column of the table.
        version: digest of its weights and code, and of the code that makes the cases.
        register: fixed and moving image in, registration out.
    """

    name: str
    version: str
    register: Callable[[Image, Image], Registration]


def ours(
    bundle: Path | None,
    refine_steps: int | None,
    transform: str,
    *,
    same_person: bool = True,
    working_spacing: float | None = None,
    denoise: bool = False,
) -> Method:
    """The preprocessing and the register stage of a bundle."""
    pipeline = FusionPipeline.from_bundle(
        bundle,
        refine_steps=refine_steps,
        same_person=same_person,
        working_spacing=working_spacing,
        denoise=denoise,
    )
    stage = pipeline.inferer.register_stage(pipeline.network)
    limit = "" if transform == "deformable" else f", {transform}"
    limit += "" if same_person else ", different people"
    limit += ", denoised" if denoise else ""
    return Method(
        f"ours, {stage.refine_steps} steps{limit}",
        _version(_package_sources(), stage.network),
        lambda fixed, moving: stage(
            pipeline.prepare(fixed),
            pipeline.prepare(moving),
            transform=transform,  # type: ignore[arg-type]
        ),
    )


def baseline() -> Method:
    """SimpleITK's mutual information, rigid then B-spline."""
    return Method(
        "baseline MI (SimpleITK)",
        _version([Path(mutual_information.__file__)]),
        RegisterByMutualInformation(),
    )


def peer(name: str, threads: int) -> Method:
    """An engine from the package index; its settings are in ``baselines/engines.py``."""
    chosen = PEERS[name]
    try:
        run_it = chosen.load(threads)
    except InputError as error:
        raise SystemExit(str(error)) from error
    version = f"{chosen.version}, {_version([Path(engines.__file__)])}"
    return Method(chosen.title, version, run_it)


def _package_sources() -> list[Path]:
    """The files that decide what our registration does."""
    root = Path(fusion_pipeline.__file__).parent
    folders = [(root / name).resolve() for name in _DECIDING]
    return [file for folder in folders for file in sorted(folder.rglob("*.py"))]


def _version(sources: Sequence[Path], network: nn.Module | None = None) -> str:
    """A digest of code and weights."""
    digest = hashlib.blake2b(digest_size=8)
    here = Path(registration_cases.__file__).parent
    cases = ("known_truth.py", "registration_cases.py", "painted_heads.py")
    for file in (*sources, *(here / name for name in cases)):
        digest.update(file.read_bytes())
    for tensor in [] if network is None else network.state_dict().values():
        digest.update(np.ascontiguousarray(tensor.cpu().numpy()).tobytes())
    return digest.hexdigest()


def measure(method: Method, case: KnownCase) -> Row:
    """Run a method on a case; what it raises counts as nothing done."""
    found, cost = timed(method, case.fixed, case.moving)
    return _errors(case, found) | cost


def timed(method: Method, fixed: Image, moving: Image) -> tuple[Registration | None, Row]:
    """What a method finds, None where it raises, and what that cost or what it said."""
    _forget_peak()
    torch.manual_seed(0)
    wall, cpu = time.perf_counter(), _cpu_seconds()
    raised, found = {}, None
    try:
        found = method.register(fixed, moving)
    except Exception as error:  # a case must not stop the others
        raised = {"raised": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    cost = {
        "cpu_s": _cpu_seconds() - cpu,
        "wall_s": time.perf_counter() - wall,
        "peak_memory_mb": _peak_mb(),
    }
    return found, cost | raised


def coarser_voxel_mm(pair: Pair, case: KnownCase) -> float:
    """Cube root of the larger voxel of both as acquired: a moved image lies on the other's grid."""
    files = [nib.load(path).header.get_zooms()[:3] for _, path in (pair.fixed, pair.moving)]
    voxels = [*files, case.fixed.spacing, case.moving.spacing]
    return max(float(np.prod(sizes)) ** (1 / len(sizes)) for sizes in voxels)


def _cpu_seconds() -> float:
    """Of this process, all its threads, and the programs it has run."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _errors(case: KnownCase, found: Registration | None) -> Row:
    """Distances before and after, and what the registration says of itself."""
    points = {"before": case.points, "pose": case.points, "after": case.points}
    if found is not None:
        points["pose"] = apply_affine(found.map.moving_from_fixed, case.points)
        points["after"] = found.map.points(case.points)
    row: Row = {"points": len(case.points), "in_view_share": float(case.in_view.mean())}
    for name, where in points.items():
        error = target_registration_error(case.truth, where)
        row[name] = _distances(error)
        row[f"{name}_in_view"] = _distances(error[case.in_view]) if case.in_view.any() else None
    if found is None:
        return row | {"transform": "none", "ok": False, "error_mm": None, "folded_fraction": 0.0}
    evidence = found.evidence
    return row | {
        "transform": evidence.transform,
        "ok": evidence.ok,
        "reason": evidence.reason,
        "error_mm": evidence.error_mm if math.isfinite(evidence.error_mm) else None,
        "folded_fraction": evidence.folded_fraction,
        "similarity_before": dict(evidence.similarity_before),
        "similarity_after": dict(evidence.similarity_after),
        "details": dict(evidence.details),
    }


def _distances(error: np.ndarray) -> dict[str, float]:
    return {"mean": float(error.mean()), "p95": float(np.percentile(error, 95))}


def _forget_peak() -> None:
    """Let Linux count the peak of the memory anew."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mb() -> float | None:
    """Largest resident memory since then, in MiB; None off Linux."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return None


class Results:
    """The JSON of all cases; saved after each one.

    Args:
        path: of the JSON.
        methods: those whose rows count.
        any_version: rows made by other weights or code count as well.
    """

    def __init__(self, path: Path, methods: Sequence[Method], *, any_version: bool) -> None:
        self.path = path
        self._current = {method.name: method.version for method in methods}
        self._any_version = any_version
        self._rows: dict[str, Row] = {}
        self._load()

    def has(self, spec: Spec, method: Method) -> bool:
        """Whether the case is done; one that raised is not."""
        row = self._rows.get(_name(spec.key, method.name))
        return row is not None and self._counts(row) and "raised" not in row

    def add(self, spec: Spec, method: Method, row: Row) -> None:
        """Keep a row and write the file; rows that another process added meanwhile stay."""
        self._load()
        head = {**spec.key, "seed": spec.seed, "method": method.name, "version": method.version}
        self._rows[_name(spec.key, method.name)] = head | row
        self.save()

    def save(self) -> None:
        """Write all rows and the summary of those that count."""
        content = {"summary": summary(self.rows), "cases": list(self._rows.values())}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(self.path) as aside:
            aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @property
    def rows(self) -> list[Row]:
        """The rows that count."""
        return [row for row in self._rows.values() if self._counts(row)]

    @property
    def outdated(self) -> int:
        """How many rows of these methods other weights or code have made."""
        mine = [row for row in self._rows.values() if row["method"] in self._current]
        return sum(not self._counts(row) for row in mine)

    def _counts(self, row: Row) -> bool:
        version = self._current.get(row["method"])
        return version is not None and (self._any_version or row["version"] == version)

    def _load(self) -> None:
        if self.path.is_file():
            for row in json.loads(self.path.read_text(encoding="utf-8"))["cases"]:
                if "voxel_mm" in row:  # else success is not known, and older files count as not run
                    self._rows[_name(row, row["method"])] = row


def _name(key: Row, method: str) -> str:
    """What a row is found by."""
    parts = [str(key[k]) for k in ("group", "patient", "moving", "severity", "draw")]
    return " ".join([*parts, method])


def line_of(spec: Spec, method: Method, row: Row) -> str:
    """A case in one line."""
    view = ""
    if row["after_in_view"]:
        view = (
            f" (in view {row['before_in_view']['mean']:.1f} > {row['after_in_view']['mean']:.2f})"
        )
    estimate = "-" if row["error_mm"] is None else f"{row['error_mm']:.1f}"
    end = f"RAISED {row['raised']}" if "raised" in row else "" if row["ok"] else "NOT OK"
    before, pose, after = (row[when]["mean"] for when in ("before", "pose", "after"))
    worse = "WORSE " if after > before else ""
    return (
        f"{spec.pair.group} {spec.pair.patient} {spec.severity} {spec.draw}, {method.name}: "
        f"{before:.1f} > pose {pose:.2f} > {after:.2f} mm"
        f"{view} p95 {row['after']['p95']:.1f}, {row['transform']}, estimate {estimate}, "
        f"folded {row['folded_fraction']:.5f}, {row['cpu_s']:.1f} CPU s {worse}{end}"
    ).rstrip()


def run(cases: Sequence[Spec], methods: Sequence[Method], results: Results) -> None:
    """Run what is not done; each case is made once for all methods."""
    for spec in cases:
        missing = [method for method in methods if not results.has(spec, method)]
        case = make(spec) if missing else None
        for method in missing:
            assert case is not None
            row = measure(method, case) | {"voxel_mm": coarser_voxel_mm(spec.pair, case)}
            results.add(spec, method, row)
            print(line_of(spec, method, row), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data/open"))
    parser.add_argument("--output", type=Path, required=True, help="JSON; the table goes beside it")
    parser.add_argument("--bundle", type=Path, help="another bundle than the packaged one")
    parser.add_argument("--refine-steps", type=int, help="instead of the bundle's; 0: none")
    parser.add_argument(
        "--transform", choices=("rigid", "affine", "deformable"), default="deformable"
    )
    parser.add_argument("--patients", choices=("evaluation", "train"), default="evaluation")
    parser.add_argument("--only", metavar="GROUP", help="groups whose name contains this")
    parser.add_argument("--severities", nargs="+", choices=SEVERITIES, default=SEVERITIES[:3])
    parser.add_argument("--seeds", type=int, default=1, help="draws of each pair and severity")
    parser.add_argument("--limit", type=int, help="the first N cases only")
    parser.add_argument("--baseline", action="store_true", help="also SimpleITK's MI")
    parser.add_argument(
        "--peers",
        nargs="+",
        metavar="NAME",
        choices=(*PEERS, "all"),
        default=(),
        help=f"also these engines (pip install -e '.[peers]'): {', '.join(PEERS)}; or all",
    )
    parser.add_argument(
        "--any-version", action="store_true", help="keep rows of other weights, code"
    )
    parser.add_argument("--denoise", action="store_true", help="with the bundle's denoising on")
    parser.add_argument("--plot", action="store_true", help="also a PNG beside the JSON")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Run the cases and write JSON, Markdown and, on request, the plot."""
    args = _arguments()
    torch.set_num_threads(args.threads)
    chosen = pairs(args.data, training=args.patients == "train")
    if args.only:
        chosen = [pair for pair in chosen if args.only.lower() in pair.group.lower()]
    if not chosen:
        raise SystemExit(f"--only {args.only}: no such group")
    methods = [ours(args.bundle, args.refine_steps, args.transform, denoise=args.denoise)]
    if args.baseline:
        methods.append(baseline())
    wanted = PEERS if "all" in args.peers else dict.fromkeys(args.peers)
    methods += [peer(name, args.threads) for name in wanted]
    results = Results(args.output, methods, any_version=args.any_version)
    if results.outdated:
        print(f"{results.outdated} cases in the file come from other weights or code: left out")
    run(list(specs(chosen, args.severities, args.seeds))[: args.limit], methods, results)
    results.save()
    text = markdown(results.rows)
    args.output.with_suffix(".md").write_text(text, encoding="utf-8")
    if args.plot and results.rows:
        plot(results.rows, args.output.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    main()
