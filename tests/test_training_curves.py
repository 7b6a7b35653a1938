"""The line about where trained weights come from, and their curves."""

import hashlib
import sys
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import training_curves

CARD = """# x
## Training
```
fusion-pipeline train --phase registration
```

| what | value |
|---|---|
| steps | 4 |
| SHA-256 of models/model.pt | `abc` |
| wall time in s | 600 |
| training cases | 2 |

| objective | value |
|---|---|
| steps | 6 |
"""


def run_folder(tmp_path, card=""):
    for version, lines in ((0, ["0,1,5.0,", "0,2,4.0,2.5"]), (10, ["1,2,3.9,", "1,3,3.0,1.5"])):
        folder = tmp_path / "csv" / f"version_{version}"
        folder.mkdir(parents=True)
        head = "epoch,step,train/loss,val/error_mm"
        (folder / "metrics.csv").write_text("\n".join([head, *lines, "1,"]))
    (tmp_path / "model.pt").write_bytes(b"weights")
    if card:
        (tmp_path / "bundle" / "docs").mkdir(parents=True)
        (tmp_path / "bundle" / "docs" / "README.md").write_text(card)
    return tmp_path


def test_a_later_start_continues_and_corrects_the_earlier_one(tmp_path):
    series = training_curves.logged(run_folder(tmp_path))
    assert series["train/loss"] == [(1, 5.0), (2, 3.9), (3, 3.0)]
    assert series["val/error_mm"] == [(2, 2.5), (3, 1.5)]


def test_the_line_of_a_training_that_ended(tmp_path):
    run = run_folder(tmp_path, CARD)
    row = training_curves.row_of(run, training_curves.logged(run), training_curves.card_of(run))
    assert row.splitlines()[2] == (
        "| 4 | 10 min | error_mm 2.5 → 1.5 | training cases: 2 "
        "| `fusion-pipeline train --phase registration` | `abc` |"
    )


def test_the_line_of_a_training_that_runs(tmp_path):
    run = run_folder(tmp_path)
    row = training_curves.row_of(run, training_curves.logged(run), {})
    digest = hashlib.sha256(b"weights").hexdigest()
    assert row.splitlines()[2] == f"| 4, not ended | – | error_mm 2.5 → 1.5 | – | – | `{digest}` |"


def test_the_curves_are_a_picture(tmp_path):
    run = run_folder(tmp_path)
    training_curves.plot(training_curves.logged(run), tmp_path / "curves.png", "run")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 500
