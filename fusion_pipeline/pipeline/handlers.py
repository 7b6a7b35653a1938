"""Handlers of `FusionEvaluator`, attached as MONAI's are: progress, summary, evaluation."""

import logging
from pathlib import Path

from ignite.engine import Engine, Events

from fusion_pipeline.data import written_whole
from fusion_pipeline.pipeline.fingerprint import weights_digest
from fusion_pipeline.pipeline.summary import Outcome, as_csv, as_table
from fusion_pipeline.pipeline.traditional import OURS
from fusion_pipeline.report import CohortCase, render_cohort

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
    """At the end of more than one case ``summary.csv``, ``summary.html``, and a table in the log.

    Where several processes share the run, one of them writes them.

    Args:
        output_dir: gets the files.
    """

    def __init__(self, output_dir: Path | str) -> None:
        self.path = Path(output_dir) / "summary.csv"
        self.page = self.path.with_suffix(".html")

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
        cases = [CohortCase(one.id, one.status, one.message, one.numbers) for one in outcomes]
        flat = engine.pipeline.network.registration.spatial_dims == 2
        length = "px" if flat else "mm"
        with written_whole(self.page) as aside:
            aside.write_text(render_cohort(cases, length), encoding="utf-8")
        logger.info("\n%s\nsummary: %s", as_table(outcomes), self.page)


class EvaluationHandler:
    """At the end the scores of all cases with their statistics over patients, and a page.

    The files are those of ``fusion-pipeline evaluate``: ``scores.csv``, ``summary.json``, ``.md``,
    ``.tex`` and ``study.html``.

    Args:
        output_dir: with the cases' folders; gets the files.
    """

    def __init__(self, output_dir: Path | str) -> None:
        self.output_dir = Path(output_dir)

    def attach(self, engine: Engine) -> None:
        """Be called at the end."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the evaluation."""
        if not engine.shared.writes:
            return
        from fusion_pipeline.pipeline import study  # late: inference draws no such page

        weights = frozenset({weights_digest(engine.pipeline.network)})
        done = study.MethodRun(OURS, self.output_dir, engine.state.outcomes, weights)
        study.write_study(list(engine.data_loader.dataset.data), [done], self.output_dir)
        logger.info("study: %s", self.output_dir / study.PAGE)
