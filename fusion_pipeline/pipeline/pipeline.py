"""`FusionPipeline`: a bundle as one object; images in, aligned, harmonized and fused images out."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from fusion_pipeline.data import (
    Case,
    CaseFiles,
    Image,
    InputError,
    Prepared,
    case_from_entry,
    check_one_patient,
    check_output_folder,
    load_case,
    prepare_case,
    prepare_image,
)
from fusion_pipeline.data.image import meta_tensor
from fusion_pipeline.dicom import DicomExport, check_dicom_export
from fusion_pipeline.networks.multimodal_net import MultimodalNet
from fusion_pipeline.pipeline import bundle
from fusion_pipeline.pipeline.clock import Clock
from fusion_pipeline.pipeline.fingerprint import RunFingerprint, weights_digest
from fusion_pipeline.pipeline.folder import check_case_folder
from fusion_pipeline.pipeline.inferer import FusionInferer, fewest_images, off_grid
from fusion_pipeline.pipeline.result import PipelineResult
from fusion_pipeline.register import Registration
from fusion_pipeline.transforms import NormalizeModality, NormalizeModalityd


class Fused(NamedTuple):
    """What `FusionPipeline.fuse` gives.

    Attributes:
        image: ``(1, *S)`` in 0..1; ``(3, *S)`` 0..255 where a source was in colour.
        weights: ``(M, *S)`` in the order of the input.
        scores: see `fuse.Fusion`.
    """

    image: MetaTensor
    weights: MetaTensor
    scores: Mapping[str, float]


CaseLike = Case | CaseFiles | Mapping[str, Any]


class FusionPipeline:
    """Preprocessing, networks and inferer of a bundle, ready to run.

    A case is an entry of a datalist, ``{"ct": ..., "mr_t1": ...}``. Each image is a path, a
    MetaTensor, a nibabel image, a SimpleITK image, or ``(array, affine)`` with RAS mm.

    Args:
        network: the parts that the three stages hold.
        preprocessing: what each image goes through, ``{"image": source, "key": "mr_t1"}`` in. Its
            last transform is the z-score, a `NormalizeModalityd`: training applies it to the
            image, inference on whatever grid a network reads.
        inferer: runs the stages; None: one with its defaults.
    """

    def __init__(
        self,
        network: MultimodalNet,
        preprocessing: Compose,
        inferer: FusionInferer | None = None,
    ) -> None:
        self.inferer = FusionInferer() if inferer is None else inferer
        if not isinstance(self.inferer, FusionInferer):
            raise TypeError(f"'inferer' should be a FusionInferer, got {type(inferer).__name__}")
        self.network = network.to(self.inferer.device).eval()
        self.preprocessing = preprocessing
        self._prepare, self._normalize = split(preprocessing)

    @classmethod
    def from_bundle(
        cls,
        path: Path | str | None = None,
        *,
        weights: Path | str | None = None,
        **overrides: object,
    ) -> "FusionPipeline":
        """The pipeline that a bundle's ``configs/inference.json`` describes, with its weights.

        Args:
            path: folder of the bundle; None: the 3D bundle that comes with the package.
            weights: a state dict or a Lightning checkpoint (`load_weights`); None: the bundle's.
            overrides: values for ids of the config, such as ``device="cuda"``, ``refine_steps=0``,
                ``working_spacing=3.0``, ``same_person=False`` or ``only="register"``; None leaves
                the bundle's.

        Raises:
            InputError: there is no such bundle or id, or its weights do not fit its network.
        """
        if weights is not None:
            overrides["ckpt_path"] = str(weights)
        names = ("network_def", "preprocessing", "inferer", "checkpointloader")
        parts = bundle.from_config(path, overrides, *names)
        bundle.load_checkpoint(parts["checkpointloader"])
        return cls(parts["network_def"], parts["preprocessing"], parts["inferer"])

    @property
    def settings(self) -> Mapping[str, float | str | None]:
        """The inferer's settings."""
        return self.inferer.settings

    def __call__(self, case: CaseLike) -> PipelineResult:
        """Run one case; nothing is written.

        Args:
            case: an entry of a datalist, its checked files, or a loaded case. Paths are relative to
                the working directory.

        Raises:
            InputError: the input cannot be used; the message says what to do.
        """
        clock = Clock()
        with clock.stage("load"):
            loaded = self.load(case)
        return self.infer(loaded, clock)

    def infer(self, case: Case, clock: Clock | None = None) -> PipelineResult:
        """Run a case that `load` has prepared."""
        return self.inferer(case, self.network, normalize=self._normalize, clock=clock)

    def run(self, case: CaseLike, output: Path | str, *, dicom: DicomExport | None = None) -> Path:
        """Run one case and write its folder ``<output>/<id>/``, whole or not at all.

        Args:
            case: as for a call.
            output: gets the folder.
            dicom: write DICOM objects as well, into its folder ``dicom``; None: none.

        Returns:
            The folder.
        """
        files = self._files(case) if isinstance(case, Mapping) else case
        folder = Path(output) / files.id
        check_output_folder(output)
        check_case_folder(folder, files.series, self.inferer.only)
        clock = Clock()
        with clock.stage("load"):
            loaded = self.load(files)
        if dicom is not None:
            check_dicom_export(loaded, dicom)
        result = replace(self.infer(loaded, clock), input_digest=self.fingerprint(files))
        return result.save(folder, dicom=dicom)

    def load(self, case: CaseLike) -> Case:
        """Read, check and prepare the images of a case."""
        loaded = self._loaded(case)
        check_one_patient(loaded, same_person=self.inferer.same_person)
        return loaded

    def _files(self, entry: Mapping[str, Any]) -> CaseFiles:
        """The files of a datalist's entry."""
        return case_from_entry(entry, fewest_images=fewest_images(self.inferer.only))

    def _loaded(self, case: CaseLike) -> Case:
        """The same, whomever the images show."""
        if isinstance(case, Case):
            return prepare_case(case, self._prepare)
        if isinstance(case, Mapping):
            case = self._files(case)
        if not isinstance(case, CaseFiles):
            raise InputError(
                f'expected a case, {{"ct": ..., "mr": ...}}, got {type(case).__name__}; name two '
                "or more images by their keys"
            )
        return load_case(case, self._prepare, one_space=self.inferer.only != "harmonize")

    def prepare(self, image: Image) -> Prepared:
        """One image after preprocessing, as the stages take it."""
        prepared = prepare_image(image, image.key, self._prepare).prepared
        if prepared is None:
            raise InputError(
                "preprocessing: expected FieldOfViewd and BodyMaskd in it, got neither; add them"
            )
        return prepared

    def register(self, case: CaseLike) -> dict[str, Registration]:
        """The register stage alone: per moving key the map from the reference's world to its."""
        loaded = self.load(case)
        return self.inferer.register(loaded, self.network, self._normalize)

    def harmonize(self, images: CaseLike) -> dict[str, MetaTensor]:
        """The harmonize stage alone, on images that lie on one grid already.

        Returns:
            Per key ``(1, *S)`` in 0..1, or ``(3, *S)`` 0..255 in colour.
        """
        case = self.load(images)
        given, fields = _on_one_grid(case)
        result = self.inferer.harmonize(given, fields, self.network, self._normalize)
        result = result.along_axes_of(_native(case))
        return {key: image.as_meta_tensor() for key, image in result.images.items()}

    def fuse(self, images: CaseLike) -> Fused:
        """The fuse stage alone, on harmonized images that lie on one grid already.

        Args:
            images: values in 0..1; pictures and colour in 0..255.
        """
        case = self.load(images)
        given, fields = _on_one_grid(case)
        levels = {key: _in_unit_range(image) for key, image in given.items()}
        fusion = self.inferer.fuse(levels, fields, self.network).along_axes_of(_native(case))
        weights = meta_tensor(fusion.weights, fusion.fused.affine)
        return Fused(fusion.fused.as_meta_tensor(), weights, fusion.scores)

    def fingerprint(self, case: Case | CaseFiles) -> str:
        """A digest of the input, the settings and the weights: what decides the output."""
        return self.run_fingerprint()(case)

    def run_fingerprint(self) -> RunFingerprint:
        """What the settings, preprocessing and weights of this moment add to `fingerprint`."""
        return RunFingerprint(self.settings, weights_digest(self.network), self.preprocessing)


