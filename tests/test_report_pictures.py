"""Colours mean what the legends say."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image as PilImage

from fusion_pipeline.data import Image
from fusion_pipeline.report import pictures


def test_windows_by_modality():
    ramp = torch.linspace(0, 1000, 5000).reshape(1, 50, 100)
    eye = np.eye(3)
    assert str(pictures.window_of(Image(ramp, eye, "ct", "HU"))) == "−160 to 240 HU"
    mr = pictures.window_of(Image(ramp, eye, "mr"))
    assert mr.low == pytest.approx(10, abs=2)
    assert mr.high == pytest.approx(995, abs=2)
    assert pictures.window_of(Image(ramp, eye, "pet", "SUV")).high == 10
    assert pictures.window_of(Image(ramp, eye, "spect", "counts")).high == pytest.approx(998, abs=2)
    flat = pictures.window_of(Image(torch.ones(1, 4, 4), eye, "mr"))
    assert flat.high > flat.low


def test_a_window_clips_and_takes_nan_for_black():
    values = np.array([[-200.0, 40.0, 300.0, np.nan]], np.float32)
    unit = pictures.Window(-160, 240, "HU").unit(values)
    assert unit.tolist() == [[0, 0.5, 1, 0]]


def test_checkerboard_takes_turns_and_dims_where_nothing_moves():
    fixed, moving = np.full((8, 8, 3), 0.8), np.full((8, 8, 3), 0.4)
    present = np.ones((8, 8), bool)
    present[:, 4:] = False
    board = pictures.checkerboard(fixed, moving, present, tile=4)
    assert board[0, 0] == pytest.approx(0.8)
    assert board[4, 0, 0] == pytest.approx(0.4)
    assert board[0, 4] == pytest.approx(board[4, 4])
    assert board[0, 4, 0] < 0.5


def test_edges_lie_on_the_rim_of_a_disc():
    rows, columns = np.indices((120, 140))
    radius = np.hypot(rows - 60, columns - 70)
    edges = pictures.edges_of((radius < 35).astype(np.float32), radius < 1e9, 0.8)
    assert edges.sum() > 150
    assert np.abs(radius[edges] - 35).max() < 2


def test_a_flat_or_faint_picture_has_no_edges():
    present = np.ones((60, 60), bool)
    noise = np.random.default_rng(0).normal(0.5, 0.03, (60, 60)).astype(np.float32)
    assert not pictures.edges_of(np.zeros((60, 60), np.float32), present, 1.0).any()
    assert not pictures.edges_of(noise, present, 1.0).any()


def test_contours_colour_their_line():
    edges = np.zeros((9, 9), bool)
    edges[4] = True
    drawn = pictures.contours(np.zeros((9, 9, 3), np.float32), edges)
    assert drawn[4, 4, 0] > 0.8
    assert drawn[0].max() < 0.01


def test_uptake_glows_and_leaves_cold_anatomy_grey():
    anatomy = np.full((1, 2, 3), 0.5, np.float32)
    uptake = np.array([[0.0, 1.0]], np.float32)
    out = pictures.emission_overlay(anatomy, uptake, np.ones((1, 2), bool))
    assert np.ptp(out[0, 0]) < 1e-6
    assert np.ptp(out[0, 1]) > 0.1


def test_jacobian_white_red_blue_and_folds_marked():
    determinant = np.ones((30, 30), np.float32)
    determinant[:8], determinant[22:], determinant[15, 15] = 2.0, 0.5, -0.1
    present = np.ones((30, 30), bool)
    present[12, 0] = False
    out = pictures.jacobian_picture(determinant, present)
    assert out[12, 28].min() > 0.98
    assert out[0, 5].tolist() == [1, 0, 0]
    assert out[29, 5].tolist() == [0, 0, 1]
    assert out[15, 15].max() == 0
    assert out[15, 17] == pytest.approx([1, 0.85, 0])
    assert out[12, 0].max() < 0.2


def test_sources_take_the_colour_of_the_heaviest():
    shares = np.array([[[1.0, 0.0]], [[0.0, 1.0]]], np.float32)
    colours = pictures.MODALITY_COLOURS[:2]
    out = pictures.mixture(np.full((1, 2), 0.7, np.float32), shares, colours)
    for pixel, colour in zip(out[0], colours, strict=True):
        assert pixel == pytest.approx(np.clip(np.asarray(colour) * 0.92, 0, 1), abs=1e-6)


def test_addresses_hold_whole_pictures():
    for uri, kind, size in (
        (pictures.jpeg_uri(np.zeros((5, 7, 3), np.float32)), "jpeg", (7, 5)),
        (pictures.bar_uri("viridis"), "png", (256, 2)),
    ):
        head, data = uri.split(",")
        assert head == f"data:image/{kind};base64"
        assert PilImage.open(io.BytesIO(base64.b64decode(data))).size == size
