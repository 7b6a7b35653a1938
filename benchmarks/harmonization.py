"""Harmonization beside the classical standards: between protocols, what is kept, agreement.

    python benchmarks/harmonization.py --weights ../weights/harmonization_3d.pt --out docs/figures

CT, T1 MR and PET of the sarcoma patients on the CT's grid. Each image is mapped twice: as it is,
and as another protocol shows it (`synthesis.protocols`), with a body mask of its own.

Rows, per modality (`harmonization_measures`):
 residual      RMS difference of the two over the body, in deviations of the output
 smoothed      the same after 2 mm of smoothing
 oracle        what the best increasing curve and smooth bias leave of the pair
 separation    of neighbouring tissue classes (Otsu; CT: −200, −30, 180 HU), over the input's
 rank          Spearman's correlation with the input in blocks of 24 voxels; MR: a known smooth
               bias of the input does not count
 direction     cosine of the gradients with the input's
 tumour        contrast-to-noise of the tumour's contour in PET, over the input's
 correlation, distance   of two modalities over their common body
 idempotence   RMS change by mapping the result again
 inverse       largest error of the way back, over the width of the values above black
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import torch
from harmonization_measures import (
    contrast_to_noise,
    gradient_direction,
    local_rank_correlation,
    oracle_residual,
    residual,
    separation,
    shared_tissue,
    smoothed,
    tissue_classes,
)
from sarcoma_grids import KEYS, Patient, patients
from torch import Tensor

from fusion_pipeline.baselines import Nyul, match_histogram
from fusion_pipeline.networks.harmonization_net import HarmonizationNet
from fusion_pipeline.networks.intensity_map import IntensityMap
from fusion_pipeline.networks.kinds import kind_of
from fusion_pipeline.synthesis.protocols import other_protocol
from fusion_pipeline.transforms import NormalizeModality, body_mask

# (image, key, field of view, body), ``(1, 1, *S)`` each, to ``(1, 1, *S)``
Method = Callable[[Tensor, str, Tensor, Tensor], Tensor]
# Training patients that nobody looks at while tuning.
ASIDE = ("sts002", "sts014", "sts017", "sts025")
_UNITS = {"ct": "HU", "mr": None, "pet": None}
_MEDIAN, _POWER_LEVEL = 50.0, 0.45


def z_score_in_body(image: Tensor, key: str, view: Tensor, body: Tensor) -> Tensor:
    """`NormalizeModality`: the pipeline's z-score of each modality's usual scale."""
    normalized, _ = NormalizeModality().scaled(
        image[0], body[0] > 0, modality=key, units=_UNITS[key]
    )
    return ((normalized[None] + 4) / 8) * view


def z_score_in_view(image: Tensor, key: str, view: Tensor, body: Tensor) -> Tensor:
    """Plain z-score of all that is in view."""
    inside = image[view > 0]
    return ((image - inside.mean()) / inside.std().clamp_min(1e-9) / 8 + 0.5) * view


def power_curve(image: Tensor, key: str, view: Tensor, body: Tensor) -> Tensor:
    """Percentiles 1 and 99 of the body to 0 and 1, the median to 0.45."""
    low, middle, high = np.percentile(image[body > 0].numpy(), (1, _MEDIAN, 99))
    share = (middle - low) / max(high - low, 1e-9)
    exponent = np.log(_POWER_LEVEL) / np.log(np.clip(share, 0.02, 0.98))
    return (((image - low) / max(high - low, 1e-9)).clamp(0, 1) ** float(exponent)) * view


def bias_corrected(image: Tensor, body: Tensor) -> Tensor:
    """N4 of a shrunk copy, the field applied at full size."""
    whole = sitk.GetImageFromArray(image[0, 0].numpy().T)
    mask = sitk.Cast(sitk.GetImageFromArray((body[0, 0] > 0).numpy().astype(np.uint8).T), 1)
    factors = [max(1, round(n / 48)) for n in image.shape[2:]]
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations([20, 20, 20])
    n4.Execute(sitk.Shrink(whole, factors) + 1e-3, sitk.Shrink(mask, factors))
    field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(whole)).T
    return image / torch.from_numpy(np.exp(field).copy())[None, None].clamp(0.2, 5)


def methods(training: list[Patient], weights: Path | None) -> dict[str, Method]:
    """The classical standards, learned on training patients where they learn, and ours."""
    standards, templates = {}, {}
    for m, key in enumerate(KEYS):
        pairs = [(p.original[m], p.body[m] > 0) for p in training]
        standards[key] = Nyul().fit(pairs)
        templates[key] = pairs[0]

    def nyul(image: Tensor, key: str, view: Tensor, body: Tensor) -> Tensor:
        return standards[key](image, body > 0).clamp(0, 1) * view

    def histogram(image: Tensor, key: str, view: Tensor, body: Tensor) -> Tensor:
        template, where = templates[key]
        low, high = np.percentile(template[where].numpy(), (0.1, 99.9))
        matched = match_histogram(image, template, body > 0, where)
        return ((matched - low) / (high - low)).clamp(0, 1) * view

    def n4_nyul(image: Tensor, key: str, view: Tensor, body: Tensor) -> Tensor:
        even = bias_corrected(image, body) if key == "mr" else image
        return nyul(even, key, view, body)

    out = {
        "z-score": z_score_in_body,
        "z-score, whole": z_score_in_view,
        "Nyúl": nyul,
        "N4 + Nyúl": n4_nyul,
        "histogram": histogram,
        "power curve": power_curve,
        "standard": Ours(HarmonizationNet()),
    }
    if weights is not None:
        network = HarmonizationNet()
        network.load_state_dict(torch.load(weights, weights_only=True))
        out["network"] = Ours(network)
    return out


class Ours:
    """The harmonization network as a method; its mapping is at hand for the inverse."""

    def __init__(self, network: HarmonizationNet) -> None:
        self.network = network.eval()

    def __call__(self, image: Tensor, key: str, view: Tensor, body: Tensor) -> Tensor:
        """Map."""
        return self.mapping(image, key, view, body)(image) * view

    @torch.no_grad()
    def mapping(self, image: Tensor, key: str, view: Tensor, body: Tensor) -> IntensityMap:
        """How it is mapped."""
        return self.network.mapping(image, kind_of(key), view, body)


@dataclass(frozen=True)
class Pair:
    """An image and the same anatomy under another protocol.

    Attributes:
        key: of the image.
        image: ``(1, 1, *S)`` as it is, in own units.
        other: ``(1, 1, *S)`` under the other protocol.
        view: ``(1, 1, *S)`` 0/1, field of view.
        body: ``(1, 1, *S)`` 0/1 of ``image``.
        other_body: ``(1, 1, *S)`` 0/1 of ``other``.
        spacing: mm.
        classes: ``(*S)`` tissue classes of ``image``.
        tumour: ``(*S)`` bool.
        oracle: residual that no curve and smooth bias can undo.
    """

    key: str
    image: Tensor
    other: Tensor
    view: Tensor
    body: Tensor
    other_body: Tensor
    spacing: np.ndarray
    classes: np.ndarray
    tumour: np.ndarray
    oracle: float


def pairs_of(patient: Patient, seed: int, tumour: np.ndarray) -> list[Pair]:
    """The three images of a patient, each under two protocols."""
    out = []
    for m, key in enumerate(KEYS):
        image, view, body = (
            t[m][None, None] for t in (patient.original, patient.valid, patient.body)
        )
        generator = torch.Generator().manual_seed(10 * seed + m)
        other = other_protocol(image, kind_of(key), body, generator, spacing=patient.spacing)
        again = body_mask(other[0], patient.spacing.tolist(), key, units=_UNITS[key])[None]
        inside = body[0, 0].numpy() > 0
        source = image[0, 0].numpy()
        out.append(
            Pair(
                *(key, image, other, view, body, (again & (view > 0)).float(), patient.spacing),
                classes=tissue_classes(source, inside, key),
                tumour=tumour & inside,
                oracle=oracle_residual(other[0, 0].numpy(), source, inside),
            )
        )
    return out


def judge(method: Method, pairs: list[Pair]) -> dict[str, float]:
    """All numbers of one method on one patient."""
    out: dict[str, float] = {}
    mapped = []
    for pair in pairs:
        first = method(pair.image, pair.key, pair.view, pair.body)
        second = method(pair.other, pair.key, pair.view, pair.other_body)
        array, inside = first[0, 0].numpy(), pair.body[0, 0].numpy() > 0
        mapped.append((array, inside))
        measured = {"residual": residual(array, second[0, 0].numpy(), inside)}
        smooth = [smoothed(t[0, 0].numpy(), inside, pair.spacing) for t in (first, second)]
        measured["smoothed"] = residual(*smooth, inside)
        measured |= {"oracle": pair.oracle} | kept(array, pair)
        if isinstance(method, Ours):
            measured |= way_back(method, pair, first)
        out |= {f"{name} {pair.key}": value for name, value in measured.items()}
    for (m, a), (n, b) in combinations(enumerate(KEYS), 2):
        both = mapped[m][1] & mapped[n][1]
        for name, value in shared_tissue(mapped[m][0], mapped[n][0], both).items():
            out[f"{name} {a}–{b}"] = value
    return out


def kept(output: np.ndarray, pair: Pair) -> dict[str, float]:
    """What an image kept of its input."""
    source, body = pair.image[0, 0].numpy(), pair.body[0, 0].numpy() > 0
    out = {
        "separation": separation(output, pair.classes) / separation(source, pair.classes),
        "rank": local_rank_correlation(output, source, body),
        "direction": gradient_direction(output, source, body),
    }
    if pair.key == "pet" and pair.tumour.sum() > 50:
        before = contrast_to_noise(source, pair.tumour, body)
        out["tumour"] = contrast_to_noise(output, pair.tumour, body) / before
    return out


def way_back(method: "Ours", pair: Pair, first: Tensor) -> dict[str, float]:
    """RMS change by mapping again; largest error of the inverse over the width of the values."""
    inside = pair.body > 0
    again = method(first, pair.key, pair.view, pair.body)
    mapping = method.mapping(pair.image, pair.key, pair.view, pair.body)
    expected = torch.maximum(pair.image, mapping.black.view(1, 1, 1, 1, 1))[inside]
    error = (mapping.inverse(mapping(pair.image))[inside] - expected).abs().max()
    return {
        "idempotence": float((again - first)[inside].square().mean().sqrt()),
        "inverse": float(error / (expected.max() - expected.min())),
    }


def seconds_of(method: Method) -> float:
    """CPU seconds for 128³."""
    image = torch.rand(1, 1, 128, 128, 128) * 100
    whole = torch.ones_like(image)
    begun = time.process_time()
    method(image, "mr", whole, whole)
    return time.process_time() - begun


def table(rows: Mapping[str, list[dict[str, float]]]) -> str:
    """Mean ± standard deviation over the patients, as Markdown."""
    lines = [f"| | {' | '.join(rows)} |", "|---" * (len(rows) + 1) + "|"]
    measures = dict.fromkeys(k for results in rows.values() for r in results for k in r)
    for measure in measures:
        cells = []
        for results in rows.values():
            values = np.array([r[measure] for r in results if measure in r])
            cells.append(f"{values.mean():.3f} ± {values.std():.3f}" if len(values) else "–")
        lines.append(f"| {measure} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def differences(rows: Mapping[str, list[dict[str, float]]]) -> str:
    """Ours minus each classical method, paired, with 95 % intervals (bootstrap over patients)."""
    own = rows["network" if "network" in rows else "standard"]
    draw = np.random.default_rng(0)
    lines = ["| residual, ours minus | " + " | ".join(KEYS) + " |", "|---" * 4 + "|"]
    for name, results in rows.items():
        if results is own:
            continue
        cells = []
        for key in KEYS:
            gap = np.array(
                [
                    a[f"residual {key}"] - b[f"residual {key}"]
                    for a, b in zip(own, results, strict=True)
                ]
            )
            means = draw.choice(gap, (4000, len(gap))).mean(1)
            low, high = np.percentile(means, (2.5, 97.5))
            cells.append(f"{gap.mean():+.3f} [{low:+.3f}, {high:+.3f}]")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, help="of the 3D network; without: the standard")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--open-data", type=Path, default=Path("../shared/data/open"))
    parser.add_argument("--cache", type=Path, default=Path("/tmp/hf/cache"))
    parser.add_argument(
        "--patients", choices=("evaluation", "aside", "training"), default="evaluation"
    )
    parser.add_argument("--most", type=int, default=100, help="patients at most")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load = arguments.open_data, arguments.cache
    training = [p for p in patients(*load, evaluation=False) if p.id not in ASIDE]
    ways = methods(training, arguments.weights)
    if arguments.patients == "evaluation":
        chosen = patients(*load, evaluation=True)
    elif arguments.patients == "aside":
        chosen = [p for p in patients(*load, evaluation=False) if p.id in ASIDE]
    else:
        chosen = training
    chosen = chosen[: arguments.most]
    entries = json.loads((arguments.open_data / "datalist.json").read_text())["ct_mr_pet_3d"]
    contours = {e["id"]: arguments.open_data / e["gtv_ct"] for e in entries}
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for seed, patient in enumerate(chosen):
        tumour = np.asarray(nib.load(contours[patient.id]).dataobj) > 0
        pairs = pairs_of(patient, seed, tumour)
        for name, way in ways.items():
            rows[name].append(judge(way, pairs))
        print(patient.id, flush=True)
    seconds = {name: seconds_of(way) for name, way in ways.items()}
    arguments.out.mkdir(parents=True, exist_ok=True)
    record = {"patients": [p.id for p in chosen], "rows": rows, "seconds": seconds}
    (arguments.out / "harmonization.json").write_text(json.dumps(record, indent=1) + "\n")
    cost = ", ".join(f"{name} {value:.2f}" for name, value in seconds.items())
    text = (
        f"n = {len(chosen)} patients ({arguments.patients}), mean ± standard deviation\n\n"
        f"{table(rows)}\n{differences(rows)}\nCPU seconds for 128³: {cost}\n"
    )
    (arguments.out / "harmonization.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
