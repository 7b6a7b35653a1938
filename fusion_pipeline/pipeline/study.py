"""A study: the cases of a datalist by one or several methods, and what their scores say."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

import fusion_pipeline
from fusion_pipeline.baselines import ENGINES
from fusion_pipeline.data import CaseFiles, InputError, read_image, written_whole
from fusion_pipeline.evaluation import page, tables
from fusion_pipeline.evaluation.rows import as_csv
from fusion_pipeline.evaluation.scores import START, Score, scores_of
from fusion_pipeline.pipeline.evaluator import FusionEvaluator
from fusion_pipeline.pipeline.fingerprint import weights_digest
from fusion_pipeline.pipeline.summary import Outcome, read_report
from fusion_pipeline.pipeline.summary import as_csv as as_csv_of_outcomes
from fusion_pipeline.pipeline.traditional import OURS, STAGES, Chain

logger = logging.getLogger("fusion_pipeline.run")

PAGE = "study.html"
CASES = "cases"  # folder of the results, one folder for each method in it
TRADITIONAL = "traditional"
_ALL = "all"
_THUMBNAIL = 160  # pixels


@dataclass(frozen=True)
class Method:
    """One way to make results.

    Attributes:
        name: in tables, and of its folder.
        chain: what does each stage; None: the bundle.
    """

    name: str
    chain: Chain | None = None

    @property
    def uses_networks(self) -> bool:
        """Whether trained weights decide something of it."""
        return self.chain is None or self.chain.uses_networks

    @property
    def overrides(self) -> dict[str, object]:
        """Ids of the bundle's config and their values."""
        common: dict[str, object] = {"inferer#measure": True}
        if self.chain is None:
            return common
        stages = {f"inferer#{name}": value for name, value in asdict(self.chain).items()}
        return common | stages | {"inferer#_target_": "fusion_pipeline.pipeline.TraditionalInferer"}


@dataclass(frozen=True)
class MethodRun:
    """What one method left.

    Attributes:
        method: its name.
        folder: with a folder for each case.
        outcomes: of all cases.
        weights: digests of the networks that decided something of it.
    """

    method: str
    folder: Path
    outcomes: Sequence[Outcome]
    weights: frozenset[str] = frozenset()


def methods_against(what: Sequence[str] = (), *, spatial_dims: int = 3) -> list[Method]:
    """The methods of a study, ours first.

    Args:
        what: each ``register+harmonize+fuse`` by names of `STAGES`, where ``ours`` leaves a stage
            as it is and ``all`` takes every method of a stage, of engines those that are
            installed and register images of these dimensions; ``traditional``:
            ``mutual-information+z-score+average``; ``stages``: that, and ours with one of its
            stages at a time.
        spatial_dims: of the images.

    Raises:
        InputError: a name that is not one of these, or an engine that is not installed or made for
            other dimensions.
    """
    methods = [Method(OURS)]
    for name in what:
        chains = [one.chain for one in methods]
        methods += [one for one in _methods(name, spatial_dims) if one.chain not in chains]
    for method in methods[1:]:
        if method.chain is not None:
            method.chain.check_usable(spatial_dims)  # before the first case runs
    return methods


def _methods(name: str, spatial_dims: int) -> list[Method]:
    """What one word of ``--against`` stands for."""
    if name == TRADITIONAL:
        return [Method(TRADITIONAL, Chain())]
    if name == "stages":
        usual = asdict(Chain())
        alone = [Chain(**{s: usual[s] if s == one else OURS for s in STAGES}) for one in STAGES]
        return [Method(TRADITIONAL, Chain()), *(Method(str(chain), chain) for chain in alone)]
    parts = name.split("+")
    if len(parts) != len(STAGES) or set(parts) == {OURS}:
        raise InputError(f"--against: expected {_names()}, got {name!r}; correct it")
    choices = [
        _offered(stage, spatial_dims) if part == _ALL else [part]
        for stage, part in zip(STAGES, parts, strict=True)
    ]
    try:
        chains = [Chain(*chosen) for chosen in product(*choices)]
    except InputError as error:
        raise InputError(f"--against {name}: {error}") from error
    return [Method(str(chain), chain) for chain in chains]


def _offered(stage: str, spatial_dims: int) -> list[str]:
    """All methods of a stage that can run here."""
    if stage != "register":
        return list(STAGES[stage])
    return [
        name
        for name, engine in ENGINES.items()
        if engine.installed and spatial_dims in engine.dimensions
    ]


def _names() -> str:
    """All that can be asked for."""
    lists = "+".join(f"{{{', '.join(STAGES[stage])}}}" for stage in STAGES)
    return f"{TRADITIONAL}, stages, or {lists} (each also {OURS} or {_ALL})"


