"""Averages over cases that several processes may share; what the metric classes have in common."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics import Metric


class CaseSums(Metric):
    """Sums of scores and how many there are, which add up over processes.

    A score of NaN says that a case has no answer (an empty region); it does not count.

    Args:
        settings: what the scores depend on beside the images.
        shape: of the sums.
    """

    full_state_update = False
    is_differentiable = False
    total: Tensor
    count: Tensor

    def __init__(self, settings: tuple[object, ...] = (), shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        # MetricCollection updates only one of the metrics whose states have one name and, after the
        # first update, one value; two measures may well agree there (no fold, no spread)
        self.add_state(
            f"{type(self).__name__}{settings}", default=torch.zeros(()), dist_reduce_fx="sum"
        )
        # float32, since not every accelerator has float64
        self.add_state("total", default=torch.zeros(shape), dist_reduce_fx="sum")
        self.add_state("count", default=torch.zeros(shape), dist_reduce_fx="sum")


class MeanOverCases(CaseSums):
    """Mean of a score over the cases that have one, whichever process saw them."""

    def compute(self) -> Tensor:
        """The mean, scalar; NaN without a case."""
        return self.total / self.count

    def _add(self, scores: Sequence[float] | Tensor) -> None:
        """A score for each case, ``(n,)``."""
        values = torch.as_tensor(scores, dtype=self.total.dtype, device=self.total.device)
        has_score = ~values.isnan()
        self.total += values[has_score].sum()
        self.count += has_score.sum()


class MeanScore(MeanOverCases):
    """Mean of scores that were computed before; of any sense, so none is better."""

    higher_is_better = None

    def update(self, scores: Sequence[float] | Tensor) -> None:
        """Add a score for each case, ``(n,)``; NaN does not count."""
        self._add(scores)


class MeanPerSource(CaseSums):
    """Mean over cases of a score of the fused image against each source by itself.

    Args:
        sources: names of the sources, e.g. modalities; alike in all processes.
        data_range: full scale of the images.
    """

    measure: ClassVar[Callable[..., float]]

    def __init__(self, sources: Sequence[str], data_range: float = 1.0) -> None:
        super().__init__((tuple(sources), data_range), (len(sources),))
        self.sources = tuple(sources)
        self.data_range = data_range

    def update(
        self, fused: Tensor, sources: Mapping[str, Tensor], mask: Tensor | None = None
    ) -> None:
        """Add a batch of cases.

        Args:
            fused: ``(B, 1, *S)``.
            sources: name → ``(B, 1, *S)``; a source that these cases lack may be missing.
            mask: ``(B, 1, *S)``, nonzero where to judge.

        Raises:
            ValueError: a source that the metric was not made for.
        """
        unknown = sorted(set(sources) - set(self.sources))
        if unknown:
            raise ValueError(f"expected sources of {list(self.sources)}, got also {unknown}")
        for key, source in sources.items():
            at = self.sources.index(key)
            for f, s, m in zip(cases(fused), cases(source), masks(fused, mask), strict=True):
                score = type(self).measure(f, s, m, self.data_range)
                if not np.isnan(score):
                    self.total[at] += score
                    self.count[at] += 1

    def compute(self) -> dict[str, Tensor]:
        """Source → mean, scalar; NaN for a source that no case had."""
        return dict(zip(self.sources, self.total / self.count, strict=True))


class MeanOverFusedCases(MeanOverCases):
    """Mean over cases of one score of the fused image against all its sources together.

    Args:
        data_range: full scale of the images.
    """

    measure: ClassVar[Callable[..., float]]

    def __init__(self, data_range: float = 1.0) -> None:
        super().__init__((data_range,))
        self.data_range = data_range

    def update(
        self, fused: Tensor, sources: Mapping[str, Tensor], mask: Tensor | None = None
    ) -> None:
        """Add a batch of cases; arguments as in `MeanPerSource.update`, two sources or more."""
        parts = zip(*(cases(source) for source in sources.values()), strict=True)
        together = zip(cases(fused), parts, masks(fused, mask), strict=True)
        self._add([type(self).measure(f, list(s), m, self.data_range) for f, s, m in together])


def cases(images: Tensor) -> Iterator[npt.NDArray[np.generic]]:
    """``(B, 1, *S)`` on any device → ``(*S)`` one by one, as the pure functions take them."""
    for image in images:
        if image.ndim not in (3, 4) or len(image) != 1:
            raise ValueError(f"expected images (B, 1, *S), 2D or 3D, got {tuple(images.shape)}")
        yield image[0].detach().cpu().numpy()


def masks(images: Tensor, mask: Tensor | None) -> Iterator[npt.NDArray[np.generic] | None]:
    """The mask of each case, or None for each."""
    return iter([None] * len(images)) if mask is None else cases(mask)
