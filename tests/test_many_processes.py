"""Eight small pictures, one of them broken, by several processes: each once, whoever is killed."""

import csv
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from fusion_pipeline.pipeline import bundle_for
from fusion_pipeline.synthesis import synthetic_patient

pytestmark = pytest.mark.slow
GOOD = [f"p{number}" for number in range(7)]
IDS = [*GOOD[:3], "bad", *GOOD[3:]]
MEASURED = {"seconds", "wall_s", "cpu_s", "peak_memory_mb"}  # of a run, not of its result
COMMAND = ("-m", "fusion_pipeline", "run", "--refine-steps", "0", "--datalist")
TORCHRUN = ("-m", "torch.distributed.run")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds ``list.json``, and ``alone``: the results of one process."""
    root = tmp_path_factory.mktemp("cohort")
    entries = {}
    for number, name in enumerate(GOOD):
        datalist = synthetic_patient(number, spatial_dims=2, size="small").save(root / name)
        entry = json.loads(datalist.read_text())["testing"][0]
        images = {key: f"{name}/{entry[key]}" for key in ("ct", "mr")}
        move = "deformable" if number == 5 else "none"  # the others are quick
        entries[name] = {"id": name, **images, "mr_transform": move}
    entries["bad"] = {**entries["p0"], "id": "bad", "ct": "lost.png"}
    (root / "list.json").write_text(json.dumps({"testing": [entries[name] for name in IDS]}))
    done = started(*COMMAND, root / "list.json", "--output", root / "alone")
    assert ended(done)[0] == 1
    return root


def started(*arguments):
    """The process of a Python program, on one thread."""
    repository = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": repository, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def ended(process, before=""):
    """Exit code and output."""
    output, _ = process.communicate(timeout=500)
    return process.returncode, before + output


def killed_after_two_cases(process, word):
    """Kill one of the processes whose command line holds a word; the output so far."""
    lines = []
    while "[2/8]" not in "".join(lines):
        lines.append(process.stdout.readline())
        assert lines[-1], "".join(lines)
    time.sleep(0.3)  # it has taken the next case by now
    victims = [p for p in psutil.Process(process.pid).children() if word in p.cmdline()]
    assert len(victims) == 2
    victims[1].kill()
    return "".join(lines)


def runs_of(output):
    """How often each case was run to its end."""
    return Counter(re.findall(r"\] (\w+): ok in", output))


def rows(folder):
    with (folder / "summary.csv").open() as stream:
        return {row["id"]: row for row in csv.DictReader(stream)}


def compare(out, alone):
    """The same files, byte for byte; of reports and summary all but what was measured."""
    assert {path.name for path in out.iterdir()} == {*GOOD, "summary.csv", "summary.html"}
    for name in GOOD:
        ours, theirs = out / name, alone / name
        assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()}
        for path in ours.iterdir():
            if path.name not in ("report.json", "report.html"):
                assert path.read_bytes() == (theirs / path.name).read_bytes(), path
        reports = [json.loads((side / "report.json").read_text()) for side in (ours, theirs)]
        for report in reports:
            assert report.pop("timings")
            assert report.pop("peak_memory_mb")
        assert reports[0] == reports[1]
    ours, theirs = rows(out), rows(alone)
    assert list(ours) == IDS
    for name, row in ours.items():
        status = "failed" if name == "bad" else row["status"]
        assert status in ("ok", "skipped", "failed")
        for column in row.keys() - MEASURED - {"status"}:
            assert row[column] == theirs[name][column], (name, column)


def test_the_processes_of_jobs_and_one_that_is_killed(folder):
    out = folder / "jobs"
    arguments = (*COMMAND, folder / "list.json", "--output", out, "--jobs", "2")
    first = started(*arguments)
    code, output = ended(first, killed_after_two_cases(first, "--multiprocessing-fork"))
    assert code == 1
    assert "process 2 of 2 was ended by SIGKILL" in output
    (lost,) = re.findall(r"(p\d): its process ended before it was done", output)
    statuses = {name: row["status"] for name, row in rows(out).items()}
    assert statuses == dict.fromkeys(GOOD, "ok") | {"bad": "failed", lost: "failed"}
    assert list(statuses) == IDS

    code, rest = ended(started(*arguments, "--resume"))
    assert code == 1  # the broken case
    assert runs_of(rest) == {lost: 1}
    assert runs_of(output) + runs_of(rest) == Counter(GOOD)
    assert rest.count("lost.png") == 1
    compare(out, folder / "alone")


def test_the_processes_of_torchrun_and_one_that_is_killed(folder):
    out = folder / "torchrun"
    launch = (*TORCHRUN, "--standalone", "--nproc_per_node", "2")
    arguments = (*launch, *COMMAND, folder / "list.json", "--output", out)
    first = started(*arguments)
    code, output = ended(first, killed_after_two_cases(first, "fusion_pipeline"))
    assert code == 1
    assert not (out / "summary.csv").exists()  # torchrun ended the other process as well

    code, rest = ended(started(*arguments, "--resume"))
    assert code == 1  # the broken case
    assert runs_of(output) + runs_of(rest) == Counter(GOOD)
    assert "[8/8]" in rest
    compare(out, folder / "alone")


def test_the_bundle_on_two_nodes(folder):
    out, bundle = folder / "nodes", bundle_for(2)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"127.0.0.1:{port}"
    launch = (*TORCHRUN, "--nnodes", "2", "--nproc_per_node", "1", "--rdzv_backend", "c10d")
    config = (bundle / "configs" / "inference.json", "--bundle_root", bundle)
    options = ("--datalist", folder / "list.json", "--output_dir", out, "--refine_steps", "0")
    run = ("--rdzv_endpoint", address, "-m", "monai.bundle", "run", "--config_file")
    nodes = [started(*launch, *run, *config, *options) for _ in range(2)]
    results = [ended(node) for node in nodes]
    assert [code for code, _ in results] == [1, 1]  # the broken case
    each = [runs_of(output) for _, output in results]
    assert each[0] + each[1] == Counter(GOOD)
    assert all(each)
    assert sum("case  status" in output for _, output in results) == 1
    compare(out, folder / "alone")
