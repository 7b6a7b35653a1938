"""Many cases in a row: what a bad one does, what is skipped, what is told at the end."""

import csv
import dataclasses
import json
import logging
import os
import pickle

import pytest
from monai.data import DataLoader
from monai.data.utils import no_collation
from pipeline_cases import (
    ShiftRegister,
    brief_report,  # noqa: F401 - a fixture
    write_case,
)
from pipeline_cases import (
    small_evaluator as evaluator,
)
from torch import nn

import fusion_pipeline.pipeline.inferer as inferer_module
import fusion_pipeline.pipeline.result as result_module
from fusion_pipeline.data import InputError, case_from_paths
from fusion_pipeline.pipeline import (
    FusionEvaluator,
    Outcome,
    SyntheticCases,
    case_list,
    spatial_dims_of_cases,
)
from fusion_pipeline.pipeline.summary import as_table, exit_code


@pytest.fixture(autouse=True)
def still_register(monkeypatch):
    monkeypatch.setattr(inferer_module, "Register", ShiftRegister)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_case(tmp_path_factory.mktemp("patient"), ("ct", "mr", "pet"))


@pytest.fixture
def files(paths):
    return case_from_paths("p1", {key: paths[key] for key in ("ct", "mr")})


@pytest.fixture
def bad(paths):
    return case_from_paths("bad", {"ct": "nowhere.nii.gz", "mr": paths["mr"]})


def run(*args, **options):
    """The outcomes."""
    made = evaluator(*args, **options)
    made.run()
    return made.state.outcomes


