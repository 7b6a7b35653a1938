"""The curves of a training and a line about where its weights come from, for docs/history.

    python benchmarks/training_curves.py runs/2d/registration --out out/registration_2d.png

Reads ``csv/*/metrics.csv`` of all starts and, where the training has ended, the model card of the
bundle that it wrote. Beside the picture it writes a Markdown file of the same name: network, steps,
wall time, validation, data, command and the digest of the weights.
"""

import argparse
import csv
import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt

_BINS = 60  # means of so many parts of the training
_COLUMNS = 3
_DATA = ("training cases", "painted samples in an epoch", "windows of a case in an epoch")
Series = dict[str, list[tuple[int, float]]]


def logged(run: Path) -> Series:
    """Each value by its name: steps and values of all starts, in order.

    Steps that a later start made again count as it made them.
    """
    series: dict[str, dict[int, float]] = defaultdict(dict)
    for path in sorted(run.glob("csv/*/metrics.csv"), key=_start):
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if not (row["step"] or "").isdecimal():  # the line that is being written
                    continue
                for name, text in row.items():
                    if name.startswith(("train/", "val/")) and text and not name.endswith("_epoch"):
                        series[name][int(row["step"])] = float(text)
    if not series:
        raise SystemExit(f"{run}: expected csv/*/metrics.csv with values, got none; name a run")
    return {name: sorted(values.items()) for name, values in series.items()}


def _start(path: Path) -> int:
    """Which start of the training wrote a file."""
    return int(path.parent.name.removeprefix("version_") or 0)


def card_of(run: Path) -> dict[str, str]:
    """What the model card says: the cells of its tables, and the command."""
    path = run / "bundle" / "docs" / "README.md"
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8")
    # the first table is of the run; an objective's setting may have the name of one of its rows
    rows = re.findall(r"^\| ([^|]+) \| ([^|]*) \|$", text, flags=re.MULTILINE)
    cells = dict(reversed(rows))
    command = re.search(r"## Training\n```\n(.*?)\n```", text, flags=re.DOTALL)
    return cells | ({"command": command.group(1)} if command else {})


def row_of(run: Path, series: Series, card: Mapping[str, str]) -> str:
    """One line of a table with its head; a dash where the training has not ended."""
    steps = card.get("steps") or f"{1 + max(s for x in series.values() for s, _ in x)}, not ended"
    digest = card.get("SHA-256 of models/model.pt", "")
    if not digest and (run / "model.pt").is_file():
        digest = f"`{hashlib.sha256((run / 'model.pt').read_bytes()).hexdigest()}`"
    minutes = f"{float(card['wall time in s']) / 60:.0f} min" if "wall time in s" in card else "–"
    scores = [
        f"{name.removeprefix('val/')} {values[0][1]:.3g} → {values[-1][1]:.3g}"
        for name, values in sorted(series.items())
        if name.startswith("val/") and f"train/{name.removeprefix('val/')}" not in series
    ]
    data = "; ".join(f"{name}: {card[name]}" for name in _DATA if name in card)
    command = f"`{card['command']}`" if "command" in card else "–"
    head = "| steps | wall time | validation, first → last | data | command | SHA-256 of model.pt |"
    cells = (steps, minutes, "; ".join(scores) or "–", data or "–", command, digest or "–")
    return f"{head}\n|---|---|---|---|---|---|\n| {' | '.join(cells)} |\n"


def _means(points: Sequence[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values, averaged over neighbours where there are many."""
    array = np.asarray(points, dtype=float)
    parts = np.array_split(array, min(_BINS, len(array)))
    return np.asarray([part.mean(0) for part in parts]).T


def plot(series: Series, path: Path, title: str) -> None:
    """The loss and its parts; each validation score beside what it was without the network."""
    losses = sorted(name for name in series if name.startswith("train/"))
    validated = sorted(name for name in series if name.startswith("val/"))
    scores = [n for n in validated if n != "val/loss" and f"train/{n[4:]}" not in series]
    scores = [name for name in scores if not name.endswith("_before")]
    panels = ["loss, mean of neighbouring steps", *scores]
    rows = math.ceil(len(panels) / _COLUMNS)
    figure, axes = plt.subplots(
        rows, min(_COLUMNS, len(panels)), figsize=(11, 3.2 * rows), squeeze=False, dpi=90
    )
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, panel in zip(axes.flat, panels, strict=False):
        axis.set_xlabel("step")
        axis.set_title(panel.removeprefix("val/"), fontsize=10)
        names = [*losses, "val/loss"] if panel.startswith("loss") else [panel, f"{panel}_before"]
        for name in (one for one in names if one in series):
            many = name.startswith("train/")
            x, y = _means(series[name]) if many else np.asarray(series[name], dtype=float).T
            style = {"linewidth": 1.0} if many else {"marker": ".", "linestyle": "-"}
            axis.plot(x, y, label=name.partition("/")[2] if many else name, **style)
        axis.legend(fontsize=7)
        axis.grid(alpha=0.3)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    """Read the arguments, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the output folder of a training")
    parser.add_argument("--out", type=Path, required=True, help="PNG; its .md stands beside it")
    options = parser.parse_args()
    series, card = logged(options.run), card_of(options.run)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    plot(series, options.out, f"{card.get('phase', '')} {options.run.name}".strip())
    row = row_of(options.run, series, card)
    options.out.with_suffix(".md").write_text(row, encoding="utf-8")
    print(row)


if __name__ == "__main__":
    main()
