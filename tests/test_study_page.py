"""The study's driver: slices of real patients, and the quick form from patients to the page."""

import json
import re
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fusion_pipeline.data import read_datalist, read_image

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import own_datalist
import study
import study_page


def write_patient(folder, name):
    """A CT of 20 slices with a tumour in five of them; MR and PET show all but two slices."""
    affine = np.diag([-2.0, -2.0, 3.0, 1.0])
    shape = (24, 30, 20)
    body = np.zeros(shape, np.float32)
    body[4:20, 5:25] = 1
    tumour = np.zeros(shape, np.uint8)
    tumour[8:12, 10:16, 6:11] = 1
    images = {
        "ct": body * 1040 - 1000 + 20 * tumour,
        "mr": (body * 300)[..., 1:-1],
        "pet": (body + 6 * tumour)[..., 1:-1],
        "gtv_ct": tumour,
    }
    entry = {"id": name}
    for key, array in images.items():
        moved = affine.copy()
        moved[2, 3] = 3.0 * (array.shape[2] == 18)
        entry[key] = f"{name}_{key}.nii.gz"
        nib.save(nib.Nifti1Image(array.astype(np.float32), moved), folder / entry[key])
    return entry


def test_a_real_patient_gives_two_slices_of_each_class_that_all_images_show(tmp_path):
    listed = {"ct_mr_pet_3d": [write_patient(tmp_path, "sts1")]}
    (tmp_path / "datalist.json").write_text(json.dumps(listed))
    cases = read_datalist(study.sarcoma(tmp_path, tmp_path / "out"))
    assert [case.target for case in cases] == [1, 1, 0, 0]
    assert {case.patient for case in cases} == {"sts1"}
    heights = [int(case.id[-3:]) for case in cases]
    assert all(6 <= height <= 10 for height in heights[:2])
    assert all(height in range(1, 19) and not 6 <= height <= 10 for height in heights[2:])
    labels = [read_image(str(case.series["ct"].label), "mr")[0].array for case in cases]
    assert [int(one.max()) for one in labels] == [2, 2, 1, 1]
    pet = read_image(str(cases[0].series["pet"].image), "pet")[0]
    assert float(pet.array.max()) == pytest.approx(7 / 10 * 255, abs=1)  # SUV 7 of 10


def part(folder, verdict):
    """A part whose grey fused image is ``verdict`` against the images as they came."""
    (folder / "diagnosis").mkdir(parents=True)
    facts = {"cases": 4, "patients": 4, "failed": 1, "version": "1", "weights": ["a" * 32]}
    facts |= {"failures": {"c (ours)": "no overlap"}, "methods": ["ours", "traditional"]}
    row = {"name": "tre_mm", "label": "", "image": "", "unit": "mm", "group": "mr-pet"}
    row |= {"method": "ours", "patients": 4, "mean": 2.0, "low": 1.5, "high": 2.5}
    other = row | {"method": "traditional", "patients": 3, "mean": 4.0, "low": 3.0, "high": 5.0}
    compared = {key: row[key] for key in ("name", "label", "image", "unit", "group")}
    compared |= {"other": "traditional", "verdict": "better", "mean": -2.0, "patients": 3}
    compared |= {"low": -3.0, "high": -1.0}
    facts |= {"summary": [row, other], "comparison": [compared]}
    (folder / "summary.json").write_text(json.dumps(facts))
    times = [("ours", n, 2.0 * n) for n in (1, 2, 3)] + [("traditional", n, 1.0) for n in (1, 2)]
    rows = [f"c{n},p{n},mr-pet,{method},,,cpu_s,{value}" for method, n, value in times]
    rows += [f"c{n},p{n},mr-pet,{m},pet,,tre_mm,{n}.5" for m in ("start", "ours") for n in (1, 2)]
    head = "case,patient,group,method,image,label,name,value"
    (folder / "scores.csv").write_text("\n".join([head, *rows]) + "\n")

    def gain(name, against, low, verdict):
        auroc = {"value": low + 0.1, "low": low, "high": low + 0.2}
        return {
            "input": name, "against": against, "verdict": verdict, "auroc": auroc, "patients": 3,
        }  # fmt: skip

    told = {
        "auroc_difference": [
            gain("ours: fused", "mr alone", 0.3, "better"),
            gain("ours: fused", "unregistered stack", 0.0, verdict),
            gain("ours: fused", "traditional: fused", -0.4, "worse"),
        ],
        "dice_difference": {},
    }
    auroc = {"value": 0.1, "low": 0.0, "high": 0.2}
    scores = {"scores": {"auroc": auroc}, "input": "ours: fused", "patients": 3}
    told |= {"missing": ["c"], "diagnosis": [scores], "segmentation_dice": {}}
    (folder / "diagnosis" / "diagnosis.json").write_text(json.dumps(told))
    (folder / "diagnosis" / "diagnosis.md").write_text("a table")
    names = ("unregistered stack", "ours: fused")
    made = [f"c{n},p{n},0,{name},{n % 2},0.{n}" for name in names for n in (1, 2, 3)]
    head = "case,patient,fold,input,target,probability"
    (folder / "diagnosis" / "predictions.csv").write_text("\n".join([head, *made]) + "\n")
    one = {name: {"patients": 3, **auroc} for name in ("average", "maximum")}
    (folder / "diagnosis" / "one_image.json").write_text(json.dumps(one))
    return study_page.Part("Title", "key", folder, "Exact.", unseen=("p1", "p2", "p9"))