def split(preprocessing: Compose) -> tuple[Compose, NormalizeModality]:
    """What is done to an image once, and the z-score that the stages apply where networks read.

    Raises:
        InputError: the last transform is no `NormalizeModalityd`.
    """
    *steps, last = preprocessing.transforms
    if not isinstance(last, NormalizeModalityd):
        raise InputError(
            "preprocessing: expected fusion_pipeline.transforms.NormalizeModalityd (or a subclass) "
            f"as the last transform, got {type(last).__name__}; put it last"
        )
    return Compose(steps, lazy=preprocessing.lazy), last.transforms[0]


def _on_one_grid(case: Case) -> tuple[dict[str, Image], dict[str, torch.Tensor]]:
    """The images of a case and their fields of view, refused if their grids differ."""
    fixed = case.fixed
    for key, image in case.images.items():
        if off_grid(image, fixed) is not None:
            raise InputError(
                f"case {case.id!r}, {key}: expected an image on the grid of {fixed.key} (shape "
                f"{fixed.shape}), got {off_grid(image, fixed)}; register it first"
            )
    fields = {
        key: series.prepared.field_of_view
        for key, series in case.series.items()
        if series.prepared is not None
    }
    return dict(case.images), fields


def _in_unit_range(image: Image) -> Image:
    """A harmonized image with its values in 0..1."""
    levels = 255.0 if image.is_picture or image.colour is not None else 1.0
    array = image.array / levels
    if float(array.min()) < -1e-3 or float(array.max()) > 1 + 1e-3:
        raise InputError(
            f"{image.key}: expected harmonized values in 0..1, got {float(image.array.min()):g} to "
            f"{float(image.array.max()):g}; harmonize the images first"
        )
    return image.with_array(array.clamp(0, 1))


def _native(case: Case) -> Any:  # noqa: ANN401 - an affine
    """The affine whose axes the results take."""
    return case.fixed.affine if case.native_affine is None else case.native_affine


__all__ = ["CaseLike", "FusionPipeline", "split"]
