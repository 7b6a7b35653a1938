"""Where a run is: one line for each stage, counting on a terminal, plain elsewhere."""

import io
import logging
import re
import sys
import time

import pytest

import fusion_pipeline.cli.progress as progress_module
from fusion_pipeline.cli.progress import Progress, shown_progress
from fusion_pipeline.cli.terminal import log_to_terminal
from fusion_pipeline.pipeline.clock import Clock


class Screen(io.StringIO):
    """A stream that says whether it is a terminal."""

    def __init__(self, *, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.fixture
def logged(monkeypatch):
    """The logger of the stages, as a command leaves it; no shared run."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    logger = logging.getLogger("fusion_pipeline.progress")
    before = logger.handlers[:], logger.level, logger.propagate
    logger.handlers.clear()
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    yield logger
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


def two_stages():
    clock = Clock(case="p1")
    with clock.stage("load"):
        pass
    with clock.stage("register", has_steps=True):
        pass
    with clock.stage("fuse"):
        pass


def test_elsewhere_each_stage_is_a_plain_line(logged):
    screen = Screen(terminal=False)
    logged.addHandler(Progress(screen))
    two_stages()
    assert re.sub(r"\d+ s", "0 s", screen.getvalue()) == "     0 s  p1: load\n     0 s  p1: fuse\n"


def test_on_a_terminal_the_line_counts_and_ends_with_its_seconds(logged, monkeypatch):
    monkeypatch.setattr(progress_module, "_TICK_S", 0.01)
    screen = Screen(terminal=True)
    logged.addHandler(Progress(screen))
    clock = Clock(case="p1")
    with clock.stage("load"):
        deadline = time.monotonic() + 20
        while screen.getvalue().count("p1: load") < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    with clock.stage("fuse"):
        pass
    lines = screen.getvalue().split("\n")
    assert lines[0].count("\r\x1b[2K") >= 3
    assert re.search(r"p1: load, \d+\.\d s$", lines[0])
    assert re.search(r"p1: fuse, \d+\.\d s$", lines[1])
    assert lines[2] == ""
    shown = screen.getvalue()
    time.sleep(0.05)
    assert screen.getvalue() == shown  # nothing counts on


def test_processes_that_share_a_terminal_write_plain_lines(logged, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    screen = Screen(terminal=True)
    logged.addHandler(Progress(screen))
    two_stages()
    assert "\r" not in screen.getvalue()
    assert screen.getvalue().count("\n") == 2


def test_quiet_is_quiet(logged, capsys):
    with shown_progress(quiet=True):
        two_stages()
    assert capsys.readouterr().err == ""
    with shown_progress(quiet=False):
        two_stages()
    assert len(capsys.readouterr().err.splitlines()) == 2
    two_stages()
    assert capsys.readouterr() == ("", "")  # the command is over


def test_a_message_starts_on_a_line_of_its_own(logged, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr", Screen(terminal=True))
    log_to_terminal(debug=False)
    with shown_progress(quiet=False):
        logged.info("loading libraries")
        logging.getLogger("fusion_pipeline").error("p1: no such file")
        shown = sys.stderr.getvalue()
    assert shown.splitlines()[-1] == "p1: no such file"
    assert sys.stderr.getvalue() == shown


def test_a_stage_that_fails_leaves_a_whole_line(logged):
    screen = Screen(terminal=True)
    logged.addHandler(Progress(screen))
    clock = Clock(case="p1")
    with pytest.raises(ZeroDivisionError), clock.stage("fuse"):
        raise ZeroDivisionError
    assert screen.getvalue().endswith(" s\n")
    assert clock.timings["fuse"]["wall_s"] >= 0
