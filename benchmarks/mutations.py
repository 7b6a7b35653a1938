"""Break decisions of the register stage one at a time, and see whether a test fails.

    python benchmarks/mutations.py

Works in a temporary copy; prints a line per mutation and ends with 1 where one was missed.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = ("tests/test_register_decisions.py",)
# name: file of fusion_pipeline/register, text, text in its place
MUTATIONS = {
    "doubtful at 40 mm": ("settings", "doubtful_mm: float = 4.0", "doubtful_mm: float = 40.0"),
    "no least overlap": ("settings", "least_overlap: float = 0.1", "least_overlap: float = 0.0"),
    "one similarity falls": ("doubt", 'before["nmi"] and after', 'before["nmi"] or after'),
    "information ignored": ("criteria", "return closer and", "return closer or"),
    "pose gain 0": ("settings", "pose_gain_nats: float = 0.03", "pose_gain_nats: float = 0.0"),
    "no distance penalty": ("chosen_pose", " + pose.distance_penalty", ""),
    "small moves to 9 mm": (
        "settings",
        "small_move_mm: float = 2.0",
        "small_move_mm: float = 9.5",
    ),
    "any stretch": ("chosen_pose", "pose.rigid_score * stretch_gain", "pose.rigid_score"),
    "undisputed at once": ("settings", "undisputed: float = 2.2", "undisputed: float = 1.0"),
    "undisputed without nats": (
        "settings",
        "undisputed_nats: float = 0.6",
        "undisputed_nats: float = 0.0",
    ),
    "clear up to 4 mm": ("settings", "clear_mm: float = 1.4", "clear_mm: float = 4.0"),
    "any fall": (
        "settings",
        "estimate_falls: float = 2.0",
        "estimate_falls: float = 1.0",
    ),
    "nearness turned round": ("initial_alignment", "2 - moved_mm", "moved_mm - 2"),
    "initial alignment loses": ("initial_alignment", "return gain < (", "return gain > ("),
    "less similar by both": ("stage", 'before["nmi"] or after', 'before["nmi"] and after'),
}


def main() -> int:
    """Try all; the number of the missed ones decides the exit code."""
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        ignore = shutil.ignore_patterns(".git", ".venv", "__pycache__", "*_cache")
        shutil.copytree(ROOT, copy, symlinks=True, ignore=ignore)
        if not _passes(copy):
            raise SystemExit("the tests fail without a mutation")
        for name, (module, text, other) in MUTATIONS.items():
            path = copy / "fusion_pipeline" / "register" / f"{module}.py"
            source = path.read_text(encoding="utf-8")
            if source.count(text) != 1:
                raise SystemExit(f"{name}: expected {text!r} once in {path.name}")
            path.write_text(source.replace(text, other), encoding="utf-8")
            caught = not _passes(copy)
            path.write_text(source, encoding="utf-8")
            missed += not caught
            print(f"{name}: {'caught' if caught else 'MISSED'}", flush=True)
    print(f"{len(MUTATIONS) - missed} of {len(MUTATIONS)} caught")
    return int(missed > 0)


def _passes(folder: Path) -> bool:
    """Whether the tests pass in a copy."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *TESTS]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