@pytest.mark.usefixtures("brief_report")
class TestManyCases:
    def test_it_goes_on_past_a_bad_case(self, bad, files, tmp_path, caplog):
        with caplog.at_level(logging.INFO, "fusion_pipeline"):
            outcomes = run([bad, files], tmp_path / "out")
        assert [o.status for o in outcomes] == ["failed", "ok"]
        assert outcomes[0].bad_input
        errors = [r for r in caplog.records if r.levelno == logging.ERROR]
        assert len(errors) == 1
        assert "nowhere.nii.gz" in errors[0].getMessage()
        assert {p.name for p in (tmp_path / "out").iterdir()} == {
            "p1",
            "summary.csv",
            "summary.html",
        }
        said = {"fusion_pipeline.run": [], "fusion_pipeline.progress": []}
        for record in caplog.records:
            if record.levelno == logging.INFO:
                said[record.name].append(record.getMessage())
        assert said["fusion_pipeline.run"][0].startswith("[2/2] p1: ok in ")
        stages = ("load", "register mr", "resample", "harmonize", "fuse", "write", "report")
        steps = ["bad: load", *(f"p1: {stage}" for stage in stages)]
        assert said["fusion_pipeline.progress"] == steps

    def test_the_summary_has_a_row_per_case(self, bad, files, tmp_path):
        run([bad, files], tmp_path)
        with (tmp_path / "summary.csv").open() as stream:
            first, good = csv.DictReader(stream)
        assert (first["id"], first["status"]) == ("bad", "failed")
        assert "nowhere.nii.gz" in first["message"]
        assert good["mr_nmi_after"] == "1.2"
        assert float(good["wall_s"]) > 0

    def test_resume_skips_what_is_done_from_the_same_input(self, bad, files, paths, tmp_path):
        made = evaluator([bad, files], tmp_path, resume=True)
        for expected in (["failed", "ok"], ["failed", "skipped"]):
            made.run()
            assert [o.status for o in made.state.outcomes] == expected
        other = case_from_paths("p1", {"ct": paths["ct"], "mr": paths["pet"]})
        assert [o.status for o in run([other], tmp_path, resume=True)] == ["ok"]
        gone = case_from_paths("p1", {"ct": "gone.nii", "mr": paths["mr"]})
        assert [o.bad_input for o in run([gone], tmp_path, resume=True)] == [True]
        assert [o.status for o in run([files], tmp_path, resume="true")] == ["ok"]
        assert [o.status for o in run([files], tmp_path, resume=True)] == ["skipped"]
        assert [o.status for o in run([files], tmp_path, resume=True, seed=1)] == ["ok"]

    def test_a_batch_of_two_cases_is_refused(self, files, tmp_path):
        """One of them would be left out."""
        made = evaluator([files], tmp_path)
        pair = DataLoader(made.data_loader.dataset, batch_size=2, collate_fn=no_collation)
        with pytest.raises(InputError, match="dataloader: expected batch_size 1, got 2"):
            FusionEvaluator(
                val_data_loader=pair,
                network=made.pipeline.network,
                inferer=made.pipeline.inferer,
                preprocessing=made.pipeline.preprocessing,
                postprocessing=made.save,
                output_dir=tmp_path,
            )

    def test_the_dataset_can_be_sent_to_workers(self, files, tmp_path):
        dataset = pickle.loads(pickle.dumps(evaluator([files], tmp_path).data_loader.dataset))
        assert dataset[0].case.id == "p1"

    @pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
    def test_resume_with_workers_reads_the_weights_in_the_parent(
        self, files, tmp_path, monkeypatch, start
    ):
        """On a GPU a worker cannot read them."""
        parent = os.getpid()
        read = nn.Module.state_dict

        def state_dict(self, *args, **kwargs):
            assert os.getpid() == parent, "weights read in a worker"
            return read(self, *args, **kwargs)

        monkeypatch.setattr(nn.Module, "state_dict", state_dict)
        for expected in ("ok", "skipped"):
            made = evaluator([files], tmp_path, resume=True)
            made.data_loader = DataLoader(
                made.data_loader.dataset,
                batch_size=1,
                collate_fn=no_collation,
                num_workers=1,
                multiprocessing_context=start,
            )
            made.run()
            assert [o.status for o in made.state.outcomes] == [expected]
        asked = pickle.dumps(made.data_loader.dataset.skip)
        assert len(asked) < 20_000  # bytes: a digest in place of the network

    def test_a_word_that_is_no_switch(self, files, tmp_path):
        with pytest.raises(InputError, match="expected resume true or false, got 'maybe'"):
            evaluator([files], tmp_path, resume="maybe")

    def test_what_is_no_refusal_is_called_unexpected(self, files, tmp_path, monkeypatch):
        def fail(result):
            raise KeyError("x")

        made = evaluator([files], tmp_path / "out", save=fail)
        made.run()
        (outcome,) = made.state.outcomes
        assert outcome.message.startswith("p1: unexpected KeyError")
        assert not outcome.bad_input
        assert not (tmp_path / "out").exists()
        made.leave()  # a program that uses the bundle goes on
        monkeypatch.setattr("fusion_pipeline.pipeline.evaluator.monai_is_the_program", lambda: True)
        with pytest.raises(SystemExit) as left:
            made.leave()
        assert left.value.code == 1

    def test_success_raises_nothing(self, files, tmp_path):
        made = evaluator([files], tmp_path)
        made.run()
        made.leave()
        assert not (tmp_path / "summary.csv").exists()

    def test_a_file_where_a_cases_folder_should_be(self, files, tmp_path):
        (tmp_path / "p1").touch()
        (outcome,) = run([files], tmp_path)
        assert outcome.bad_input
        assert "got the file" in outcome.message

    def test_an_output_folder_that_cannot_be_is_one_line_under_monai(
        self, files, tmp_path, monkeypatch, capsys
    ):
        (tmp_path / "out").touch()
        monkeypatch.setattr("fusion_pipeline.data.refusals.monai_is_the_program", lambda: True)
        with pytest.raises(SystemExit) as left:
            evaluator([files], tmp_path / "out").run()
        assert left.value.code == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.usefixtures("brief_report")
