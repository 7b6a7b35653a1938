"""Pictures in TensorBoard of what the networks give for a few validation samples."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from fusion_pipeline.data import InputError, one_line_refusals
from fusion_pipeline.geometry import warp
from fusion_pipeline.report import pictures
from fusion_pipeline.report.facts import label
from fusion_pipeline.report.pictures import Mask, Picture, Window
from fusion_pipeline.report.planes import Pixels
from fusion_pipeline.training.batch import Batch
from fusion_pipeline.training.objectives import Outputs
from fusion_pipeline.training.objectives.registration import reference_body
from fusion_pipeline.training.panels import Curve, CurvePanel, Panel, PicturePanel, draw

logger = logging.getLogger(__name__)

_TILES = 8  # of a checkerboard, along its longer side
_BINS = 32  # of a tone curve
_LEAST_VALUES = 20  # of a bin: fewer have no 5th percentile
_MOST_VALUES = 200_000  # of a tone curve; more change nothing that can be seen


class ExamplePictures(Callback):
    """Draws the first validation samples, always the same ones, to each TensorBoard logger.

    A sample gives a picture for each stage that the phase used, such as
    ``val/example_1/registration``. Only the first process draws. A failure of drawing is logged as
    a warning, and the training goes on without pictures: they change nothing of what is trained.

    Args:
        cases: samples to draw.
        every: validations from one drawn to the next; the first one is drawn, and the first one
            after a resume.

    Raises:
        InputError: ``cases`` or ``every`` is less than 1.
    """

    @one_line_refusals()
    def __init__(self, cases: int = 3, every: int = 1) -> None:
        for name, value in (("cases", cases), ("every", every)):
            if value < 1:
                raise InputError(f"example pictures: expected {name} of 1 or more, got {value}")
        self.cases = cases
        self.every = every
        self._validations = 0
        self._drawn = 0
        self._failed = False

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin with the first sample again."""
        self._drawn = 0

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,  # noqa: ANN401 - Lightning's type of what a step gives
        batch: Any,  # noqa: ANN401 - Lightning's
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the batch's samples, until there are enough."""
        writers = [x.experiment for x in trainer.loggers if isinstance(x, TensorBoardLogger)]
        due = self._validations % self.every == 0 and not trainer.sanity_checking
        if not (trainer.is_global_zero and due and writers) or self._failed:
            return
        try:
            for b in range(min(len(batch.image), self.cases - self._drawn)):
                self._drawn += 1
                for stage, picture in example_pictures(batch, outputs, b).items():
                    name = f"val/example_{self._drawn}/{stage}"
                    for writer in writers:
                        writer.add_image(name, picture, trainer.global_step, dataformats="HWC")
        except Exception:  # hours of training on many devices must not end for a picture
            self._failed = True
            logger.warning("example pictures: drawing failed; the training goes on", exc_info=True)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """One validation more."""
        if not trainer.sanity_checking:
            self._validations += 1


@dataclass(frozen=True)
class _Example:
    """One sample on the CPU, and the slice that is shown.

    Attributes:
        batch: of one sample.
        outputs: for it.
        body: ``(*S)`` bool, of the reference.
        index: voxel along the last axis in 3D; None in 2D.
    """

    batch: Batch
    outputs: Outputs
    body: Tensor
    index: int | None

    def pixels(self, values: Tensor) -> Pixels:
        """The slice of ``(*S)``, as the report shows an axial plane: columns and rows reversed."""
        plane = values if self.index is None else values[..., self.index]
        return plane.T.flip(0, 1).float().nan_to_num().numpy()

    def mask(self, values: Tensor) -> Mask:
        """Where the slice of ``(*S)`` is not zero."""
        return np.asarray(self.pixels(values) > 0.5)

    @property
    def names(self) -> list[str]:
        """Name of each image's kind."""
        return [label(kind) for kind in self.batch.kinds]

    def window(self, m: int) -> Window:
        """Black and white of image m: the same before and after the warp, and in each epoch."""
        return _window_of(self.batch.image[0, m], self.batch.valid[0, m])

    def unit(self, values: Tensor, m: int) -> Pixels:
        """The slice of values ``(*S)`` of image m, 0 where it is black and 1 where white."""
        return self.window(m).unit(self.pixels(values))


def _window_of(values: Tensor, valid: Tensor) -> Window:
    """Percentiles 0.5 and 99.5 in view."""
    inside = values[valid > 0.5]
    low, high = np.percentile(inside.numpy(), (0.5, 99.5)) if len(inside) else (0.0, 1.0)
    return Window(float(low), float(high))


def example_pictures(
    batch: Batch, outputs: Outputs, sample: int
) -> dict[str, npt.NDArray[np.uint8]]:
    """The panels of one sample, drawn; see `example_panels`.

    Returns:
        ``(H, 1000, 3)`` by name of the stage.
    """
    panels = example_panels(batch, outputs, sample)
    return {stage: draw(rows) for stage, rows in panels.items()}


