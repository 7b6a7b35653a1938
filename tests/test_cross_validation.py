"""Cross-validation: what each part is trained on, and how its results are pooled."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fusion_pipeline.cli.evaluate as evaluate_module
import fusion_pipeline.training.cross_validation as module
from fusion_pipeline.cli import main
from fusion_pipeline.data import CaseFiles, InputError, read_datalist
from fusion_pipeline.data.datalist import SeriesFiles
from fusion_pipeline.data.sources import Source
from fusion_pipeline.evaluation.rows import read_csv
from fusion_pipeline.evaluation.scores import Score
from fusion_pipeline.pipeline import bundle_for
from fusion_pipeline.synthesis import synthetic_patient
from fusion_pipeline.training.cross_validation import FoldTraining, entry_of, train_fold
from fusion_pipeline.training.folds import fold_numbers


def case(number, folder, patient=""):
    series = {
        "ct": SeriesFiles(Source(str(folder / f"{number}/ct.nii.gz"))),
        "mr": SeriesFiles(
            Source(str(folder / f"{number}/mr"), "1.2.3"),
            transform="rigid",
            label=Source(str(folder / f"{number}/mr_label.nii.gz")),
            initial_transform=Source(str(folder / f"{number}/mr.tfm")),
        ),
    }
    return CaseFiles(f"c{number}", "ct", series, number % 2, patient)


@pytest.fixture
def trainings(monkeypatch):
    """What was asked of each training, in place of hours."""
    asked = []

    def run_training(bundle, phase, overrides):
        asked.append((bundle, phase, dict(overrides)))
        (module.Path(overrides["output_dir"]) / "bundle").mkdir()

    monkeypatch.setattr(module, "run_training", run_training)
    return asked


def test_a_case_is_listed_as_it_was_read(tmp_path):
    given = case(1, tmp_path, "p")
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "cases.json"
    path.write_text(json.dumps({"training": [entry_of(given)]}))
    assert read_datalist(path, "training") == [given]


def test_the_part_that_is_left_out_is_in_no_file_of_its_training(trainings, tmp_path):
    cases = [case(n, tmp_path, f"p{n // 2}") for n in range(12)]
    held_out = []
    for number in range(3):
        training = FoldTraining(tmp_path / "b", "fusion", 7)
        bundle, outside = train_fold(cases, 3, number, training, tmp_path / "out")
        held_out += [one.id for one in outside]
        listed = json.loads((bundle.parent / "cases.json").read_text())
        trained = {entry["patient"] for entry in listed["training"]}
        assert listed["validation"] == []
        assert not trained & {one.patient for one in outside}
    assert sorted(held_out) == sorted(one.id for one in cases)
    assert [(phase, one["train#trainer#max_steps"]) for _, phase, one in trainings] == (
        [("fusion", 7)] * 3
    )


def test_a_part_that_is_done_is_not_trained_again_unless_something_changed(trainings, tmp_path):
    cases = [case(n, tmp_path) for n in range(4)]
    training = FoldTraining(tmp_path / "b")
    train_fold(cases, 2, 0, training, tmp_path / "out")
    train_fold(cases, 2, 0, training, tmp_path / "out")
    assert len(trainings) == 1
    (tmp_path / "out" / "folds" / "0" / "bundle").rmdir()
    train_fold(cases, 2, 0, replace(training, steps=9), tmp_path / "out")
    assert len(trainings) == 2


def test_each_case_is_evaluated_by_the_part_that_left_it_out(trainings, tmp_path, monkeypatch):
    from fusion_pipeline import pipeline

    cases = [case(n, tmp_path) for n in range(4)]
    (tmp_path / "cases.json").write_text(json.dumps({"testing": [entry_of(c) for c in cases]}))
    ran = []

    def runner(args, some, dims, method, folder):
        ran.append((method.name, str(args.bundle), sorted(one.id for one in some)))

    def run_study(cases, methods, evaluators_of, output, diagnose):
        for method in methods:
            list(evaluators_of(method, output / method.name))
        return 0

    monkeypatch.setattr(evaluate_module, "_runner", runner)
    monkeypatch.setattr(pipeline, "run_study", run_study)
    monkeypatch.setattr(pipeline, "spatial_dims_of_cases", lambda cases: 2)
    command = ["evaluate", "--datalist", str(tmp_path / "cases.json"), "--folds", "2"]
    command += ["--output", str(tmp_path / "out"), "--against", "traditional"]
    assert main([*command, "--fold", "1"]) == 0  # one machine's share
    assert (len(trainings), ran) == (1, [])
    assert main(command) == 0
    assert len(trainings) == 2
    where = fold_numbers(cases, 2)
    for number, (method, bundle, ids) in enumerate(ran[:2]):
        assert method == "ours"
        assert bundle.endswith(f"folds/{number}/bundle")
        assert ids == sorted(name for name, fold in where.items() if fold == number)
    # nothing is trained of the traditional chain: it runs once, on all cases
    assert ran[2] == ("traditional", "None", ["c0", "c1", "c2", "c3"])


def test_a_part_needs_a_number_of_parts(tmp_path, capsys):
    command = ["evaluate", "--datalist", "x.json", "--output", str(tmp_path), "--fold", "0"]
    assert main(command) == 2
    assert "expected --folds K beside it" in capsys.readouterr().err


def test_features_of_several_networks_are_no_input_of_one_classifier(tmp_path, capsys):
    command = ["evaluate", "--datalist", "x.json", "--output", str(tmp_path), "--folds", "2"]
    assert main([*command, "--diagnosis", "2"]) == 2
    assert "expected it without --folds" in capsys.readouterr().err


def test_images_in_memory_cannot_be_listed(tmp_path):
    from fusion_pipeline.data.sources import InMemory

    given = case(0, tmp_path)
    held = replace(given.series["ct"], image=object.__new__(InMemory))
    with pytest.raises(InputError, match="expected files, got an image in memory"):
        entry_of(replace(given, series={**given.series, "ct": held}))


def _run(folder, *arguments):
    """The command in a process of its own: its exit code and what it printed."""
    script = Path(__file__).with_name("cross_validation_run.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_parts_are_trained_evaluated_and_pooled_and_go_on_after_a_kill(tmp_path):
    """Killed at step 15 of 20 of the second part, which goes on after its last whole epoch."""
    patients = [synthetic_patient(seed, spatial_dims=2, size="small") for seed in range(4)]
    entries = [
        entry | {"mr_transform": "none", "patient": f"p{seed}"}
        for seed, one in enumerate(patients)
        for entry in json.loads(one.save(tmp_path / "patients").read_text())["testing"]
    ]
    (tmp_path / "patients" / "cases.json").write_text(json.dumps({"testing": entries}))

    code, said = _run(tmp_path, "--kill-in-part", "1")
    assert code == -signal.SIGKILL, said
    folds = tmp_path / "study" / "folds"
    assert (folds / "0" / "trained.txt").is_file()
    assert not (folds / "1" / "trained.txt").exists()
    assert not (tmp_path / "study" / "scores.csv").exists()

    code, said = _run(tmp_path)
    assert code == 0, said
    assert "part 1 of 2: trained before" in said
    steps = [line.split() for line in (tmp_path / "steps.txt").read_text().splitlines()]
    assert [int(step) for part, step in steps if part == "0"] == list(range(1, 21))
    second = [int(step) for part, step in steps if part == "1"]
    assert second[:15] == list(range(1, 16))
    assert 1 < second[15] <= 15
    assert second[15:] == list(range(second[15], 21))
    states = [_weights(folds / str(number) / "bundle") for number in (0, 1)]
    shipped = _weights(bundle_for(2))
    assert all(any(not torch.equal(one[k], shipped[k]) for k in shipped) for one in states)
    assert any(not torch.equal(states[0][k], states[1][k]) for k in shipped)
    # pooled: each patient once, by the part that left it out
    scores = read_csv(tmp_path / "study" / "scores.csv", Score)
    errors = [s for s in scores if (s.name, s.method) == ("tre_mm", "ours")]
    images = {s.image for s in errors}
    once = [(f"p{number}", image) for number in range(4) for image in sorted(images)]
    assert sorted((s.patient, s.image) for s in errors) == once
    summary = json.loads((tmp_path / "study" / "summary.json").read_text())
    assert len(summary["weights"]) == 2
    pooled = [r for r in summary["summary"] if (r["name"], r["method"]) == ("tre_mm", "ours")]
    assert [(row["patients"], row["missing"]) for row in pooled] == [(4, 0)] * len(images)
    assert all(row["low"] < row["mean"] < row["high"] for row in pooled)


def _weights(bundle):
    return torch.load(bundle / "models" / "model.pt", weights_only=True)
