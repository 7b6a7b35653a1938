"""Studies: reports to rows, rows to tables, and a datalist from end to end."""

import csv
import importlib.metadata
import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
from data_phantoms import case_of
from pipeline_cases import small_evaluator, small_pipeline, write_case
from register_cases import rigid_pair

import fusion_pipeline.pipeline as pipeline_package
from fusion_pipeline.baselines import ENGINES
from fusion_pipeline.cli import main
from fusion_pipeline.data import InputError, case_from_paths
from fusion_pipeline.evaluation.scores import Score, scores_of
from fusion_pipeline.evaluation.tables import (
    as_json,
    as_latex,
    as_markdown,
    comparison_rows,
    short,
    summary_rows,
)
from fusion_pipeline.geometry import rigid_matrix
from fusion_pipeline.pipeline import (
    FusionInferer,
    TraditionalInferer,
    fitted_standard,
    methods_against,
)
from fusion_pipeline.pipeline.traditional import STAGES, Chain

REPORT = {
    "id": "c1",
    "reference": "ct",
    "modalities": ["ct", "mr"],
    "registration": {
        "mr": {
            "similarity_before": {"nmi": 1.1},
            "similarity_after": {"nmi": 1.2},
            "folded_fraction": 0.0,
            "ok": False,
            "error_mm": None,
        }
    },
    "evaluation": {"mr": {"tre_mm_before": 8.0, "tre_mm_after": 2.0, "dice_label_3_after": 0.7}},
    "harmonization": {"mr": {"agreement_before": 0.1, "agreement_after": 0.4}},
    "fusion": {"q_ct": 0.6, "ssim_mr": 0.3, "q_min": 0.5, "weight_ct": 0.4, "scd_mr": 0.2},
    "timings": {"load": {"wall_s": 1.0, "cpu_s": 0.5}, "fuse": {"wall_s": 2.0, "cpu_s": 1.5}},
    "peak_memory_mb": 900.0,
}


class TestScores:
    def rows(self):
        found = scores_of(REPORT, patient="p", method="ours")
        return {(s.method, s.group, s.image, s.label, s.name): s.value for s in found}

    def test_before_is_the_method_that_does_nothing(self):
        rows = self.rows()
        assert rows["start", "ct-mr", "mr", "", "tre_mm"] == 8.0
        assert rows["ours", "ct-mr", "mr", "", "tre_mm"] == 2.0
        assert rows["start", "ct-mr", "mr", "", "nmi"] == 1.1

    def test_labels_sources_and_costs_find_their_columns(self):
        rows = self.rows()
        assert rows["ours", "ct-mr", "mr", "3", "dice"] == 0.7
        assert rows["ours", "ct-mr", "ct", "", "q"] == 0.6
        assert rows["ours", "ct-mr", "", "", "q_min"] == 0.5
        assert rows["ours", "ct-mr", "mr", "", "ssim"] == 0.3
        assert rows["ours", "ct-mr", "mr", "", "scd"] == 0.2
        assert rows["ours", "ct-mr", "mr", "", "doubtful"] == 1.0
        assert rows["ours", "ct-mr", "", "", "wall_s"] == 3.0
        assert rows["ours", "ct-mr", "mr", "", "agreement"] == 0.4

    def test_null_is_no_score(self):
        assert not [row for row in self.rows() if row[-1] == "error_mm"]


def many(method, values, name="tre_mm", label=""):
    """A score of as many patients."""
    return [
        Score(f"c{n}", f"p{n}", "ct-mr", method, "mr", label, name, value)
        for n, value in enumerate(values)
    ]