@pytest.mark.parametrize(("verdict", "said"), [("better", False), ("no difference shown", True)])
def test_the_page_says_why_where_grey_does_not_help(tmp_path, verdict, said):
    made = part(tmp_path / "part", verdict)
    study_page.note_code(made.folder)
    study_page.draw_auroc(made.folder / "diagnosis" / "diagnosis.json", tmp_path / "auroc.png")
    page = study_page.study_page("rules", [made])
    assert ("Why one fused image does not tell the class" in page) is said
    assert ("the AUROC of their average 0.100 (0 to 0.200) and of their maximum" in page) is said
    assert f"commit {made.code}, weights `aaaaaaaaaaaa`. Cases left out of the diag" in page
    assert "Failed: c (ours): no overlap." in page
    assert "*Truth.* Exact." in page
    assert "| score | start | ours | traditional |" in page
    assert "registration error, mm |  | 2.00 (1.50 to 2.50) | 4.00 (3.00 to 5.00, n" in page
    assert "5.00, n = 3); better |" in page
    # of the comparisons with the images as they came, the one with the lowest interval
    own = "| ours: fused | 0.100 (0 to 0.200) | "
    assert f"{own}{verdict}: +0.100 (0 to 0.200) | worse: -0.300 (-0.400 to -0.200) |" in page
    assert "Not shown to be better than chance (0.5): ours: fused." in page
    assert "and not worse than the traditional chain: none. Not shown for: ours: fused." in page
    # 2 and 4 times as long, over the cases that both have
    assert "CPU time of ours is 2.83 times that of the traditional chain (– to –, geome" in page
    unseen = page.partition("### The 2 patients that no network was trained on")[2]
    assert "2 of 3 have slices that the rules take." in unseen
    assert "Diagnosis, 2 cases of 2 patients, 1 cases positive" in unseen
    assert "| ours: fused | unregistered stack | 0 (– to –) | no interval |" in unseen
    assert "Mean over 2 patients" in unseen
    assert (tmp_path / "auroc.png").stat().st_size > 1000


@pytest.mark.slow
def test_the_quick_form_from_patients_to_the_page(tmp_path):
    arguments = ["--output", str(tmp_path / "out"), "--page", str(tmp_path / "study.md")]
    arguments += ["--patients", "8", "--folds", "2", "--steps", "3"]
    study.main(arguments)
    page = (tmp_path / "study.md").read_text()
    assert "8 cases of 8 patients; failed runs: 0." in page
    assert "Cases left out of the diagnosis: 0." in page
    assert "| traditional: channels | " in page
    assert "| mr-pet: target registration error, mm | 1" in page  # of the start, mm
    assert "Mean over 8 patients" in page
    for name in ("roc", "calibration"):
        assert (tmp_path / "figures" / f"study_generated_{name}.png").is_file()
    assert "is 0 mm" in page  # the truth's floor
    one = json.loads((tmp_path / "out" / "generated" / "diagnosis" / "one_image.json").read_text())
    assert {name: found["patients"] for name, found in one.items()} == {"average": 8, "maximum": 8}
    study.main(arguments)  # goes on where it was: nothing is left to do
    assert (tmp_path / "study.md").read_text() == page
    shutil.rmtree(tmp_path / "out" / "generated" / "cases" / "ours" / "patient-0003")
    for path in (tmp_path / "out" / "generated" / "diagnosis").glob("*ours*.pt"):
        path.unlink()
    study.main(arguments)  # what is made again has the same numbers, but for its CPU seconds
    again = (tmp_path / "study.md").read_text()
    timed = re.compile(r"^CPU time of ours is .*$", re.MULTILINE)
    assert timed.sub("", again) == timed.sub("", page)


@pytest.mark.slow
def test_ten_patients_with_labels_are_one_command_and_one_page(tmp_path):
    datalist = own_datalist.write_patients(tmp_path / "patients", 10, dims=2)
    cost = own_datalist.timed(datalist, tmp_path / "out")
    # the bar is ten minutes beside the inference
    assert cost.cpu_s - cost.stages_cpu_s < 600
    page = (tmp_path / "out" / "study.html").read_text()
    assert "10 cases of 10 patients" in page
    for seed in range(10):
        name = f"synthetic-head-{seed}"
        assert f'href="cases/ours/{name}/report.html"' in page
        assert (tmp_path / "out" / "cases" / "ours" / name / "report.html").is_file()
        assert (tmp_path / "out" / "thumbnails" / f"{name}.png").is_file()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    overlap = [row for row in summary["summary"] if row["name"] == "dice" and not row["label"]]
    assert {(row["group"], row["method"]) for row in overlap} == {
        (group, method) for group in ("ct-mr", "ct-pet") for method in ("start", "ours")
    }
    assert all(row["patients"] == 10 and row["low"] < row["high"] for row in overlap)
