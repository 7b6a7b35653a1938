"""The command line: what is asked for, what is refused, and how it leaves."""

import logging
import subprocess
import sys

import pytest
from pipeline_cases import ShiftRegister, small_network, write_case

import fusion_pipeline.pipeline.pipeline as pipeline_module
from fusion_pipeline.cli import main
from fusion_pipeline.pipeline import FusionPipeline


@pytest.fixture(autouse=True)
def clean_logging():
    """The command sets up handlers for its process; give them back."""
    root, own = logging.getLogger(), logging.getLogger("fusion_pipeline")
    before = list(root.handlers)
    yield
    root.handlers[:] = before
    own.handlers.clear()
    own.propagate = True
    own.setLevel(logging.NOTSET)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("patient")
    return {key: str(path) for key, path in write_case(folder, ("ct", "mr", "pet")).items()}


@pytest.fixture
def made(monkeypatch):
    """A small pipeline in place of the bundle's; what was asked for, and the cases that ran."""
    seen = {"cases": []}

    def from_bundle(path=None, *, device=None, refine_steps=None, same_person=None):
        seen.update(path=path, device=device, refine_steps=refine_steps, same_person=same_person)
        return FusionPipeline(small_network(), refine_steps=0)

    def run(self, case, output):
        seen["cases"].append(case)
        return real_run(self, case, output)

    real_run = FusionPipeline.run
    monkeypatch.setattr(pipeline_module, "Register", ShiftRegister)
    monkeypatch.setattr(FusionPipeline, "from_bundle", staticmethod(from_bundle))
    monkeypatch.setattr(FusionPipeline, "run", run)
    return seen


@pytest.fixture
def no_run(monkeypatch, made):
    """Nothing is computed: the arguments alone are looked at."""
    folder_of = {}

    def run(self, case, output):
        made["cases"].append(case)
        folder = output / case.id
        folder.mkdir(parents=True)
        (folder / "report.json").write_text(
            '{"modalities": [], "registration": {}, "warnings": [], "timings": {}, '
            '"peak_memory_mb": 1.0}'
        )
        return folder_of.setdefault(case.id, folder)

    monkeypatch.setattr(FusionPipeline, "run", run)
    return made


def run(*arguments, output):
    return main(["run", *arguments, "--output", str(output)])


def test_two_files_become_a_folder(made, paths, tmp_path, capsys):
    assert run("--ct", paths["ct"], "--mr", paths["mr"], output=tmp_path) == 0
    out, err = capsys.readouterr()
    assert (tmp_path / "case" / "mr_registered.nii.gz").is_file()
    assert "[1/1] case: ok" in out
    assert str(tmp_path / "case" / "report.html") in out
    assert err == ""


def test_the_options_reach_the_bundle(no_run, paths, tmp_path):
    options = ["--bundle", "mine", "--device", "cpu", "--refine-steps", "3", "--id", "p7"]
    assert run("--ct", paths["ct"], "--mr", paths["mr"], *options, output=tmp_path) == 0
    assert (str(no_run["path"]), no_run["device"], no_run["refine_steps"]) == ("mine", "cpu", 3)
    assert no_run["cases"][0].id == "p7"
    assert no_run["same_person"] is None


def test_an_atlas_is_of_another_person(no_run, paths, tmp_path):
    files = ["--ct", paths["ct"], "--mr", paths["mr"]]
    assert run(*files, "--different-people", output=tmp_path) == 0
    assert no_run["same_person"] is False


@pytest.mark.parametrize("dash", ["-", "_"])
def test_keys_with_a_suffix_in_the_order_given(no_run, paths, tmp_path, dash):
    arguments = [f"--mr{dash}t2", paths["mr"], f"--mr{dash}t1", paths["mr"], "--pet", paths["pet"]]
    assert run(*arguments, "--reference", f"mr{dash}t1", output=tmp_path) == 0
    case = no_run["cases"][0]
    assert case.reference == "mr_t1"
    assert list(case.images) == ["mr_t1", "mr_t2", "pet"]


def test_transforms_for_all_and_for_one(no_run, paths, tmp_path):
    images = ["--ct", paths["ct"], "--mr-t1", paths["mr"], "--pet", paths["pet"]]
    options = ["--transform", "rigid", "--transform-pet", "none", f"--mask-mr-t1={paths['mr']}"]
    assert run(*images, *options, output=tmp_path) == 0
    case = no_run["cases"][0]
    assert case.transforms == {"mr_t1": "rigid", "pet": "none"}
    assert case.masks == {"mr_t1": paths["mr"]}


def test_a_datalist_goes_on_past_a_bad_case_and_leaves_with_1(made, paths, tmp_path, capsys):
    datalist = tmp_path / "cases.json"
    good = f'{{"id": "good", "ct": "{paths["ct"]}", "mr": "{paths["mr"]}"}}'
    bad = f'{{"id": "bad", "ct": "lost.nii.gz", "mr": "{paths["mr"]}"}}'
    datalist.write_text(f'{{"testing": [{bad}, {good}]}}')
    assert run("--datalist", str(datalist), output=tmp_path / "out") == 1
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == 1
    assert "case 'bad'" in err
    assert "lost.nii.gz" in err
    assert "[2/2] good: ok" in out
    assert "case  status" in out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["good", "summary.csv"]
    assert run("--datalist", str(datalist), "--resume", output=tmp_path / "out") == 1
    assert "good: skipped" in capsys.readouterr().out