def run_study(
    cases: Sequence[CaseFiles],
    methods: Sequence[Method],
    evaluators_of: Callable[[Method, Path], Iterable[FusionEvaluator]],
    output: Path,
    diagnose: Callable[[], page.Section] | None = None,
) -> int:
    """Run all cases by all methods, and write what their scores say.

    Leaves ``scores.csv`` (a row for each score), ``summary.json``, ``summary.md``, ``summary.tex``
    and ``study.html`` in ``output``, and each case's folder in ``output/cases/<method>/<id>``.

    Args:
        cases: of a datalist.
        methods: the first one is compared with the others.
        evaluators_of: method and folder → what runs it; several where each has its own cases and
            weights (cross-validation), which together run every case once.
        output: the folder.
        diagnose: what follows the last case, and gives a part of the page.

    Returns:
        0; 1 where a case failed by some method.
    """
    done: list[MethodRun] = []
    for method in methods:
        logger.info("method: %s", method.name)
        folder = output / CASES / method.name
        outcomes: list[Outcome] = []
        weights: set[str] = set()
        for evaluator in evaluators_of(method, folder):
            evaluator.run()
            outcomes += evaluator.state.outcomes
            if method.uses_networks:
                weights.add(weights_digest(evaluator.pipeline.network))
        with written_whole(folder / "summary.csv") as aside:  # of all parts, not of the last one
            aside.write_text(as_csv_of_outcomes(outcomes), encoding="utf-8")
        done.append(MethodRun(method.name, folder, outcomes, frozenset(weights)))
    sections: list[page.Section] = []
    try:
        sections += [] if diagnose is None else [diagnose()]
    finally:  # the scores do not depend on it
        failures = write_study(cases, done, output, sections)
    return 1 if failures else 0


def write_study(
    cases: Sequence[CaseFiles],
    done: Sequence[MethodRun],
    output: Path,
    sections: Sequence[page.Section] = (),
) -> int:
    """Write what the scores of finished cases say.

    Leaves ``scores.csv`` (a row for each score), ``summary.json``, ``summary.md``, ``summary.tex``
    and ``study.html`` in ``output``.

    Args:
        cases: that were run; they tell whose each one is.
        done: a record for each method; the first one is compared with the others.
        output: the folder.
        sections: other parts of the page.

    Returns:
        How many runs failed.
    """
    patients = {files.id: files.patient or files.id for files in cases}
    first = done[0].method
    scores: list[Score] = []
    failed: dict[str, str] = {}
    for one in done:
        for outcome in one.outcomes:
            if outcome.status == "failed":
                failed[f"{outcome.id} ({one.method})"] = outcome.message
                continue
            report = read_report(one.folder / outcome.id)
            of_case = scores_of(report, patient=patients[outcome.id], method=one.method)
            # where the headers place the images is the same for all methods
            scores += [s for s in of_case if s.method != START or one is done[0]]
    facts = {
        "cases": len(patients),
        "patients": len(set(patients.values())),
        "methods": [one.method for one in done],
        "failed": len(failed),
        "failures": failed,
        "version": fusion_pipeline.__version__,
        "weights": sorted(frozenset().union(*(one.weights for one in done))),
    }
    summaries = tables.summary_rows(scores)
    comparisons = tables.comparison_rows(scores, first)
    rows = page.sorted_cases(scores, first, _reports(done[0], output), failed)
    texts = {
        "scores.csv": as_csv(scores, Score),
        "summary.json": tables.as_json(summaries, comparisons, facts),
        "summary.md": tables.as_markdown(summaries, comparisons),
        "summary.tex": tables.as_latex(summaries, comparisons),
        PAGE: page.render_page(scores, summaries, comparisons, rows, facts, sections),
    }
    for name, text in texts.items():
        with written_whole(output / name) as aside:
            aside.write_text(text, encoding="utf-8")
    return len(failed)


def _reports(done: MethodRun, output: Path) -> dict[str, tuple[str, str]]:
    """Per case the paths of its report and of its thumbnail, relative to the page."""
    reports = {}
    for outcome in done.outcomes:
        if outcome.status == "failed":
            continue
        folder = done.folder / outcome.id
        picture = Path("thumbnails") / f"{outcome.id}.png"
        _thumbnail(folder, output / picture)
        page_of_case = f"{folder.relative_to(output).as_posix()}/report.html"
        reports[outcome.id] = (page_of_case, picture.as_posix())
    return reports


def _thumbnail(folder: Path, target: Path) -> None:
    """The fused image, or its middle axial slice, small; the patient's right on the left."""
    fused = read_report(folder)["files"]["fused"]
    image = read_image(str(folder / fused), "mr")[0].in_canonical_axes()
    array = image.array[0].numpy()
    if array.ndim == 3:
        array = array[..., array.shape[2] // 2]
    top = float(array.max()) or 1.0
    # rows from anterior to posterior, columns from right to left
    grey = np.clip(array / top * 255, 0, 255).astype(np.uint8).T[::-1, ::-1]
    small = Pillow.fromarray(np.ascontiguousarray(grey))
    sides = image.spacing[:2] * np.array(array.shape)
    width, height = (max(1, round(_THUMBNAIL * float(s) / float(sides.max()))) for s in sides)
    with written_whole(target) as aside:
        small.resize((width, height)).save(aside)


__all__ = [
    "CASES",
    "PAGE",
    "TRADITIONAL",
    "Method",
    "MethodRun",
    "methods_against",
    "run_study",
    "write_study",
]