class TestTables:
    def test_scores_of_each_source_and_the_share_of_failures_are_in_the_table(self):
        of_mr = [Score(f"c{n}", f"p{n}", "ct-mr", "ours", "mr", "", "ssim", 0.5) for n in (1, 2)]
        found = summary_rows([*of_mr, *many("ours", [1.0, 2, 3, 4]), *many("other", [1.0])])
        assert [row.image for row in found if row.name == "ssim"] == ["mr"]
        other = next(row for row in found if row.method == "other")
        assert other.summary.failures == 0.75

    def test_a_case_that_one_method_lacks_is_missing_there(self):
        rows = summary_rows([*many("ours", [1.0, 2, 3]), *many("other", [4.0, 5])])
        found = {row.method: row.summary for row in rows}
        assert (found["ours"].cases, found["ours"].missing) == (3, 0)
        assert (found["other"].cases, found["other"].missing) == (2, 1)

    def test_verdicts_follow_which_end_is_better(self):
        low, high = [float(n) for n in range(10)], [float(n) + 3 for n in range(10)]
        errors = [*many("ours", low), *many("other", high)]
        overlaps = [*many("ours", low, "dice"), *many("other", high, "dice")]
        verdicts = {r.name: r.verdict for r in comparison_rows([*errors, *overlaps], "ours")}
        assert verdicts == {"tre_mm": "better", "dice": "worse"}

    def test_p_is_corrected_over_the_rows_of_a_stage(self):
        low, high = [float(n) for n in range(8)], [float(n) + 3 for n in range(8)]
        one = [*many("ours", low), *many("other", high)]
        two = [*one, *many("ours", low, "hd95_mm"), *many("other", high, "hd95_mm")]
        alone = comparison_rows(one, "ours")[0].comparison
        beside = comparison_rows(two, "ours")[0].comparison
        assert alone.p_holm == alone.p
        assert beside.p_holm == pytest.approx(2 * beside.p)
        # another stage is another question
        three = [*two, *many("ours", low, "q_min"), *many("other", high, "q_min")]
        found = {row.name: row.comparison for row in comparison_rows(three, "ours")}
        assert found["tre_mm"].p_holm == beside.p_holm
        assert found["q_min"].p_holm == found["q_min"].p

    def test_costs_are_not_compared(self):
        rows = [*many("ours", [1.0] * 8, "wall_s"), *many("other", [9.0] * 8, "wall_s")]
        assert comparison_rows(rows, "ours") == []
        assert [row.method for row in summary_rows(rows)] == ["ours", "other"]

    def test_four_formats_hold_the_same_rows(self):
        scores = [*many("ours", [1.0, 2]), *many("other", [4.0, 5])]
        summaries, comparisons = summary_rows(scores), comparison_rows(scores, "ours")
        content = json.loads(as_json(summaries, comparisons, {"cases": 2}))
        assert content["cases"] == 2
        assert [row["mean"] for row in content["summary"]] == [1.5, 4.5]
        assert content["summary"][0]["low"] is None  # two patients have no interval
        assert content["comparison"][0]["verdict"] == "no difference shown"
        text = as_markdown(summaries, comparisons)
        assert (
            "| ct-mr | target registration error, mm | ours | 2 | 2 | 0 | 0 % | 1.50 (– to –) |"
            in text
        )
        latex = as_latex(summaries, comparisons)
        assert latex.count(r"\begin{tabular}") == 2
        assert r"95 \% interval" in latex

    def test_numbers_have_three_digits(self):
        assert [short(v) for v in (0.0, 0.5, 99.94, 1e-6, -3.14159)] == [
            "0", "0.500", "99.9", "0.0000", "-3.14",
        ]  # fmt: skip


