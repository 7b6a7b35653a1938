"""Delivery of a case's folder: two processes, a user's files, results within the input."""

import json
import threading

import pytest
from data_phantoms import save_series

from fusion_pipeline.data import InputError
from fusion_pipeline.data.sources import Source
from fusion_pipeline.pipeline import folder as delivery
from fusion_pipeline.pipeline.fingerprint import files_of
from fusion_pipeline.pipeline.folder import check_case_folder, deliver


def run(target, mark, names=("fused.nii.gz", "mr_registered.nii.gz")):
    """An earlier or later run: its files, all with one content."""
    with deliver(target) as aside:
        for name in names:
            (aside / name).write_text(mark)
        report = {"files": {"fused": names[0], "registered": {"mr": list(names[1:])}}}
        (aside / "report.json").write_text(json.dumps({**report, "mark": mark}))


def test_a_users_own_files_stay(tmp_path):
    target = tmp_path / "p"
    run(target, "1", ("fused.nii.gz", "mr_registered.nii.gz", "pet_registered.nii.gz"))
    own = ("atlas_registered.nii.gz", "x_displacement.nii.gz", "notes.txt", "weights.png")
    for name in own:
        (target / name).write_text("mine")
    run(target, "2")
    assert {p.name for p in target.iterdir()} == {
        *own,
        "fused.nii.gz",
        "mr_registered.nii.gz",
        "report.json",
    }
    assert all((target / name).read_text() == "mine" for name in own)


def test_a_users_file_under_our_name_is_refused_before_and_at_the_end(tmp_path):
    target = tmp_path / "p"
    target.mkdir()
    (target / "fused.nii.gz").write_text("mine")
    with pytest.raises(InputError, match=r"got fused\.nii\.gz, which no report\.json there lists"):
        check_case_folder(target, ["ct", "mr"])
    with pytest.raises(InputError, match=r"got fused\.nii\.gz"):
        run(target, "1")
    assert (target / "fused.nii.gz").read_text() == "mine"
    assert [p.name for p in target.iterdir()] == ["fused.nii.gz"]
    (target / "fused.nii.gz").rename(target / "pet_registered.nii.gz")
    assert check_case_folder(target, ["ct", "mr"]) == target  # no key of this case


@pytest.mark.parametrize(
    ("earlier", "only", "got"),
    [
        (None, "fuse", "a whole run"),
        ("register", "fuse", "register alone"),
        ("register", "register", None),
        ("register", None, None),  # a whole run has all of it
    ],
)
def test_one_stage_is_not_written_over_the_results_of_others(tmp_path, earlier, only, got):
    target = tmp_path / "p"
    run(target, "1")
    report = json.loads((target / "report.json").read_text())
    (target / "report.json").write_text(json.dumps(report | ({"only": earlier} if earlier else {})))
    if got is None:
        assert check_case_folder(target, ["ct", "mr"], only) == target
        return
    with pytest.raises(InputError, match=f"got the results of {got}, which would be lost"):
        check_case_folder(target, ["ct", "mr"], only)


def test_a_replacement_that_broke_off_is_ours(tmp_path, monkeypatch):
    target = tmp_path / "p"
    run(target, "1")
    monkeypatch.setattr(delivery.Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        run(target, "2")
    monkeypatch.undo()
    check_case_folder(target, ["mr"])
    run(target, "3")
    assert (target / "fused.nii.gz").read_text() == "3"
    assert not list(target.glob(".*"))


def test_two_at_once_leave_the_files_of_one(tmp_path):
    target = tmp_path / "p"
    names = tuple(f"{key}_registered.nii.gz" for key in ("mr", "mr_a", "mr_b", "mr_c", "pet"))
    threads = [
        threading.Thread(target=run, args=(target, str(n), ("fused.nii.gz", *names)))
        for n in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    mark = json.loads((target / "report.json").read_text())["mark"]
    assert {(target / name).read_text() for name in ("fused.nii.gz", *names)} == {mark}
    assert list(tmp_path.iterdir()) == [target]


def test_a_lock_that_stays_is_said(tmp_path, monkeypatch):
    from filelock import SoftFileLock

    monkeypatch.setattr(delivery, "_LOCK_S", 0.2)
    with SoftFileLock(tmp_path / ".p.lock"), pytest.raises(InputError, match="another process"):
        run(tmp_path / "p", "1")


def test_results_within_a_dicom_folder_are_no_input(tmp_path):
    save_series(tmp_path / "ct")
    before = files_of(Source(str(tmp_path / "ct")))
    run(tmp_path / "ct" / "out" / "p", "1")
    (tmp_path / "ct" / "out" / "summary.csv").write_text("id\n")
    assert files_of(Source(str(tmp_path / "ct"))) == before
    (tmp_path / "ct" / "new.png").write_bytes(before[0].read_bytes())  # a slice, whatever its name
    assert len(files_of(Source(str(tmp_path / "ct")))) == len(before) + 1
