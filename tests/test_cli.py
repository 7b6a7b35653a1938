"""The command line: what is asked for, what is refused, and how it leaves."""

import json
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from pipeline_cases import (
    ShiftRegister,
    brief_report,  # noqa: F401 - a fixture
    small_evaluator,
    write_case,
)

import fusion_pipeline.pipeline as pipeline_package
import fusion_pipeline.pipeline.inferer as inferer_module
from fusion_pipeline.cli import apply, demo, evaluate, export, info, main, train
from fusion_pipeline.cli import run as run_module
from fusion_pipeline.cli.arguments import Parser
from fusion_pipeline.data import Source, read_datalist, read_image
from fusion_pipeline.modalities import KEY_WORDS
from fusion_pipeline.pipeline import SyntheticCases, bundle_for
from fusion_pipeline.synthesis import synthetic_patient


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


@pytest.fixture(scope="module")
def images_of(paths, tmp_path_factory):
    """By their dimensions the CT and MR of a case; of pictures, small ones."""
    folder = tmp_path_factory.mktemp("pictures")
    pictures = {key: str(folder / f"{key}.png") for key in ("ct", "mr")}
    for number, path in enumerate(pictures.values()):
        grey = np.random.default_rng(number).integers(0, 255, (24, 20), dtype=np.uint8)
        PIL.Image.fromarray(grey).save(path)
    return {2: pictures, 3: {key: paths[key] for key in ("ct", "mr")}}


@pytest.fixture
def trained(monkeypatch):
    """What a training was asked for; nothing is trained."""
    asked = {}

    def run_training(bundle, phase, overrides):
        given = {key: value for key, value in overrides.items() if value is not None}
        asked.update(bundle=bundle, phase=phase, overrides=given)

    monkeypatch.setattr(pipeline_package, "run_training", run_training)
    return asked


@pytest.fixture
def made(monkeypatch):
    """An evaluator with small networks in place of the bundle's; what was asked for."""
    seen = {}

    def from_config(path, overrides, name):
        seen.update(overrides, path=path)
        cases = overrides.get("cases") or SyntheticCases(overrides["output_dir"])
        switches = {k: overrides.get(k, False) for k in ("resume", "fail_on_check")}
        return {name: small_evaluator(cases, overrides["output_dir"], **switches)}

    monkeypatch.setattr(inferer_module, "Register", ShiftRegister)
    monkeypatch.setattr(pipeline_package, "from_config", from_config)
    return seen


class Recorded:
    """An evaluator that does nothing."""

    exit_code = 0


@pytest.fixture
def no_run(monkeypatch, made):
    """Nothing is computed: the arguments alone are looked at."""
    evaluator = Recorded()
    evaluator.run = lambda: None

    def from_config(path, overrides, name):
        made.update(overrides, path=path)
        return {name: evaluator}

    monkeypatch.setattr(pipeline_package, "from_config", from_config)
    made["evaluator"] = evaluator
    return made


def run(*arguments, output):
    return main(["run", "--quiet", *arguments, "--output", str(output)])


PROGRESS = re.compile(r"^ +\d+ s  .*\n", re.MULTILINE)


def refusals(err):
    """What stderr holds beside where the run is."""
    return PROGRESS.sub("", err).splitlines()


def test_two_files_become_a_folder(made, paths, tmp_path, capsys):
    assert run("--ct", paths["ct"], "--mr", paths["mr"], output=tmp_path) == 0
    out, err = capsys.readouterr()
    assert (tmp_path / "case" / "mr_registered.nii.gz").is_file()
    assert "[1/1] case: ok" in out
    assert str(tmp_path / "case" / "report.html") in out
    assert err == ""


