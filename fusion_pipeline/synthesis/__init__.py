"""Made-up bodies: random contrasts to train on, and whole patients with a known truth.

For training, everything is torch, without a batch, and drawn from a `torch.Generator`::

    labels = body_label_map((64, 64, 64), generator, "limb")  # or random_label_map
    image = paint(labels, generator)                          # any contrast
    ct = paint(labels, generator, style="ct", means=tissue_means("ct", generator))
"""

from fusion_pipeline.synthesis.anatomy import Body, body_label_map
from fusion_pipeline.synthesis.deformation import Deformation, random_deformation
from fusion_pipeline.synthesis.diagnosis import (
    DiagnosticPatient,
    diagnostic_patient,
    save_cohort,
)
from fusion_pipeline.synthesis.frame import Tissue
from fusion_pipeline.synthesis.painting import (
    STYLES,
    Style,
    paint,
    random_field_of_view,
    random_label_map,
    random_velocity,
)
from fusion_pipeline.synthesis.patients import SyntheticPatient, synthetic_patient
from fusion_pipeline.synthesis.protocols import (
    ProtocolRanges,
    any_contrast,
    narrower_field_of_view,
    other_contrast,
    other_protocol,
)
from fusion_pipeline.synthesis.tissues import tissue_means, tissue_values
from fusion_pipeline.synthesis.units import in_own_units

__all__ = [
    "STYLES",
    "Body",
    "Deformation",
    "DiagnosticPatient",
    "ProtocolRanges",
    "Style",
    "SyntheticPatient",
    "Tissue",
    "any_contrast",
    "body_label_map",
    "diagnostic_patient",
    "in_own_units",
    "narrower_field_of_view",
    "other_contrast",
    "other_protocol",
    "paint",
    "random_deformation",
    "random_field_of_view",
    "random_label_map",
    "random_velocity",
    "save_cohort",
    "synthetic_patient",
    "tissue_means",
    "tissue_values",
]
