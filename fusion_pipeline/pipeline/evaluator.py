"""`FusionEvaluator`: MONAI's evaluator over many cases, of which a bad one stops nothing."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.engines import Evaluator
from monai.transforms import Compose
from torch.utils.data import DataLoader

from fusion_pipeline.data import (
    Case,
    CaseFiles,
    InputError,
    cause_of,
    check_output_folder,
    monai_is_the_program,
    one_line_refusals,
)
from fusion_pipeline.data.refusals import is_memory_error, no_memory
from fusion_pipeline.dicom import DicomExport, IdentityOption, check_dicom_export
from fusion_pipeline.networks.multimodal_net import MultimodalNet
from fusion_pipeline.pipeline import bundle
from fusion_pipeline.pipeline.dataset import CaseDataset, LoadedCase
from fusion_pipeline.pipeline.fingerprint import RunFingerprint
from fusion_pipeline.pipeline.folder import check_case_folder
from fusion_pipeline.pipeline.inferer import FusionInferer
from fusion_pipeline.pipeline.pipeline import FusionPipeline
from fusion_pipeline.pipeline.result import PipelineResult
from fusion_pipeline.pipeline.shared_run import CaseQueue, SharedRun
from fusion_pipeline.pipeline.summary import Outcome, exit_code, read_report

logger = logging.getLogger("fusion_pipeline.run")


class SaveResult:
    """Postprocessing: write the folder of a case, ``<output_dir>/<id>/``.

    Args:
        output_dir: where the cases' folders go.
        dicom: write DICOM objects as well, into the folder ``dicom`` of each case.
        dicom_identity: ``copy`` or ``remove``, see `DicomExport`.
        patient_id: of input without an identity; empty: none.
        patient_name: the same.
    """

    @one_line_refusals()
    def __init__(
        self,
        output_dir: Path | str,
        *,
        dicom: bool | str = False,
        dicom_identity: IdentityOption = "copy",
        patient_id: str = "",
        patient_name: str = "",
    ) -> None:
        self.output_dir = Path(output_dir)
        export = DicomExport(dicom_identity, str(patient_id), str(patient_name))
        self.dicom = export if bundle.switch("dicom", dicom) else None

    def check(self, case: Case) -> None:
        """Refuse, before it runs, a case that cannot be written."""
        if self.dicom is not None:
            check_dicom_export(case, self.dicom)

    def __call__(self, result: PipelineResult) -> PipelineResult:
        """Write the files, whole or not at all."""
        result.save(self.output_dir / result.case.id, dicom=self.dicom)
        return result


class FusionEvaluator(Evaluator):
    """Run cases one after the other into one output folder.

    Rules beyond MONAI's: a case that raises is kept as failed and the next one runs; with
    ``resume`` a case whose report was made from the same input, settings and weights is skipped;
    `exit_code` tells how it went. The processes of ``torchrun`` share the cases through the
    loader's `CaseQueue`, and each of them ends with the outcomes of all.

    Args:
        val_data_loader: gives lists of one `LoadedCase`, from a `CaseDataset`.
        network: the parts that the stages hold.
        inferer: runs the stages.
        preprocessing: what made the cases; it decides the output as well.
        postprocessing: what each result goes through (`SaveResult`).
        val_handlers: MONAI's or ours.
        output_dir: where `SaveResult` puts the cases' folders.
        resume: skip what is done.
        fail_on_check: `exit_code` is 3 where no case failed and a registration is doubtful.

    Attributes:
        state.outcomes: an `Outcome` for each case so far; at the end those of all processes.
        shared: the run with the other processes.
    """

    @one_line_refusals()
    def __init__(  # noqa: PLR0913 - each is a component or switch that the config names
        self,
        *,
        val_data_loader: DataLoader[Any],
        network: MultimodalNet,
        inferer: FusionInferer,
        preprocessing: Compose,
        postprocessing: Compose,
        output_dir: Path | str,
        val_handlers: Sequence[Any] = (),
        resume: bool | str = False,
        fail_on_check: bool | str = False,
    ) -> None:
        if getattr(val_data_loader, "batch_size", 1) != 1:
            raise InputError(
                f"dataloader: expected batch_size 1, got {val_data_loader.batch_size}; each case "
                "is a batch of its own"
            )
        super().__init__(
            device=inferer.device,
            val_data_loader=val_data_loader,
            val_handlers=[_Gather(), *val_handlers],
            decollate=False,
        )
        self.logger.setLevel(logging.CRITICAL)  # ignite's own lines on starts and ends
        self.pipeline = FusionPipeline(network, preprocessing, inferer)
        self.save = postprocessing
        self.output_dir = Path(output_dir)
        self.resume = bundle.switch("resume", resume)
        self.fail_on_check = bundle.switch("fail_on_check", fail_on_check)
        self.state.outcomes = []
        self.shared = SharedRun()
        # behind the checkpoint loader, and before the DataLoader starts its workers
        self.add_event_handler(Events.STARTED, self._digest_weights)

    def run(self, global_epoch: int = 1) -> None:
        """Run all cases.

        Raises:
            InputError: the output folder cannot be written.
        """
        with one_line_refusals():
            check_output_folder(self.output_dir)
            self._share()
        self.state.outcomes = []
        with one_line_refusals():  # the checkpoint loader may refuse the weights
            super().run(global_epoch)
        self.shared.close()

    @property
    def exit_code(self) -> int:
        """Of a process that ran this, see `summary.exit_code`."""
        return exit_code(self.state.outcomes, fail_on_check=self.fail_on_check)

    def leave(self) -> None:
        """End ``python -m monai.bundle`` with `exit_code` unless it is 0; the log has said why.

        Any other program goes on, and may ask for `exit_code`.
        """
        if self.exit_code and monai_is_the_program():
            raise SystemExit(self.exit_code)

    def _digest_weights(self, _: Engine) -> None:
        """Fix what decides the output, once for all cases.

        Here and not where a case is loaded: a worker cannot read weights that lie on a GPU.
        """
        wanted = [str(step.dicom) for step in self._savers() if step.dicom is not None]
        self._fingerprint = replace(self.pipeline.run_fingerprint(), files=" ".join(wanted))
        if isinstance(self.data_loader.dataset, CaseDataset):
            self.data_loader.dataset.one_space = self.pipeline.inferer.only != "harmonize"
        if self.resume:
            self.data_loader.dataset.skip = _WasRun(self.output_dir, self._fingerprint)

    def gather(self) -> None:
        """Wait for the other processes, and take over what became of their cases."""
        self.shared.wait_for_others()
        if self.shared.size == 1:
            return
        cases = self.data_loader.dataset.data
        texts = [self.shared.outcome(number) for number in range(len(cases))]
        self.state.outcomes = [
            Outcome.lost(files.id) if text is None else Outcome.from_json(text)
            for files, text in zip(cases, texts, strict=True)
        ]
        if self.shared.writes:
            for outcome, text in zip(self.state.outcomes, texts, strict=True):
                if text is None:
                    logger.error("%s", outcome.message)

    def _share(self) -> None:
        """Start a run with the other processes of the program."""
        self.shared = SharedRun.of_this_program()
        sampler = getattr(self.data_loader, "sampler", None)
        if isinstance(sampler, CaseQueue):
            sampler.shared = self.shared
            self.state.cases = len(sampler.dataset)
            # None: ignite goes on until the queue is empty
            self.state.epoch_length = self.state.cases if self.shared.size == 1 else None
        elif self.shared.size > 1:
            raise InputError(
                f"dataloader: expected the sampler CaseQueue, to share the cases between "
                f"{self.shared.size} processes, got {type(sampler).__name__}; add it to the config"
            )
        else:
            self.state.cases = self.state.epoch_length

    def _iteration(self, engine: Engine, batchdata: Sequence[LoadedCase]) -> Outcome:
        """Run or skip one case; whatever it raises is kept."""
        loaded = batchdata[0]
        for earlier in self.state.outcomes[-1:]:  # it has been told
            forget_frames(earlier.error)
        start = time.perf_counter() - sum(s["wall_s"] for s in loaded.clock.timings.values())
        try:
            outcome = self._outcome(loaded, start)
        except Exception as raised:  # a case must not stop the others
            error = cause_of(raised)
            message = " ".join(str(error).split())
            if is_memory_error(error):
                message = no_memory(loaded.files.id)
            elif not isinstance(error, InputError):
                message = f"{loaded.files.id}: unexpected {type(error).__name__}: {message}"
            outcome = Outcome(loaded.files.id, "failed", message=message, error=error)
        self.state.outcomes.append(outcome)
        engine.state.ended = self.shared.finish(loaded.number, outcome.as_json())
        engine.state.batch = None  # the volumes of this case must not outlive it
        return outcome

    def _savers(self) -> list[SaveResult]:
        """The steps of the postprocessing that write folders."""
        return [step for step in self.save.transforms if isinstance(step, SaveResult)]

    def _outcome(self, loaded: LoadedCase, start: float) -> Outcome:
        """The outcome of a case that can be used."""
        if loaded.error is not None:
            raise loaded.error
        folder = self.output_dir / loaded.files.id
        if loaded.case is None:
            return Outcome.done(loaded.files.id, folder)
        check_case_folder(folder, loaded.files.series, self.pipeline.inferer.only)
        for step in self._savers():
            step.check(loaded.case)
        result = self.pipeline.infer(loaded.case, loaded.clock)
        self.save(replace(result, input_digest=self._fingerprint(loaded.files)))
        return Outcome.done(loaded.files.id, folder, seconds=time.perf_counter() - start)


@dataclass(frozen=True)
class _WasRun:
    """Whether an earlier run's report speaks of the same input; DataLoader workers ask it."""

    output_dir: Path
    fingerprint: RunFingerprint

    def __call__(self, files: CaseFiles) -> bool:
        """Compare the digest in the report with today's."""
        try:
            report = read_report(self.output_dir / files.id)
            return bool(report.get("input") == self.fingerprint(files))
        except (OSError, ValueError):  # no report, or a file is gone: the run will tell
            return False


class _Gather:
    """Handler before all others: at the end the outcomes are those of all processes."""

    def attach(self, engine: Engine) -> None:
        """Be called at the end."""
        engine.add_event_handler(Events.COMPLETED, FusionEvaluator.gather)


def forget_frames(error: BaseException | None) -> None:
    """Drop the tracebacks of a chain of errors: their frames hold the case's volumes."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