@pytest.mark.usefixtures("brief_report")
class TestADoubtfulRegistration:
    """`ShiftRegister` does not trust an affine."""

    LINE = "CHECK case: mr: an affine is not trusted here"

    @pytest.mark.parametrize(("options", "code"), [((), 0), (("--fail-on-check",), 3)])
    def test_it_is_said_and_fails_on_request(self, made, paths, tmp_path, capsys, options, code):
        images = ["--ct", paths["ct"], "--mr", paths["mr"], "--pet", paths["pet"]]
        images += ["--transform-mr", "affine"]
        assert run(*images, *options, output=tmp_path) == code
        out, err = capsys.readouterr()
        assert [line for line in out.splitlines() if "CHECK" in line] == [self.LINE]
        assert str(tmp_path / "case" / "report.html") in out
        assert err == ""
        # a case that is skipped is as doubtful as before
        assert run(*images, *options, "--resume", output=tmp_path) == code
        assert self.LINE in capsys.readouterr().out

    def test_a_result_without_doubt_has_no_check(self, made, paths, tmp_path, capsys):
        images = ["--ct", paths["ct"], "--mr", paths["mr"]]
        assert run(*images, "--fail-on-check", output=tmp_path) == 0
        assert "CHECK" not in capsys.readouterr().out


def test_the_options_reach_the_bundle(no_run, paths, tmp_path):
    options = ["--bundle", "mine", "--device", "cpu", "--refine-steps", "3", "--id", "p7"]
    assert run("--ct", paths["ct"], "--mr", paths["mr"], *options, output=tmp_path) == 0
    assert (str(no_run["path"]), no_run["device"], no_run["refine_steps"]) == ("mine", "cpu", 3)
    assert no_run["cases"][0].id == "p7"
    assert no_run["same_person"] is None
    assert no_run["output_dir"] == str(tmp_path)


def test_other_weights_reach_the_bundle(no_run, paths, tmp_path):
    files = ["--ct", paths["ct"], "--mr", paths["mr"]]
    assert run(*files, output=tmp_path) == 0
    assert no_run["ckpt_path"] is None
    assert run(*files, "--weights", "last.ckpt", output=tmp_path) == 0
    assert no_run["ckpt_path"] == "last.ckpt"


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
    wishes = {key: series.transform for key, series in case.series.items() if key != "ct"}
    assert wishes == {"mr_t1": "rigid", "pet": "none"}
    masks = {key: series.mask for key, series in case.series.items()}
    assert masks == {"ct": None, "mr_t1": Source(paths["mr"]), "pet": None}


@pytest.mark.usefixtures("brief_report")
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
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["good", "summary.csv", "summary.html"]
    page = (tmp_path / "out" / "summary.html").read_text("utf-8")
    assert 'href="good/report.html"' in page
    assert page.index("lost.nii.gz") < page.index(">good</a>")
    assert run("--datalist", str(datalist), "--resume", output=tmp_path / "out") == 1
    assert "good: skipped" in capsys.readouterr().out


def test_one_bad_case_leaves_with_2_and_nothing(made, paths, tmp_path, capsys):
    assert run("--ct", "lost.nii", "--mr", paths["mr"], output=tmp_path / "out") == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_unexpected_error_leaves_with_1_and_shows_its_traceback_when_asked(
    made, paths, tmp_path, capsys, monkeypatch
):
    def fail(self, *_):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(ShiftRegister, "__init__", fail)
    arguments = ["--ct", paths["ct"], "--mr", paths["mr"]]
    monkeypatch.setattr(inferer_module.FusionInferer, "register", fail)
    assert run(*arguments, output=tmp_path) == 1
    assert capsys.readouterr().err == "case: unexpected ZeroDivisionError: oh\n"
    assert run(*arguments, "--debug", output=tmp_path) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "got neither"),
        (["--datalist", "a.json", "--ct", "a.nii"], "got both"),
        (["--datalist", "a.json", "--transform-pet", "none"], "only --transform goes with a"),
        (["--ct", "a.nii", "--us", "b.nii"], "--us: expected CT, MR, PET or SPECT, got ultrasound"),
        (["--ct", "a.nii", "--rtstruct-b=c.dcm"], "bring contours over with `fusion-pipeline appl"),
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


