"""Measures of a study: between protocols, contrast, and a similarity that is alike for all."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pipeline_cases import small_pipeline, write_case

from fusion_pipeline.harmonize import Harmonization
from fusion_pipeline.pipeline import measures
from fusion_pipeline.standards import HarmonizeBy


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A result of an untrained pipeline, where the headers place the images."""
    paths = write_case(tmp_path_factory.mktemp("case"))
    pipeline = small_pipeline()
    case = {"id": "c", "mr_transform": "none"} | {key: str(path) for key, path in paths.items()}
    loaded = pipeline.load(case)
    result = pipeline.infer(loaded)
    images = {"ct": loaded.fixed, "mr": result.registered_images["mr"].in_canonical_axes()}
    fields = {key: torch.ones_like(image.array) for key, image in images.items()}
    return result, images, fields


def measured(run, harmonize):
    result, images, fields = run
    return measures.measured(result, images, fields, harmonize)


def again(run, change):
    """A stage that gives what was there, changed."""
    own = run[0].harmonization.images

    def harmonize(images, fields_of_view):
        turned = {key: image.in_canonical_axes() for key, image in own.items()}
        out = {key: one.with_array(change(one.array)) for key, one in turned.items()}
        return Harmonization(out, {})

    return harmonize


def test_nothing_is_left_where_both_protocols_come_out_alike(run):
    scores = measured(run, again(run, lambda array: array)).harmonization.scores
    assert [scores[key]["protocol_residual"] for key in ("ct", "mr")] == [0, 0]


def test_a_shift_by_one_deviation_is_a_residual_of_one(run):
    grid = measures.OneGrid.of(*run[1:])
    arrays = {k: i.in_canonical_axes().array for k, i in run[0].harmonization.images.items()}
    spread = float(arrays["mr"][grid.bodies["mr"]].std(correction=0))
    scores = measured(run, again(run, lambda array: array + spread)).harmonization.scores
    assert scores["mr"]["protocol_residual"] == pytest.approx(1, abs=1e-3)


def test_each_method_gets_the_same_other_protocol(run):
    given = []

    def harmonize(images, fields_of_view):
        given.append(images)
        return HarmonizeBy()(images, fields_of_view)

    first, second = (measured(run, harmonize).harmonization.scores for _ in range(2))
    assert first == second
    assert torch.equal(given[0]["mr"].array, given[1]["mr"].array)
    assert not torch.equal(given[0]["mr"].array, run[1]["mr"].array)


def test_a_z_score_keeps_the_contrast_that_it_is_measured_by(run):
    result, images, fields = run
    scored = HarmonizeBy()(images, fields)
    by_z_score = replace(result, harmonization=scored)
    scores = measures.measured(by_z_score, images, fields, again(run, lambda a: a))
    assert scores.harmonization.scores["mr"]["contrast_kept"] == pytest.approx(1, abs=0.02)
    flat = {key: one.with_array(0.1 * one.array) for key, one in scored.images.items()}
    weak = replace(result, harmonization=replace(scored, images=flat))
    scores = measures.measured(weak, images, fields, again(run, lambda a: a))
    assert scores.harmonization.scores["mr"]["contrast_kept"] < 0.3


def test_similarity_is_there_for_a_method_that_says_nothing_of_it(run):
    result, images, fields = run
    silent = {
        key: replace(one, evidence=replace(one.evidence, similarity_before={}, similarity_after={}))
        for key, one in result.registrations.items()
    }
    silent_result = replace(result, registrations=silent)
    # the moving image lies on the reference: as like it as it is itself
    aligned = {**images, "mr": images["mr"].with_array(images["ct"].array)}
    found = measures.measured(silent_result, aligned, fields, again(run, lambda a: a))
    evidence = found.registrations["mr"].evidence
    assert evidence.similarity_after["nmi"] == pytest.approx(2)
    assert evidence.similarity_after["mind"] == pytest.approx(0)
    assert evidence.similarity_before["nmi"] < 1.9
    assert np.isfinite(evidence.similarity_before["mind"])


def test_how_even_a_field_is_needs_no_truth(run):
    found = measured(run, again(run, lambda array: array)).evaluation
    assert found["mr"] == {"sd_log_jacobian": 0.0, "inverse_consistency_mm": pytest.approx(0)}
    assert run[0].evaluation == {}  # a plain run leaves it out
