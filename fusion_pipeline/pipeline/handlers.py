"""Handlers of `FusionEvaluator`, attached as MONAI's are: progress, summary, evaluation."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from ignite.engine import Engine, Events

from fusion_pipeline.data import written_whole
from fusion_pipeline.evaluation import Scores
from fusion_pipeline.pipeline.summary import Outcome, as_csv, as_table

logger = logging.getLogger("fusion_pipeline.run")


class ProgressHandler:
    """A line in the log for each case: done (``INFO``), or why not (``ERROR``).

    Each doubtful registration of a case that is done has a line of its own (``WARNING``), which
    begins with ``CHECK``.
    """

    def attach(self, engine: Engine) -> None:
        """Be called after each case."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Log the case that just ended."""
        outcome: Outcome = engine.state.output
        if outcome.status == "failed":
            wanted = logger.isEnabledFor(logging.DEBUG)
            logger.error("%s", outcome.message, exc_info=outcome.error if wanted else None)
            return
        seconds = outcome.numbers.get("seconds")
        took = f" in {seconds:.1f} s" if isinstance(seconds, float) else ""
        done = f"[{engine.state.ended}/{engine.state.cases}]"
        logger.info("%s %s: %s%s", done, outcome.id, outcome.status, took)
        for key, reason in outcome.checks.items():
            logger.warning("CHECK %s: %s: %s", outcome.id, key, reason)


class SummaryHandler:
    """At the end of more than one case ``summary.csv``, and a table in the log.

    Where several processes share the run, one of them writes it.

    Args:
        output_dir: gets the file.
    """

    def __init__(self, output_dir: Path | str) -> None:
        self.path = Path(output_dir) / "summary.csv"

    def attach(self, engine: Engine) -> None:
        """Be called at the end."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the summary."""
        outcomes = engine.state.outcomes
        if len(outcomes) < 2 or not engine.shared.writes:
            return
        with written_whole(self.path) as aside:
            aside.write_text(as_csv(outcomes), encoding="utf-8")
        logger.info("\n%s", as_table(outcomes))


class EvaluationHandler:
    """At the end ``evaluation.json``: the means of what the cases' truths say.

    Beside each mean stands how many cases have that number (``n``); ``cases`` counts those that
    have a truth.

    Args:
        output_dir: gets the file.
    """

    def __init__(self, output_dir: Path | str) -> None:
        self.path = Path(output_dir) / "evaluation.json"

    def attach(self, engine: Engine) -> None:
        """Be called at the end."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the evaluation."""
        if not engine.shared.writes:
            return
        scores = [one.evaluation for one in engine.state.outcomes if one.evaluation]
        content = {"cases": len(scores), **averaged(scores)}
        with written_whole(self.path) as aside:
            aside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def averaged(scores: Sequence[Mapping[str, Scores]]) -> dict[str, dict[str, dict[str, float]]]:
    """The mean of each number over the cases that have it, per moving key, and how many have it.

    >>> averaged([{"mr": {"dice_after": 1.0}}, {"mr": {"dice_after": 0.5}}])
    {'mean': {'mr': {'dice_after': 0.75}}, 'n': {'mr': {'dice_after': 2}}}
    """
    from fusion_pipeline.metrics import MeanScore  # late: inference needs no torchmetrics

    means: dict[str, dict[str, MeanScore]] = {}
    for case in scores:
        for key, values in case.items():
            for name, value in values.items():
                metrics = means.setdefault(key, {})
                if name not in metrics:
                    metrics[name] = MeanScore().set_dtype(torch.float64)
                metrics[name].update([value])
    return {
        "mean": {k: {n: float(m.compute()) for n, m in ms.items()} for k, ms in means.items()},
        "n": {k: {n: int(m.count) for n, m in ms.items()} for k, ms in means.items()},
    }