class TestTrain:
    def test_without_a_datalist_the_3d_bundle_trains_end_to_end(self, trained, tmp_path):
        assert main(["train", "--output", str(tmp_path)]) == 0
        assert trained == {
            "bundle": bundle_for(3),
            "phase": "all",
            "overrides": {"output_dir": str(tmp_path)},
        }

    def test_the_options_become_ids_of_the_config(self, trained, tmp_path):
        options = ["--phase", "fusion", "--bundle", "mine", "--device", "cpu", "--devices", "2"]
        trainer = ["--strategy", "ddp", "--precision", "bf16-mixed", "--max-steps", "5"]
        folds = ["--folds", "5", "--fold", "2", "--no-resume"]
        rate = ["--override", "module#learning_rate=1e-3", "--override", "pretrained=false"]
        command = ["train", "--output", str(tmp_path), *options, *trainer, *folds, *rate]
        assert main(command) == 0
        assert (trained["bundle"], trained["phase"]) == (Path("mine"), "fusion")
        assert trained["overrides"] == {
            "output_dir": str(tmp_path),
            "device": "cpu",
            "devices": 2,
            "run#0#resume": False,
            "train#trainer#strategy": "ddp",
            "train#trainer#precision": "bf16-mixed",
            "train#trainer#max_steps": 5,
            "data#folds": 5,
            "data#fold": 2,
            "module#learning_rate": 1e-3,
            "pretrained": "false",
        }

    @pytest.mark.parametrize(
        ("given", "meant"),
        [("0,1", (0, 1)), ("auto", "auto"), ("[1, 2]", [1, 2]), ("None", None), ("a=b", "a=b")],
    )
    def test_a_value_is_read_as_monai_reads_it(self, trained, tmp_path, given, meant):
        main(["train", "--output", str(tmp_path), "--override", f"data#shape={given}"])
        assert trained["overrides"].get("data#shape") == meant

    @pytest.mark.parametrize("spatial_dims", [2, 3])
    def test_the_datalist_chooses_the_bundle(self, trained, images_of, tmp_path, spatial_dims):
        name = "lost.png" if spatial_dims == 2 else "lost.nii"
        lost = {"id": "lost", "ct": name, "mr": name}
        datalist = tmp_path / "cases.json"
        good = {"id": "good", **images_of[spatial_dims]}
        datalist.write_text(json.dumps({"training": [lost, good]}))
        assert main(["train", "--datalist", str(datalist), "--output", str(tmp_path / "o")]) == 0
        assert trained["bundle"] == bundle_for(spatial_dims)
        assert trained["overrides"]["datalist"] == str(datalist)

    def test_the_kind_of_most_cases_chooses_the_bundle(self, trained, images_of, tmp_path):
        entries = [{"id": name, **images_of[d]} for name, d in (("a", 2), ("b", 3), ("c", 3))]
        datalist = tmp_path / "mixed.json"
        datalist.write_text(json.dumps({"training": entries}))
        assert main(["train", "--datalist", str(datalist), "--output", str(tmp_path / "o")]) == 0
        assert trained["bundle"] == bundle_for(3)

    def test_the_bundle_can_be_chosen_by_hand(self, trained, tmp_path):
        assert main(["train", "--spatial-dims", "2", "--output", str(tmp_path)]) == 0
        assert trained["bundle"] == bundle_for(2)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--override", "steps"], "expected ID=VALUE, got 'steps'"),
            (["--phase", "warp"], "invalid choice: 'warp'"),
            (["--max-steps", "-1"], "expected"),
            (["--bundle", "nowhere"], "nowhere: expected a bundle with configs/train.json"),
            (["--override", "module#rate=1"], "unknown override: module#rate; module has"),
            (["--override", "pretrained=no"], "expected pretrained true or false, got 'no'"),
        ],
    )
    def test_bad_arguments_leave_with_2_and_one_line(self, tmp_path, capsys, arguments, message):
        assert main(["train", "--output", str(tmp_path / "out"), *arguments]) == 2
        out, err = capsys.readouterr()
        assert message in err
        assert len(refusals(err)) == 1
        assert out == ""

    def test_a_phase_that_the_bundle_has_no_config_for(self, tmp_path, capsys):
        bundle = shutil.copytree(bundle_for(2), tmp_path / "bundle")
        (bundle / "configs" / "train_fusion.json").unlink(missing_ok=True)
        command = ["train", "--phase", "fusion", "--bundle", str(bundle)]
        assert main([*command, "--output", str(tmp_path / "out")]) == 2
        assert "a bundle with configs/train_fusion.json" in capsys.readouterr().err

    def test_an_interruption_says_how_to_go_on(self, monkeypatch, tmp_path, capsys):
        def stop(*_):
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt:
                sys.exit(1)  # as Lightning does

        monkeypatch.setattr(pipeline_package, "run_training", stop)
        assert main(["train", "--output", str(tmp_path)]) == 130
        assert "goes on from its last checkpoint" in capsys.readouterr().err