def test_the_evaluation_has_the_files_and_statistics_of_the_command(
    bad, files, tmp_path, monkeypatch
):
    errors = {"p1": 1.0, "second": 3.0}
    monkeypatch.setattr(
        result_module,
        "evaluate",
        lambda result: (
            {"mr": {"tre_mm_before": 4.0, "tre_mm_after": errors[result.case.id]}}
            if result.case.id in errors
            else {}
        ),
    )
    second = dataclasses.replace(files, id="second", patient="p1")
    other = dataclasses.replace(files, id="without")
    run([bad, other, files, second], tmp_path, evaluate=True)
    written = json.loads((tmp_path / "summary.json").read_text())
    assert (written["cases"], written["patients"], written["failed"]) == (4, 3, 1)
    rows = {(row["name"], row["method"]): row for row in written["summary"]}
    found = rows["tre_mm", "ours"]
    # both cases are one patient's
    assert (found["patients"], found["cases"], found["mean"]) == (1, 2, 2.0)
    assert rows["tre_mm", "start"]["mean"] == 4.0
    page = (tmp_path / "study.html").read_text()
    assert page.index("nowhere.nii.gz") < page.index('href="second/report.html"')
    assert (tmp_path / "thumbnails" / "second.png").is_file()
    assert (tmp_path / "scores.csv").is_file()
    with (tmp_path / "summary.csv").open() as stream:
        assert list(csv.DictReader(stream))[2]["mr_tre_mm_after"] == "1.0"


def test_the_table_shows_every_moving_image():
    cells = {"mr_ok": False, "mr_transform": "rigid", "mr_error_mm": 1.26, "mr_nmi_after": 1.2}
    good = Outcome("a", "ok", numbers={**cells, "seconds": 3.0})
    table = as_table([good, Outcome("b", "failed")])
    lines = [line.split() for line in table.splitlines()]
    assert lines[1] == ["a", "ok", "mr", "rigid", "CHECK", "1.200", "1.3", "3.0"]
    assert lines[2] == ["b", "failed"]


class TestExitCode:
    GOOD = Outcome("a", "ok")
    DOUBTFUL = Outcome("b", "skipped", checks={"mr": "far off"})
    FAILED = Outcome("c", "failed", error=InputError("no such file"))

    @pytest.mark.parametrize(
        ("outcomes", "code", "with_check"),
        [
            ([GOOD], 0, 0),
            ([GOOD, DOUBTFUL], 0, 3),
            ([DOUBTFUL, FAILED], 1, 1),
            ([FAILED], 2, 2),
        ],
    )
    def test_a_failure_goes_before_a_check(self, outcomes, code, with_check):
        assert exit_code(outcomes) == code
        assert exit_code(outcomes, fail_on_check=True) == with_check

    def test_checks_pass_between_processes(self):
        assert Outcome.from_json(self.DOUBTFUL.as_json()).checks == {"mr": "far off"}


def test_dimensions_come_from_the_headers(paths, tmp_path):
    volume = case_from_paths("v", {k: paths[k] for k in ("ct", "mr")})
    picture = case_from_paths("p", {"ct": "a.png", "mr": "b.png"})
    lost = case_from_paths("l", {"ct": "lost.nii", "mr": "lost.nii"})
    assert spatial_dims_of_cases([lost, volume]) == 3
    assert spatial_dims_of_cases([picture]) == 2
    assert spatial_dims_of_cases([lost]) == 3
    with pytest.raises(InputError, match="'p' in 2D and 'v' in 3D"):
        spatial_dims_of_cases([volume, picture])


def test_a_datalist_counts_from_its_folder(tmp_path):
    (tmp_path / "list.json").write_text('{"testing": [{"id": "a", "ct": "c.nii", "mr": "m.nii"}]}')
    (case,) = case_list("list.json", dataset_dir=tmp_path)
    assert case.images["ct"].path == str(tmp_path / "c.nii")


def test_without_a_datalist_there_is_one_synthetic_patient_made_when_asked_for(tmp_path):
    cases = case_list(None, output_dir=tmp_path / "out")
    assert isinstance(cases, SyntheticCases)
    assert len(cases) == 1
    assert not (tmp_path / "out").exists()
    cases.size = "small"
    assert [case.reference for case in cases] == ["ct"]
    truths = [key for key, one in cases[0].series.items() if one.displacement is not None]
    assert truths == ["mr", "pet"]
    assert cases[0] is cases[:1][0]
    assert (tmp_path / "out" / "synthetic_patient" / "cases.json").is_file()
