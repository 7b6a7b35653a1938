"""Load a case once, checked, into world coordinates; write what a run leaves."""

from fusion_pipeline.data.checked_image import CheckImage, CheckImaged
from fusion_pipeline.data.datalist import (
    FEWEST_IMAGES,
    CaseFiles,
    SeriesFiles,
    case_from_entry,
    case_from_paths,
    default_reference,
    read_datalist,
)
from fusion_pipeline.data.dicom_files import files_in
from fusion_pipeline.data.headers import check_case_headers
from fusion_pipeline.data.image import (
    TRANSFORMS,
    Case,
    Identity,
    Image,
    InputError,
    NoOverlapError,
    Prepared,
    Series,
    TransformKind,
)
from fusion_pipeline.data.itk_transforms import read_transform, write_transform
from fusion_pipeline.data.loading import (
    Preprocessing,
    cause_of,
    load_case,
    prepare_case,
    prepare_image,
    read_image,
    reading,
    refusal_within,
)
from fusion_pipeline.data.palettes import COLOUR_MAPS, check_colour_map, coloured, uptake_of
from fusion_pipeline.data.patients import check_one_patient
from fusion_pipeline.data.pictures import recolour
from fusion_pipeline.data.points import PointFile, read_points
from fusion_pipeline.data.readers import LoadImaged
from fusion_pipeline.data.reading import (
    read_displacement,
    read_labels,
    read_landmarks,
    spatial_dims_of,
)
from fusion_pipeline.data.refusals import monai_is_the_program, one_line_refusals
from fusion_pipeline.data.sources import InMemory, Source, as_meta_tensor
from fusion_pipeline.data.writing import (
    check_output_folder,
    write_colour,
    write_displacement,
    write_image,
    write_labels,
    write_weights,
    written_whole,
)
from fusion_pipeline.modalities import MODALITIES, Modality, modality_of

__all__ = [
    "COLOUR_MAPS",
    "FEWEST_IMAGES",
    "MODALITIES",
    "TRANSFORMS",
    "Case",
    "CaseFiles",
    "CheckImage",
    "CheckImaged",
    "Identity",
    "Image",
    "InMemory",
    "InputError",
    "LoadImaged",
    "Modality",
    "NoOverlapError",
    "PointFile",
    "Prepared",
    "Preprocessing",
    "Series",
    "SeriesFiles",
    "Source",
    "TransformKind",
    "as_meta_tensor",
    "case_from_entry",
    "case_from_paths",
    "cause_of",
    "check_case_headers",
    "check_colour_map",
    "check_one_patient",
    "check_output_folder",
    "coloured",
    "default_reference",
    "files_in",
    "load_case",
    "modality_of",
    "monai_is_the_program",
    "one_line_refusals",
    "prepare_case",
    "prepare_image",
    "read_datalist",
    "read_displacement",
    "read_image",
    "read_labels",
    "read_landmarks",
    "read_points",
    "read_transform",
    "reading",
    "recolour",
    "refusal_within",
    "spatial_dims_of",
    "uptake_of",
    "write_colour",
    "write_displacement",
    "write_image",
    "write_labels",
    "write_transform",
    "write_weights",
    "written_whole",
]
