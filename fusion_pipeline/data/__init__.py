"""Load a case once, checked, into world coordinates; write what a run leaves."""

from fusion_pipeline.data.datalist import (
    CaseFiles,
    case_from_entry,
    case_from_paths,
    default_reference,
    read_datalist,
)
from fusion_pipeline.data.image import (
    MODALITIES,
    TRANSFORMS,
    Case,
    Image,
    InputError,
    Modality,
    NoOverlapError,
    TransformKind,
    modality_of,
)
from fusion_pipeline.data.loading import load_case
from fusion_pipeline.data.pictures import recolour
from fusion_pipeline.data.reading import (
    read_displacement,
    read_image,
    read_labels,
    read_landmarks,
    spatial_dims_of,
)
from fusion_pipeline.data.refusals import monai_is_the_program, one_line_refusals
from fusion_pipeline.data.writing import (
    check_output_folder,
    write_displacement,
    write_image,
    write_labels,
    write_weights,
    written_whole,
)

__all__ = [
    "MODALITIES",
    "TRANSFORMS",
    "Case",
    "CaseFiles",
    "Image",
    "InputError",
    "Modality",
    "NoOverlapError",
    "TransformKind",
    "case_from_entry",
    "case_from_paths",
    "check_output_folder",
    "default_reference",
    "load_case",
    "modality_of",
    "monai_is_the_program",
    "one_line_refusals",
    "read_datalist",
    "read_displacement",
    "read_image",
    "read_labels",
    "read_landmarks",
    "recolour",
    "spatial_dims_of",
    "write_displacement",
    "write_image",
    "write_labels",
    "write_weights",
    "written_whole",
]