def test_one_bad_case_leaves_with_2_and_nothing(made, paths, tmp_path, capsys):
    assert run("--ct", "lost.nii", "--mr", paths["mr"], output=tmp_path / "out") == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_unexpected_error_leaves_with_1_and_shows_its_traceback_when_asked(
    no_run, paths, tmp_path, capsys, monkeypatch
):
    def fail(self, case, output):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(FusionPipeline, "run", fail)
    arguments = ["--ct", paths["ct"], "--mr", paths["mr"]]
    assert run(*arguments, output=tmp_path) == 1
    assert capsys.readouterr().err == "case: unexpected ZeroDivisionError: oh\n"
    assert run(*arguments, "--debug", output=tmp_path) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "got neither"),
        (["--datalist", "a.json", "--ct", "a.nii"], "got both"),
        (["--datalist", "a.json", "--transform", "none"], "got both"),
        (["--datalist", "a.json"], "no such file"),
        (["--ct", "a.nii"], "two or more images"),
        (["--ct", "a.nii", "--ct", "b.nii"], "--ct is given twice"),
        (["--mr-t1", "a.nii", "--mr_t1", "b.nii"], "--mr_t1 is given twice"),
        (["--xray", "a.nii"], "unrecognized arguments: --xray"),
        (["--ct-label", "a.nii"], "unrecognized arguments: --ct-label"),
        (["--ct", "a.nii", "--mr", "b.nii", "--transform-mr", "bend"], "invalid choice: 'bend'"),
        (["--ct", "a.nii", "--mr", "b.nii", "--transform-pet", "none"], "_transform without pet"),
        (["--ct", "a.nii", "--mr", "b.nii", "--reference", "pet"], "a reference of ct, mr"),
        (["--ct", "a.nii", "--mr", "b.nii", "--id", "../x"], "'../x'"),
        (["--ct", "a.nii", "--mr", "b.nii", "--refine-steps", "-1"], "expected"),
        (["--ct", "a.nii", "--mr", "b.nii", "--refine-steps", "many"], "whole number from 0 up"),
        (["--ct", "a.png", "--mr", "b.nii"], "all images PNG"),
    ],
)
def test_bad_arguments_leave_with_2_and_one_line(no_run, tmp_path, capsys, arguments, message):
    assert run(*arguments, output=tmp_path / "out") == 2
    out, err = capsys.readouterr()
    assert message in err
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err
    assert out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [[], ["fly"], ["run", "--ct", "a", "--mr", "b"]])
def test_a_missing_or_unknown_command_or_output(arguments, capsys):
    assert main(arguments) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_output_that_cannot_be_written(no_run, paths, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run("--ct", paths["ct"], "--mr", paths["mr"], output=tmp_path / "file") == 2
    assert "output folder" in capsys.readouterr().err


def test_help_names_both_commands(capsys):
    assert main(["--help"]) == 0
    assert "demo" in capsys.readouterr().out
    assert main(["run", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--refine-steps" in out
    assert "--mask-KEY" in "".join(out.split())  # lines may be broken at a hyphen


def test_demo_says_what_is_gained(monkeypatch, made, tmp_path, capsys):
    import fusion_pipeline.pipeline as pipeline

    scores = {"mr": {"tre_mm_before": 10.0, "tre_mm_after": 2.0}}
    monkeypatch.setattr(pipeline, "run_demo", lambda _, output: (scores, output / "demo"))
    assert main(["demo", "--output", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "mr: 10.00 mm before, 2.00 mm after, 80 % of the error gone" in out
    assert str(tmp_path / "demo" / "report.html") in out


def test_demo_refuses_in_one_line(made, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["demo", "--output", str(tmp_path / "file")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_interruption_leaves_with_130(no_run, paths, tmp_path, capsys, monkeypatch):
    def stop(self, case, output):
        raise KeyboardInterrupt

    monkeypatch.setattr(FusionPipeline, "run", stop)
    assert run("--ct", paths["ct"], "--mr", paths["mr"], output=tmp_path) == 130
    assert "--resume goes on" in capsys.readouterr().err


def test_demo_names_an_unexpected_error_in_one_line(monkeypatch, made, tmp_path, capsys):
    import fusion_pipeline.pipeline as pipeline

    def fail(*_):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(pipeline, "run_demo", fail)
    assert main(["demo", "--output", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "unexpected ZeroDivisionError: oh\n"


@pytest.mark.slow
def test_the_command_itself_keeps_the_terminal_clean(paths, tmp_path):
    command = [sys.executable, "-m", "fusion_pipeline.cli", "run", "--transform", "none"]
    images = ["--ct", paths["ct"], "--mr", paths["mr"], "--output", str(tmp_path)]
    done = subprocess.run([*command, *images], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 2