def test_a_datalist_takes_the_transform_where_an_entry_has_none(no_run, tmp_path):
    entries = [
        {"id": "a", "ct": "ct.nii", "mr": "mr.nii"},
        {"id": "b", "ct": "ct.nii", "mr": "mr.nii", "pet": "pet.nii", "pet_transform": "none"},
    ]
    (tmp_path / "cases.json").write_text(json.dumps({"testing": entries}))
    options = ["--datalist", str(tmp_path / "cases.json"), "--transform", "rigid"]
    assert run(*options, output=tmp_path / "out") == 0
    wishes = [{k: s.transform for k, s in case.series.items()} for case in no_run["cases"]]
    moving = [{k: w[k] for k in w if k != "ct"} for w in wishes]
    assert moving == [{"mr": "rigid"}, {"mr": "rigid", "pet": "none"}]


def test_a_cone_beam_ct_is_a_ct_and_stays_behind_one(no_run, paths, tmp_path):
    assert run("--cbct", paths["ct"], "--ct", paths["ct"], output=tmp_path) == 0
    (case,) = no_run["cases"]
    assert case.reference == "ct"
    image, _ = read_image(paths["ct"], "cbct")
    assert (image.modality, image.units) == ("ct", "HU")


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["e"], {"evaluate", "export"}),
        (["inf"], {"info"}),
        (["run", "--refine"], {"--refine-steps"}),
        (["run", "--transform", "ri"], {"rigid"}),
    ],
)
def test_the_shell_completes_commands_options_and_values(capsys, words, offered):
    assert main(["--print-completion", "bash"]) == 0
    script = capsys.readouterr().out
    shell = shutil.which("bash")
    if shell is None:
        pytest.skip("needs bash")
    ask = f"COMP_WORDS=(fusion-pipeline {' '.join(words)}); COMP_CWORD={len(words)}"
    run_it = "_shtab_fusion_pipeline; printf '%s\\n' \"${COMPREPLY[@]}\""
    completed = subprocess.run(
        [shell, "-c", "\n".join([script, ask, run_it])], capture_output=True, text=True, check=True
    )
    assert {word.strip() for word in completed.stdout.split()} == offered


