"""The pipeline as an operator of MONAI Deploy."""

from pathlib import Path
from typing import Any

from monai.deploy.core import Fragment, Operator, OperatorSpec
from series import case_of_study

from fusion_pipeline import FusionPipeline


class FusionOperator(Operator):
    """Registers, harmonizes and fuses one study; emits the folder of the results.

    Args:
        fragment: the application.
        input_folder: DICOM files of one study.
        output_folder: gets the folder ``case``.
        model_path: a bundle; None: the packaged one.
        device: ``cpu``, ``cuda`` or ``cuda:1``.
    """

    def __init__(
        self,
        fragment: Fragment,
        *args: Any,
        input_folder: Path,
        output_folder: Path,
        model_path: Path | None = None,
        device: str = "cpu",
        **kwargs: Any,
    ) -> None:
        self.input_folder = Path(input_folder)
        self.output_folder = Path(output_folder)
        self.model_path = model_path
        self.device = device
        super().__init__(fragment, *args, **kwargs)  # the last one, as the SDK asks for

    def setup(self, spec: OperatorSpec) -> None:
        """One output: the folder of the results."""
        spec.output("results")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Run the study."""
        pipeline = FusionPipeline.from_bundle(self.model_path, device=self.device)
        result = pipeline(case_of_study(self.input_folder))
        result.save(self.output_folder / "case")
        op_output.emit(self.output_folder / "case", "results")