class TestMethods:
    def test_ours_comes_first_and_stages_are_replaced_one_at_a_time(self):
        assert [m.name for m in methods_against()] == ["ours"]
        names = [m.name for m in methods_against(["traditional", "stages"])]
        assert names == [
            "ours", "traditional", "mutual-information+ours+ours", "ours+z-score+ours",
            "ours+ours+average",
        ]  # fmt: skip

    def test_each_combination_has_a_name(self):
        chosen = methods_against(["mutual-information+nyul+wavelet", "ours+histogram+pca"])
        assert [m.chain for m in chosen] == [
            None,
            Chain("mutual-information", "nyul", "wavelet"),
            Chain("ours", "histogram", "pca"),
        ]
        assert [m.uses_networks for m in chosen] == [True, False, True]
        assert chosen[1].overrides["inferer#harmonize"] == "nyul"

    def test_all_is_every_method_of_a_stage(self):
        chosen = methods_against(["ours+all+all"])
        assert len({m.name for m in chosen}) == 1 + 3 * 5
        engines = [m.chain.register for m in methods_against(["all+ours+ours"])[1:]]
        assert engines == [name for name, one in ENGINES.items() if one.installed]

    @pytest.mark.parametrize("wrong", ["magic", "ours+ours+ours", "ants+z-score"])
    def test_another_word_is_answered_with_the_list(self, wrong):
        with pytest.raises(InputError, match=r"stages, or {mutual-information, greedy, .*wavelet"):
            methods_against([wrong])

    def test_a_wrong_part_is_answered_with_the_list_of_its_stage(self):
        expected = "harmonize: expected ours, z-score, histogram, nyul, got 'minmax'"
        with pytest.raises(InputError, match=expected):
            methods_against(["mutual-information+minmax+pca"])

    def test_an_engine_that_is_missing_is_refused_before_anything_runs(self, monkeypatch):
        def missing(name):
            raise importlib.metadata.PackageNotFoundError(name)

        monkeypatch.setattr(importlib.metadata, "version", missing)
        with pytest.raises(InputError, match=r"expected antspyx to be installed.*pip install"):
            methods_against(["ants+z-score+pca"])

    def test_an_engine_for_volumes_is_refused_for_pictures_and_left_out_of_all(self, monkeypatch):
        monkeypatch.setattr(importlib.metadata, "version", lambda _: "1.0")
        expected = r"convexadam.*expected volumes for convexadam, got 2D images; take another"
        with pytest.raises(InputError, match=expected):
            methods_against(["convexadam+z-score+pca"], spatial_dims=2)
        volumes, pictures = (
            {one.chain.register for one in methods_against(["all+ours+ours"], spatial_dims=d)[1:]}
            for d in (3, 2)
        )
        assert volumes - pictures == {"convexadam"}

    def test_wavelets_without_their_library_are_refused_before_anything_runs(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pywt", None)
        with pytest.raises(InputError, match="PyWavelets to be installed, got none"):
            methods_against(["ours+ours+wavelet"])

    def test_what_is_replaced_decides_whether_a_case_is_done(self):
        ours, theirs = FusionInferer(), TraditionalInferer(register="ours", fuse="maximum")
        assert ours.settings != theirs.settings
        assert theirs.settings["traditional"] == "ours+z-score+maximum"
        with pytest.raises(InputError, match="got 'sharpen'"):
            TraditionalInferer(fuse="sharpen")
        with pytest.raises(InputError, match="nyul: expected a standard"):
            TraditionalInferer(harmonize="nyul")


class TestGivenStart:
    """The traditional chain begins where the user says that the images lie, as ours does."""

    def registered(self, initial, transform="rigid"):
        pair = rigid_pair(1, d=2, degrees=150.0, mm=8.0)
        images = {"ct": pair.fixed, "mr": pair.moving}
        case = case_of("c", "ct", images, {"mr": transform})
        mr = replace(case.series["mr"], initial_transform=initial)
        case = replace(case, series={**case.series, "mr": mr})
        found = TraditionalInferer().register(case, None, None)["mr"]
        return found, pair.error(found.map.points(pair.points))

    def test_it_finds_the_truth_from_there_and_not_from_the_headers(self):
        truth = rigid_pair(1, d=2, degrees=150.0, mm=8.0).truth
        near = rigid_matrix([6.0], [2.0, -3.0], [0.0, 0.0]) @ truth
        assert self.registered(None)[1] > 10
        found, error = self.registered(near)
        assert error < 1.5
        assert found.evidence.given_start.from_headers_mm > 30
        # an affine start places the image on a grid whose axes are not at right angles
        assert self.registered(near @ np.array([[1.03, 0.04, 0], [0, 0.98, 0], [0, 0, 1]]))[1] < 5

    def test_where_nothing_is_to_move_it_is_the_result(self):
        near = rigid_matrix([6.0], [2.0, -3.0], [0.0, 0.0])
        found, _ = self.registered(near, "none")
        np.testing.assert_allclose(found.map.moving_from_fixed, near, atol=1e-12)
        assert found.transform == "rigid"


class TestStandards:
    @pytest.fixture
    def cases(self, tmp_path):
        paths = [write_case(tmp_path / name) for name in "ab"]
        (tmp_path / "c").mkdir()
        bad = {"ct": paths[0]["ct"], "mr": tmp_path / "c" / "mr.nii.gz"}
        bad["mr"].write_bytes(b"no image")
        found = [
            case_from_paths(str(n), {key: str(path) for key, path in one.items()})
            for n, one in enumerate([*paths, bad])
        ]
        return found, small_pipeline()

    def test_a_standard_is_fitted_to_the_images_of_each_modality(self, cases):
        found, pipeline = cases
        standard = fitted_standard("nyul", found, pipeline.load)
        assert standard.learned.keys() == {"ct", "mr"}
        one = TraditionalInferer(harmonize="nyul", standard=standard)
        other = fitted_standard("nyul", found[:1], pipeline.load)
        again = TraditionalInferer(harmonize="nyul", standard=other)
        assert len(one.settings["standard"]) == 16
        assert again.settings["standard"] == one.settings["standard"]  # two equal cases, one bad

    def test_without_a_case_that_can_be_read_there_is_none(self, cases):
        found, pipeline = cases
        with pytest.raises(InputError, match=r"histogram: expected images to fit it to, got none"):
            fitted_standard("histogram", found[2:], pipeline.load)


@pytest.fixture
def small(monkeypatch):
    """The bundle's evaluator with small networks; the overrides that were asked for."""
    asked = []

    def from_config(path, overrides, name):
        asked.append(overrides)
        evaluator = small_evaluator(overrides["cases"], overrides["output_dir"], seed=len(asked))
        chain = {s: overrides.get(f"inferer#{s}", "ours") for s in STAGES}
        kind = TraditionalInferer if "inferer#register" in overrides else FusionInferer
        own = chain if kind is TraditionalInferer else {}
        evaluator.pipeline.inferer = kind(**own, refine_steps=0, fuse_steps=0, measure=True)
        return {"evaluator": evaluator}

    monkeypatch.setattr(pipeline_package, "from_config", from_config)
    return asked


@pytest.mark.slow
def test_a_datalist_from_end_to_end(small, tmp_path):
    entries = []
    for number in (1, 2):
        folder = tmp_path / f"d{number}"
        paths = write_case(folder)
        for key, shift in (("ct", 0.0), ("mr", 2.0 * number)):
            (folder / f"{key}.csv").write_text(f"{shift},1,2\n{4 + shift},-3,5\n")
        # as the headers say: what is tested here is what comes after
        entry = {"id": f"c{number}", "patient": f"p{number}", "mr_transform": "none"}
        entry |= {key: f"d{number}/{path.name}" for key, path in paths.items()}
        entries.append(entry | {f"{key}_landmarks": f"d{number}/{key}.csv" for key in paths})
    paths = write_case(tmp_path / "bad")
    paths["mr"].write_bytes(b"no image")
    entries.append({"id": "bad", **{key: f"bad/{path.name}" for key, path in paths.items()}})
    (tmp_path / "cases.json").write_text(json.dumps({"testing": entries}))
    other = "ours+z-score+average"
    command = ["evaluate", "--datalist", str(tmp_path / "cases.json"), "--against", other]
    assert main([*command, "--output", str(tmp_path / "out")]) == 1  # one case failed
    with (tmp_path / "out" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    errors = {
        (row["case"], row["method"]): float(row["value"])
        for row in rows
        if (row["name"], row["image"]) == ("landmarks_mm", "mr")
    }
    assert errors.keys() == {(c, m) for c in ("c1", "c2") for m in ("start", "ours", other)}
    assert all(math.isfinite(value) for value in errors.values())
    assert [errors[f"c{n}", "start"] for n in (1, 2)] == [2.0, 4.0]
    page = (tmp_path / "out" / "study.html").read_text()
    assert page.index("bad (ours)") < page.index("cases/ours/c1/report.html")
    assert (tmp_path / "out" / "cases" / "ours" / "c1" / "report.html").exists()
    assert (tmp_path / "out" / "thumbnails" / "c1.png").exists()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["patients"], summary["failed"]) == (3, 2)
    assert summary["failures"].keys() == {"bad (ours)", f"bad ({other})"}
    assert any(row["verdict"] == "no difference shown" for row in summary["comparison"])
