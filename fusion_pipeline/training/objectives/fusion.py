"""A fused image that keeps what each source shows (METHOD 5)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection

from fusion_pipeline.fuse import EMISSION_PERCENTILE, MR_PERCENTILES, faded, of_hu, refined
from fusion_pipeline.losses.fusion_loss import WEIGHTS, FusionLoss
from fusion_pipeline.metrics import artefacts, edge_transfer
from fusion_pipeline.networks.multimodal_net import MultimodalNet
from fusion_pipeline.training.batch import Batch
from fusion_pipeline.training.objectives.harmonization import harmonized
from fusion_pipeline.training.objectives.objective import Outputs
from fusion_pipeline.transforms.scaling import percentiles

_VOLUME = 3  # axes
_LOWEST_OF_A_PICTURE = -20.0  # a CT in HU has fat or air
# centre and width of the presets of viewers, from brain to bone
_WINDOWS_HU = (40.0, 80.0), (400.0, 2000.0)


class FusionObjective:
    """L_fusion of what the network gives, and its distance from what optimization makes of that.

    Harmonization is part of the way to the weights and stays as it is. The second part is amortized
    optimization: a few steps of descent from the network's own result are its target, so that it
    learns what descent would do.

    Args:
        weights: of L_fusion's parts by name, in place of the loss's own.
        worst: what the source that is kept worst counts, 0 to 1.
        amortized: weight of the mean distance to the optimized image.
        steps: of that optimization.
    """

    phase = "fusion"
    stages = ("fusion",)
    parts: tuple[str, ...] = (*WEIGHTS, "amortized")
    truths: Mapping[str, str] = {}

    def __init__(
        self,
        weights: Mapping[str, float] | None = None,
        worst: float = 0.5,
        amortized: float = 5.0,
        steps: int = 6,
    ) -> None:
        self.weights = dict(weights or {})
        self.worst = worst
        self.amortized = amortized
        self.steps = steps

    def start(self, network: MultimodalNet) -> None:
        """Weights by salience: of a scale's details by their energy, else by value and contrast.

        From the average that an untrained network gives, weights hardly learn
        (`docs/decisions/0019`).
        """
        weight = network.fusion.logit.weight
        if not bool(weight.any()):
            details = weight.shape[0] - 1
            with torch.no_grad():  # the network makes four times its logits
                weight[:, -details - 2].fill_(0.5)
                weight[:, -details - 1].fill_(1.0)
                for scale in range(details):
                    weight[scale, scale - details].fill_(2.0)

    def losses(
        self, network: MultimodalNet, batch: Batch, step: int
    ) -> tuple[dict[str, Tensor], Outputs]:
        """See `Objective`; the images are aligned."""
        with torch.no_grad():
            original = batch.image if batch.original is None else batch.original
            sources = harmonized(
                network.harmonization, original, batch.kinds, batch.valid, batch.body
            )
            shares = faded_views(batch)
            shown = displayed_batch(batch)
        out = network.fusion(sources, batch.kinds, shares, displayed=shown)
        fused, weights = out.fused.float(), out.weights.float()
        loss = FusionLoss(shown, batch.kinds, shares, worst=self.worst)
        terms = loss.terms(fused)
        asked = {**loss.weights, **self.weights}
        parts = {name: w * getattr(terms, name).mean() for name, w in asked.items()}
        if self.amortized > 0 and self.steps > 0:
            target = self._optimized(fused.detach(), shown, batch.kinds, shares)
            parts["amortized"] = self.amortized * (fused - target).abs().mean()
        return parts, Outputs(
            harmonized=sources, displayed=shown, weights=weights, fused=fused, valid=batch.valid
        )

    def _optimized(
        self, fused: Tensor, shown: Tensor, kinds: Sequence[str], shares: Tensor
    ) -> Tensor:
        """``(B, 1, *S)``: each fused image after some steps of descent."""
        largest = fused[0].numel()
        # a validation runs in inference mode, where nothing descends
        with torch.inference_mode(False):
            items = zip(*(x.clone() for x in (fused, shown, shares)), strict=True)
            return torch.stack(
                [
                    refined(one, images, kinds, kept, steps=self.steps, largest=largest)
                    for one, images, kept in items
                ]
            )

    def scores(self) -> MetricCollection:
        """Edge transfer of the source that is kept worst; edges that no source has."""
        return fusion_scores()

    def update(self, scores: MetricCollection, batch: Batch, outputs: Outputs) -> None:
        """See `Objective`."""
        update_fusion_scores(scores, outputs)


def fusion_scores() -> MetricCollection:
    """Q of the source that is kept worst, and edges that no source has."""
    return MetricCollection(
        {
            "edge_transfer_worst": MeanMetric(nan_strategy="ignore"),
            "artefacts": MeanMetric(nan_strategy="ignore"),
        },
        compute_groups=False,
    )


def update_fusion_scores(scores: MetricCollection, outputs: Outputs) -> None:
    """Add the fused images of a batch, each judged where all its sources see something."""
    judged = outputs.harmonized if outputs.displayed is None else outputs.displayed
    if outputs.fused is None or judged is None or outputs.valid is None:
        return
    for b in range(len(outputs.fused)):
        shared = outputs.valid[b].amin(0).bool().cpu().numpy()
        if not shared.any():
            continue
        fused = outputs.fused[b, 0].detach().float().cpu().numpy()
        sources = judged[b].detach().float().cpu().numpy()
        worst = min(edge_transfer(fused, source, shared) for source in sources)
        scores["edge_transfer_worst"].update(worst)
        scores["artefacts"].update(artefacts(fused, list(sources), shared))


def displayed_batch(batch: Batch) -> Tensor:
    """``(B, M, *S)`` in [0, 1], as the fuse stage displays them (`fuse.displayed`).

    Of a picture the window is not known: a CT in HU is shown in one between a brain's and a bone's,
    drawn from the sample's own values, so that a run that goes on draws the same.
    """
    own = batch.image if batch.original is None else batch.original
    bodies = batch.valid if batch.body is None else batch.body * batch.valid
    rows = [
        torch.stack([_displayed(*one) for one in zip(images, batch.kinds, inside, strict=True)])
        for images, inside in zip(own, bodies, strict=True)
    ]
    return torch.stack(rows) * batch.valid


def _displayed(image: Tensor, kind: str, body: Tensor) -> Tensor:
    """One image ``(*S)`` in [0, 1]."""
    if kind == "ct" and float(image.min()) < _LOWEST_OF_A_PICTURE:
        if image.ndim == _VOLUME:
            return of_hu(image)
        low, high = _any_window(image)
    else:
        values = (image[body > 0] if bool((body > 0).any()) else image.flatten()).float()
        if kind == "emission":
            low, high = 0.0, percentiles(values, EMISSION_PERCENTILE)[0]
        else:
            low, high = percentiles(values, *MR_PERCENTILES)
    return ((image - low) / max(high - low, 1e-6)).clamp(0, 1)


def _any_window(image: Tensor) -> tuple[float, float]:
    """Black and white in HU of a window between the usual ones of brain and bone."""
    seed = int(image.double().abs().sum().item()) % 2**31
    part = float(torch.rand((), generator=torch.Generator().manual_seed(seed)))
    (brain, narrow), (bone, wide) = _WINDOWS_HU
    centre, width = brain + part * (bone - brain), narrow * (wide / narrow) ** part
    return centre - width / 2, centre + width / 2


def faded_views(batch: Batch) -> Tensor:
    """``(B, M, *S)`` the share of its weight that each image keeps, as the fuse stage has it."""
    d = batch.image.ndim - 2
    shares = [
        faded(view.cpu(), [spacing] * d).to(view)
        for views, spacing in zip(batch.valid, batch.spacing, strict=True)
        for view in views
    ]
    return torch.stack(shares).view_as(batch.valid)
