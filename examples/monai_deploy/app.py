"""An application of MONAI Deploy around the pipeline. Research only; not a medical device.

python app.py --input study/ --output out/
monai-deploy package . --config app.yaml --tag fusion:0.1.0 --platform x86_64
"""

from pathlib import Path

import torch
from fusion_operator import FusionOperator
from monai.deploy.conditions import CountCondition
from monai.deploy.core import AppContext, Application


class FusionApp(Application):
    """CT, MR, PET and SPECT of one study: registered, harmonized, fused."""

    name = "fusion_pipeline"
    description = "Registers, harmonizes and fuses the CT, MR, PET and SPECT of one study."
    version = "0.1.0"

    def compose(self) -> None:
        """One operator, called once."""
        context = AppContext({})  # input and output as the command or the platform says
        fusion = FusionOperator(
            self,
            CountCondition(self, 1),
            input_folder=Path(context.input_path),
            output_folder=Path(context.output_path),
            device="cuda" if torch.cuda.is_available() else "cpu",
            name="fusion",
        )
        self.add_operator(fusion)


if __name__ == "__main__":
    FusionApp().run()
