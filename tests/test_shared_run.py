"""Processes that share a run, played by one: who takes which case, who writes, what is refused."""

import threading

import pytest
from monai.data import DataLoader
from monai.data.utils import no_collation
from pipeline_cases import (
    ShiftRegister,
    brief_report,  # noqa: F401 - a fixture
    small_evaluator,
    write_case,
)
from torch.distributed import HashStore

import fusion_pipeline.pipeline.inferer as inferer_module
from fusion_pipeline.data import InputError, case_from_paths
from fusion_pipeline.pipeline import CaseQueue, FusionInferer, Outcome, SharedRun
from fusion_pipeline.pipeline.shared_run import lost_key

DONE = Outcome("a", "ok", numbers={"seconds": 1.5, "mr_error_mm": None, "mr_ok": True})


@pytest.fixture(autouse=True)
def still_register(monkeypatch):
    monkeypatch.setattr(inferer_module, "Register", ShiftRegister)


@pytest.fixture
def store():
    return HashStore()


@pytest.fixture
def cases(tmp_path):
    paths = write_case(tmp_path / "patient")
    lost = case_from_paths("bad", {"ct": "nowhere.nii.gz", "mr": paths["mr"]})
    return [case_from_paths("a", paths), lost, case_from_paths("c", paths)]


@pytest.fixture
def second_of_two(monkeypatch, store):
    """The program is the second process of two; gives the first one."""
    monkeypatch.setattr(SharedRun, "of_this_program", lambda: SharedRun(1, 2, store))
    return SharedRun(0, 2, store)


def ids(run):
    return [(outcome.id, outcome.status) for outcome in run.state.outcomes]


def test_each_case_goes_to_one_process(store):
    taken = []
    queues = [CaseQueue(range(200)) for _ in range(4)]
    for rank, queue in enumerate(queues):
        queue.shared = SharedRun(rank, 4, store)
    threads = [threading.Thread(target=lambda q=q: taken.extend(q)) for q in queues]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(200))


def test_runs_of_one_program_do_not_share_their_cases(store):
    assert [SharedRun(0, 2, store, name).take() for name in ("run0", "run1", "run0")] == [0, 0, 1]


@pytest.mark.parametrize("error", [None, InputError("ct: gone"), RuntimeError("oh")])
def test_an_outcome_passes_between_processes(error):
    given = Outcome("a", "failed", message=str(error), error=error) if error else DONE
    back = Outcome.from_json(given.as_json())
    assert (back.id, back.status, back.message) == (given.id, given.status, given.message)
    assert (back.numbers, back.bad_input) == (given.numbers, given.bad_input)


@pytest.mark.usefixtures("brief_report")
class TestAnEvaluator:
    def test_takes_what_is_left_and_knows_all_outcomes(self, cases, second_of_two, tmp_path):
        first, out = second_of_two, tmp_path / "out"
        assert first.take() == 0
        first.finish(0, DONE.as_json())
        writer = threading.Thread(target=lambda: (first.wait_for_others(), first.close()))
        writer.start()
        run = small_evaluator(cases, out)
        run.run()
        writer.join()
        assert ids(run) == [("a", "ok"), ("bad", "failed"), ("c", "ok")]
        assert run.state.outcomes[0].numbers == DONE.numbers
        assert run.exit_code == 1
        assert first.writes
        assert {path.name for path in out.iterdir()} == {"c"}  # the first writes the summary

    def test_writes_for_a_process_that_was_killed(
        self, cases, second_of_two, store, tmp_path, caplog
    ):
        assert second_of_two.take() == 0
        store.set(lost_key(0), "")
        run = small_evaluator(cases, tmp_path / "out", evaluate=True)
        run.run()
        assert ids(run) == [("a", "failed"), ("bad", "failed"), ("c", "ok")]
        assert "--resume" in run.state.outcomes[0].message
        assert not run.state.outcomes[0].bad_input
        assert any("a: its process ended" in record.getMessage() for record in caplog.records)
        rows = (tmp_path / "out" / "summary.csv").read_text().splitlines()
        assert [row.split(",")[0] for row in rows] == ["id", "a", "bad", "c"]

    def test_the_progress_counts_the_cases_of_all(
        self, cases, second_of_two, store, tmp_path, caplog
    ):
        second_of_two.finish(second_of_two.take(), DONE.as_json())
        store.set(lost_key(0), "")
        with caplog.at_level("INFO", "fusion_pipeline"):
            small_evaluator(cases, tmp_path / "out").run()
        assert any(r.getMessage().startswith("[3/3] c: ok") for r in caplog.records)

    def test_runs_again(self, cases, tmp_path):
        run = small_evaluator(cases, tmp_path / "out", resume=True)
        for status in ("ok", "skipped"):
            run.run()
            assert ids(run) == [("a", status), ("bad", "failed"), ("c", status)]

    def test_with_a_loader_that_does_not_share_is_refused(self, cases, second_of_two, tmp_path):
        run = small_evaluator(cases, tmp_path / "out")
        dataset = run.data_loader.dataset
        run.data_loader = DataLoader(dataset, batch_size=1, collate_fn=no_collation)
        with pytest.raises(InputError, match="CaseQueue, to share the cases between 2 processes"):
            run.run()


class TestTheEnvironment:
    @pytest.fixture(autouse=True)
    def clean(self, monkeypatch):
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        for name in (*names, "SLURM_STEP_NUM_TASKS", "FUSION_PIPELINE_STORE"):
            monkeypatch.delenv(name, raising=False)
        self.setenv = monkeypatch.setenv

    def test_without_any_is_one_process(self):
        run = SharedRun.of_this_program()
        assert (run.rank, run.size, run.writes, run.take()) == (0, 1, True, 0)

    def test_of_a_launcher_that_numbers_no_processes_is_one_process(self):
        self.setenv("WORLD_SIZE", "2")  # as Lightning does
        self.setenv("LOCAL_RANK", "0")
        assert SharedRun.of_this_program().size == 1

    def test_of_bare_srun_is_refused(self):
        self.setenv("SLURM_STEP_NUM_TASKS", "8")
        with pytest.raises(InputError, match=r"srun: expected torchrun .* got 8 tasks"):
            SharedRun.of_this_program()

    def test_of_torchrun_within_srun_is_taken(self):
        for name, value in (("SLURM_STEP_NUM_TASKS", "8"), ("RANK", "0"), ("WORLD_SIZE", "1")):
            self.setenv(name, value)
        assert SharedRun.of_this_program().size == 1

    def test_without_an_address_is_refused(self):
        self.setenv("RANK", "1")
        self.setenv("WORLD_SIZE", "2")
        with pytest.raises(InputError, match=r"process 1 of 2: .* MASTER_ADDR expected"):
            SharedRun.of_this_program()

    def test_names_the_gpu_of_a_process(self, monkeypatch):
        chosen = []
        monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
        monkeypatch.setattr("torch.cuda.set_device", chosen.append)
        monkeypatch.setattr("torch.empty", lambda *_, device: None)
        self.setenv("LOCAL_RANK", "3")
        assert FusionInferer(device="cuda").settings["device"] == "cuda"
        FusionInferer(device="cuda:1")
        FusionInferer(device="cpu")
        assert chosen == [3]
        self.setenv("LOCAL_RANK", "4")
        with pytest.raises(InputError, match=r"a GPU for each process .* got 4 for process 5"):
            FusionInferer(device="cuda")
