"""What a training step costs on one CPU core: seconds and memory of each phase and shape.

    python benchmarks/training_cost.py --out out/training_cost.md

Each phase and shape in a process of its own, with the bundle's module and data from no weights:
batches of one painted sample, one thread, float32. CPU time, not wall time: other work on the
machine counts for little. A step is forward, backward and AdamW, without the first one, which
allocates; of the registration's, a quarter has a second pass. Making the sample stands apart:
workers do that beside the steps, and the registration uses each sample twice. Memory is the largest
of the whole process, imports included. About five CPU minutes.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import resource
import tempfile
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from monai.bundle import ConfigParser

from fusion_pipeline.pipeline import bundle_for
from fusion_pipeline.pipeline.bundle import override
from fusion_pipeline.training import Trainer, fit

PHASES = ("registration", "harmonization", "fusion", "all")
SHAPES: dict[int, tuple[int, ...]] = {3: (49, 65, 97), 2: (129, 161, 193)}
STEPS = 3  # the first one allocates; of a registration the second one has a second pass


class Clock(pl.Callback):
    """CPU seconds of each step of this process."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._begun = 0.0

    def on_train_batch_start(self, *_: object) -> None:
        """A batch is there."""
        self._begun = time.process_time()

    def on_train_batch_end(self, *_: object) -> None:
        """The weights are updated."""
        self.seconds.append(time.process_time() - self._begun)


def peak_mib() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(dims: int, phase: str, side: int) -> dict[str, Any]:
    """Seconds of a sample and of a step, and memory, in this process."""
    configs = bundle_for(dims) / "configs"
    overlay = [] if phase == "all" else [str(configs / f"train_{phase}.json")]
    parser = ConfigParser()
    parser.read_config([str(configs / "train.json"), *overlay])
    parser["bundle_root"] = str(bundle_for(dims))
    override(
        parser,
        {
            "pretrained": False,
            "data#shape": [side] * dims,
            "data#samples_per_epoch": STEPS,
            "data#twice": False,
            "data#validation_samples": 1,
            **({"objective#second_pass_every": 2} if phase == "registration" else {}),
        },
    )
    parser.parse()
    module, data = parser.get_parsed_content("module"), parser.get_parsed_content("data")
    samples, begun = data.train_dataset(1), time.process_time()
    for index in range(2):
        samples[index]
    painting = (time.process_time() - begun) / 2
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        trainer = Trainer(
            default_root_dir=folder,
            accelerator="cpu",
            max_steps=STEPS,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[clock],
            gradient_clip_val=1.0,
        )
        fit(trainer, module, data, weights="last")
    _, second, third = clock.seconds
    share = 0.25 if phase == "registration" else 0.5  # of the second step
    return {
        "dims": dims,
        "phase": phase,
        "side": side,
        "sample_s": painting,
        "step_s": share * second + (1 - share) * third,
        "peak_mib": peak_mib(),
    }


def _in_a_child(connection: Connection, *what: Any) -> None:  # noqa: ANN401 - of `measured`
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    connection.send(measured(*what))


def alone(*what: Any) -> dict[str, Any]:  # noqa: ANN401 - of `measured`
    """In a process of its own, which shares the imports."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_in_a_child, args=(there, *what))
    child.start()
    there.close()
    try:
        result: dict[str, Any] = here.recv()
    except EOFError:
        raise RuntimeError(f"{what}: the process ended without a result") from None
    child.join()
    return result


def markdown(rows: list[dict[str, Any]], imports: float) -> str:
    """A line for each shape, a column for each phase."""
    lines = [
        f"| shape | to make a sample, s | {' | '.join(PHASES)} |",
        "|---|---|" + "---|" * len(PHASES),
    ]
    for dims, side in sorted({(r["dims"], r["side"]) for r in rows}, key=lambda x: (-x[0], x[1])):
        own = {r["phase"]: r for r in rows if (r["dims"], r["side"]) == (dims, side)}
        cells = [
            f"{r['step_s']:.2g} s, {r['peak_mib']:,.0f} MiB" if r else "–"
            for r in (own.get(phase) for phase in PHASES)
        ]
        made = [r["sample_s"] for r in own.values()]
        name = f"{side}{'²' if dims == 2 else '³'}"
        lines.append(f"| {name} | {min(made):.2g} to {max(made):.2g} | {' | '.join(cells)} |")
    cpu = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = (cpu.ru_utime + cpu.ru_stime) / 60
    said = f"Of the memory, {imports:,.0f} MiB are the imports. {spent:.1f} CPU minutes in all."
    return "\n".join(lines) + f"\n\n{said}\n"


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="gets the table; beside it, as .json, the numbers")
    parser.add_argument("--phases", nargs="+", default=list(PHASES), choices=PHASES)
    parser.add_argument("--spatial-dims", type=int, nargs="+", default=[2, 3], choices=(2, 3))
    options = parser.parse_args()
    rows = []
    for dims in options.spatial_dims:
        for side in SHAPES[dims]:
            for phase in options.phases:
                rows.append(alone(dims, phase, side))
                print(json.dumps(rows[-1]), flush=True)
    table = markdown(rows, peak_mib())
    print(table)
    if options.out is not None:
        options.out.write_text(table, encoding="utf-8")
        options.out.with_suffix(".json").write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