def example_panels(batch: Batch, outputs: Outputs, sample: int) -> dict[str, list[list[Panel]]]:
    """Rows of panels of one sample, for each stage of which the outputs tell something.

    Convention:
        - a 3D sample is shown by the slice across the last axis through the centre of the
          reference's body
        - the first axis runs to the left, the second one up: radiological in RAS

    Args:
        batch: B samples.
        outputs: what the networks gave for it.
        sample: number of the sample in the batch.

    Returns:
        Rows by name of the stage: ``registration``, ``harmonization``, ``fusion``.
    """
    example = _example(batch, outputs, sample)
    rows = {
        "registration": _registration_rows(example),
        "harmonization": _harmonization_rows(example),
        "fusion": _fusion_rows(example),
    }
    return {stage: panels for stage, panels in rows.items() if panels}


def _example(batch: Batch, outputs: Outputs, sample: int) -> _Example:
    """The sample alone, and where to look."""
    one = replace(batch, **_alone(batch, sample))
    body = reference_body(one)[0]
    index = None
    if body.ndim == 3:
        layers = body.nonzero()[:, 2].double()
        index = int(layers.mean().round()) if len(layers) else body.shape[2] // 2
    return _Example(one, Outputs(**_alone(outputs, sample)), body, index)


def _alone(record: Batch | Outputs, sample: int) -> Mapping[str, Any]:
    """Its tensors, one sample of each."""
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return {
        name: value[sample : sample + 1].detach().cpu()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def _registration_rows(example: _Example) -> list[list[Panel]]:
    """Two rows for each moving image: the images and the error; overlays and checkerboards."""
    if example.outputs.ddf is None or example.outputs.warped is None:
        return []
    rows: list[list[Panel]] = []
    names, valid = example.names, example.batch.valid[0]
    fixed = example.unit(example.batch.image[0, 0], 0)
    for m in range(1, len(names)):
        after_view = warp(
            valid[None, m : m + 1].float(), example.outputs.ddf[:, m - 1].float(), mode="nearest"
        )
        moving = example.unit(example.batch.image[0, m], m), example.mask(valid[m])
        warped = example.unit(example.outputs.warped[0, m], m), example.mask(after_view[0, 0])
        grey = pictures.grey(fixed, example.mask(valid[0]))
        rows.append(
            [
                PicturePanel(f"fixed\n{names[0]}", grey),
                PicturePanel(f"moving\n{names[m]}", pictures.grey(*moving)),
                PicturePanel(f"warped\n{names[m]}", pictures.grey(*warped)),
                _field_panel(example, m - 1),
            ]
        )
        colours = f"{names[0]} green, {names[m]} magenta"
        tiles = f"{names[0]} grey, {names[m]} tinted"
        rows.append(
            [
                PicturePanel(f"overlay before\n{colours}", _overlay(fixed, moving[0])),
                PicturePanel(f"overlay after\n{colours}", _overlay(fixed, warped[0])),
                PicturePanel(f"checkerboard before\n{tiles}", _checkerboard(fixed, *moving)),
                PicturePanel(f"checkerboard after\n{tiles}", _checkerboard(fixed, *warped)),
            ]
        )
    return rows


def _field_panel(example: _Example, m: int) -> PicturePanel:
    """Distance to the true field in mm where it is given, else the length of the displacement."""
    if example.outputs.ddf is None:
        raise ValueError("example pictures: expected a field, got none")
    ddf, truth = example.outputs.ddf[0, m].float(), example.batch.ddf
    if truth is None:
        before, length = None, _length_mm(ddf, example.batch.spacing[0])
        top = float(length.max())
    else:
        before = _length_mm(truth[0, m], example.batch.spacing[0])
        length = _length_mm(ddf - truth[0, m], example.batch.spacing[0])
        top = float(before[example.body].max()) if example.body.any() else float(before.max())
    top = max(float(np.ceil(top)), 1.0)
    mean = _mean(length, example.body)
    title = (
        f"displacement {mean:.2g} mm"
        if before is None
        else f"error {mean:.2g} mm, before {_mean(before, example.body):.2g}"
    )
    inside = example.mask(example.body)
    colour = pictures.coloured(np.clip(example.pixels(length) / top, 0, 1), "magma")
    return PicturePanel(f"{title}\nblack 0, pale yellow {top:.0f} mm", colour * inside[..., None])


def _length_mm(field: Tensor, spacing: float) -> Tensor:
    """``(*S)`` mm of a field ``(d, *S)`` in voxels."""
    return torch.linalg.vector_norm(field, dim=0) * spacing


def _mean(values: Tensor, body: Tensor) -> float:
    """Mean within the body; of the whole where there is none."""
    return float((values[body] if body.any() else values).mean())


def _overlay(fixed: Pixels, moving: Pixels) -> Picture:
    """Fixed in green, moving in magenta: grey where they agree."""
    return np.stack([moving, fixed, moving], -1)


def _checkerboard(fixed: Pixels, moving: Pixels, present: Mask) -> Picture:
    """Tiles of both in turn; the fixed image is dimmed where there is no moving one."""
    one, other = (x[..., None].repeat(3, -1) for x in (fixed, moving))
    return pictures.checkerboard(one, other, present, max(2, max(fixed.shape) // _TILES))


def _harmonization_rows(example: _Example) -> list[list[Panel]]:
    """A row for each image: before, after, in the other protocol as well, and its tone curves."""
    outputs, batch = example.outputs, example.batch
    if outputs.harmonized is None:
        return []
    # the network reads own units; warped ones are not handed on
    own = batch.original if outputs.warped is None else None
    before = own if own is not None else batch.image if outputs.warped is None else outputs.warped
    axis = "input (standard deviations)" if own is None else "input (own unit)"
    valid = batch.valid if outputs.valid is None else outputs.valid
    rows: list[list[Panel]] = []
    for m, name in enumerate(example.names):
        present = example.mask(valid[0, m])
        sides = [("", before[0, m], outputs.harmonized[0, m])]
        if batch.protocol is not None and outputs.other is not None:
            sides.append((", other protocol", batch.protocol[0, m], outputs.other[0, m]))
        # another protocol may have another unit
        windows = [_window_of(x, valid[0, m]) for _, x, _ in sides]
        inputs: list[Panel] = [
            PicturePanel(
                f"{name}{side}\ninput", pictures.grey(window.unit(example.pixels(x)), present)
            )
            for (side, x, _), window in zip(sides, windows, strict=True)
        ]
        results: list[Panel] = [
            PicturePanel(
                f"{name}{side}\nharmonized, 0 to 1", pictures.grey(example.pixels(y), present)
            )
            for side, _, y in sides
        ]
        curves = tuple(
            _tone_curve(side.removeprefix(", ") or "image", x, y, valid[0, m] > 0.5)
            for side, x, y in sides
        )
        title = f"{name}\ntone curve, 5 to 95 %"
        panel = CurvePanel(title, curves, axis, "harmonized")
        rows.append([*inputs, *results, panel])
    return rows


def _tone_curve(name: str, before: Tensor, after: Tensor, present: Tensor) -> Curve:
    """What becomes of each intensity, from the values alone: any network can be looked at so."""
    x, y = (values[present].float().numpy() for values in (before, after))
    step = max(1, len(x) // _MOST_VALUES)
    x, y = x[::step], y[::step]
    edges = np.linspace(x.min(), x.max(), _BINS + 1) if len(x) else np.zeros(_BINS + 1)
    bins = np.digitize(x, edges[1:-1])
    filled = [i for i in range(_BINS) if (bins == i).sum() >= _LEAST_VALUES]
    percentiles = [np.percentile(y[bins == i], (5, 50, 95)) for i in filled]
    low, median, high = np.asarray(percentiles, np.float32).reshape(-1, 3).T
    centres = ((edges[:-1] + edges[1:]) / 2)[filled].astype(np.float32)
    return Curve(name, centres, low, median, high)


def _fusion_rows(example: _Example) -> list[list[Panel]]:
    """The sources, their weights, and, larger, the fused image and where it came from."""
    outputs = example.outputs
    if outputs.fused is None or outputs.weights is None or outputs.harmonized is None:
        return []
    valid = example.batch.valid if outputs.valid is None else outputs.valid
    views = [example.mask(view) for view in valid[0]]
    weights = outputs.weights[0].float()
    sources: list[Panel] = []
    shares: list[Panel] = []
    for m, name in enumerate(example.names):
        grey = pictures.grey(example.pixels(outputs.harmonized[0, m]), views[m])
        sources.append(PicturePanel(f"{name}\nharmonized, 0 to 1", grey))
        colour = pictures.coloured(example.pixels(weights[m]), "viridis")
        title = f"weight of {name}: {_mean(weights[m], example.body):.2f} in the body"
        shares.append(PicturePanel(f"{title}\nviolet 0, yellow 1", colour))
    fused = example.pixels(outputs.fused[0, 0])
    stacked = np.stack([example.pixels(weight) for weight in weights])
    colours = [
        pictures.MODALITY_COLOURS[m % len(pictures.MODALITY_COLOURS)] for m in range(len(weights))
    ]
    mixture = pictures.mixture(fused, stacked, colours)
    legend = tuple(zip(example.names, colours, strict=True))
    anywhere = np.any(views, axis=0)
    large: list[Panel] = [
        PicturePanel("fused, 0 to 1", pictures.grey(fused, anywhere)),
        PicturePanel("fused, coloured by weight", mixture, legend),
    ]
    small = [sources, shares] if len(sources) > 2 else [[*sources, *shares]]
    return [*small, large]