class TestInfo:
    def test_it_says_what_is_installed(self, capsys):
        assert main(["info"]) == 0
        out, err = capsys.readouterr()
        assert f"torch {torch.__version__.partition('+')[0]}" in out
        assert str(bundle_for(2)) in out
        assert str(bundle_for(3)) in out
        assert "weights of " in out
        assert err == ""

    def test_it_says_what_an_image_is_read_as(self, paths, capsys):
        assert main(["info", f"ct={paths['ct']}", f"mr-t1={paths['mr']}"]) == 0
        lines = capsys.readouterr().out.splitlines()
        first, second = [line for line in lines if not line.startswith("  ")]
        assert ": ct, 26 x 30 x 18 voxels, 1.5 x 1.2 x 3 mm, axes LAS, HU, " in first
        assert second.startswith(f"mr_t1 ({paths['mr']}): mr, 24 x 20 x 26 voxels")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["ct"], "expected KEY=PATH, such as ct=ct.nii.gz, got 'ct'"),
            (["ct=lost.nii"], "no such file"),
            (["--bundle", "nowhere"], "nowhere: expected a bundle with configs/metadata.json"),
        ],
    )
    def test_it_refuses_in_one_line(self, arguments, message, capsys):
        assert main(["info", *arguments]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert len(err.splitlines()) == 1


COMMANDS = ["run", "apply", "train", "evaluate", "export", "demo", "info"]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_says_what_each_option_is_without_a_value(capsys, command):
    """A default, or that it is needed; a switch is off. What names a case has none."""
    no_default = {"--help", "--output", "--ct", "--cbct", "--mr", "--pet", "--spect", "--datalist"}
    no_default |= {"--folds", "--fold", "--override", "--different-people", "--debug"}
    no_default |= {"--fail-on-check", "--diagnosis", "--lesion", "--quiet"}
    no_default |= {
        "--result",
        "--images",
        "--labels",
        "--points",
        "--inverse",
        "--bids",
        "--weights-url",
        "--dicom",
        "--rtstruct",
        "--seg",
        "--patient-id",
        "--patient-name",
    }
    if command != "train":
        no_default |= {"--resume"}
    assert main([command, "--help"]) == 0
    listed = capsys.readouterr().out.partition("options:")[2]
    options = re.findall(r"^  (?:-h, )?(--[\w-]+)((?s:.*?))(?=^  -|^\S|\Z)", listed, re.MULTILINE)
    assert len(options) > 2
    for name, text in options:
        if name not in no_default:
            assert "(default: " in " ".join(text.split()), name
        assert "None" not in text, name
        assert "[]" not in text, name


def test_the_help_gives_the_defaults_of_the_bundles():
    for dims in (2, 3):
        config = json.loads((bundle_for(dims) / "configs" / "inference.json").read_text())
        assert (config["device"], config["refine_steps"]) == ("cpu", 30)
        config = json.loads((bundle_for(dims) / "configs" / "train.json").read_text())
        assert (config["device"], config["devices"]) == ("cpu", 1)


def test_help_names_the_commands(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"    {name} " in out for name in COMMANDS)
    assert main(["run", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--refine-steps" in out
    assert "--mask-KEY" in "".join(out.split())  # lines may be broken at a hyphen


@pytest.mark.slow
@pytest.mark.usefixtures("brief_report")
def test_demo_says_what_is_gained(monkeypatch, made, tmp_path, capsys):
    monkeypatch.setattr(
        SyntheticCases,
        "_written",
        lambda self: read_datalist(synthetic_patient(3, size="small").save(self.output / "made")),
    )
    assert main(["demo", "--output", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "mm before, " in out
    assert "% of the error gone" in out
    assert "report.html" in out


def test_demo_refuses_in_one_line(made, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["demo", "--output", str(tmp_path / "file")]) == 2
    assert len(refusals(capsys.readouterr().err)) == 1


@pytest.fixture
def datalist(paths, tmp_path):
    entries = ", ".join(
        f'{{"id": "{name}", "ct": "{paths["ct"]}", "mr": "{paths["mr"]}"}}' for name in "abc"
    )
    (tmp_path / "cases.json").write_text(f'{{"testing": [{entries}]}}')
    return str(tmp_path / "cases.json")


@pytest.fixture
def launched(monkeypatch):
    """What would have been started in processes."""
    calls = []

    def run_processes(work, args, count):
        calls.append((args, count))
        return 1

    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr(pipeline_package, "run_processes", run_processes)
    return calls


@pytest.mark.parametrize(
    ("options", "count", "device"),
    [(["--jobs", "2"], 2, "cpu"), (["--jobs", "9"], 3, "cpu"), (["--devices", "2"], 2, "cuda")],
)
def test_processes_share_a_datalist(launched, datalist, tmp_path, options, count, device):
    arguments = ["--datalist", datalist, "--resume", *options]
    assert run(*arguments, output=tmp_path / "out") == 1
    ((args, started),) = launched
    assert (started, args.device, args.resume) == (count, device, True)
    assert (args.devices, args.jobs) == (None, None)  # they do not start others in their turn


@pytest.mark.parametrize("options", [["--jobs", "1"], ["--devices", "1"]])
def test_one_process_is_this_one(launched, no_run, datalist, tmp_path, options):
    assert run("--datalist", datalist, *options, output=tmp_path / "out") == 0
    assert launched == []
    assert no_run["device"] == ("cpu" if options[0] == "--jobs" else "cuda")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--jobs", "0"], "expected a whole number from 1 up, got '0'"),
        (["--jobs", "2", "--devices", "2"], "not allowed with argument"),
        (["--jobs", "2", "--device", "cuda"], "--jobs: expected --device cpu, got cuda"),
        (["--devices", "2", "--device", "cuda:1"], "--devices: expected --device cuda, got cuda:1"),
        (["--devices", "3"], "--devices: expected at most 2, the GPUs that torch can use here"),
        (["--jobs", "2", "--bundle", "nowhere"], "nowhere: expected a bundle"),
    ],
)
def test_processes_are_refused_in_one_line(launched, datalist, tmp_path, capsys, options, message):
    assert run("--datalist", datalist, *options, output=tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert launched == []


def test_processes_within_torchrun_are_refused(launched, datalist, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    assert run("--datalist", datalist, "--jobs", "2", output=tmp_path / "out") == 2
    assert "torchrun starts the processes; leave --jobs out" in capsys.readouterr().err


def test_an_interruption_leaves_with_130(no_run, paths, tmp_path, capsys):
    def stop():
        raise KeyboardInterrupt

    no_run["evaluator"].run = stop
    assert run("--ct", paths["ct"], "--mr", paths["mr"], output=tmp_path) == 130
    assert "--resume goes on" in capsys.readouterr().err


def test_demo_names_an_unexpected_error_in_one_line(monkeypatch, made, tmp_path, capsys):
    def fail(*_):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(pipeline_package, "from_config", fail)
    assert main(["demo", "--output", str(tmp_path)]) == 1
    assert refusals(capsys.readouterr().err) == ["unexpected ZeroDivisionError: oh"]


@pytest.mark.slow
def test_the_command_itself_keeps_the_terminal_clean(paths, tmp_path):
    command = [sys.executable, "-m", "fusion_pipeline.cli", "run", "--transform", "none"]
    images = ["--ct", paths["ct"], "--mr", paths["mr"], "--output", str(tmp_path)]
    done = subprocess.run([*command, *images], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert refusals(done.stderr) == []
    # the first word comes before the libraries, the others as the stages begin
    steps = [line.split("  ")[-1] for line in done.stderr.splitlines()]
    assert steps[0].endswith("loading libraries")
    assert steps[1:] == [
        f"case: {step}"
        for step in ("load", "register mr", "resample", "harmonize", "fuse", "write", "report")
    ]
    assert len(done.stdout.splitlines()) == 2


@pytest.mark.parametrize("command", [run_module, apply, train, evaluate, export, demo, info])
def test_the_help_says_the_default_of_each_option(command):
    commands = Parser(prog="fusion-pipeline").add_subparsers()
    command.add_command(commands, [])
    (parser,) = commands.choices.values()
    formatter = parser._get_formatter()
    silent = {
        action.option_strings[0]
        for action in parser._actions
        if action.option_strings
        and not action.required
        and "(default: " not in formatter._expand_help(action)
    }
    images = {f"--{key}" for key in KEY_WORDS} if command is run_module else set()
    assert silent == {"-h", *images}
