r"""Fusion on the evaluation patients, source by source, against the traditional rules.

    python benchmarks/fusion.py --out docs/figures

The networks are the packaged bundle's, or others (``--harmonization``, ``--fusion``: state dicts).
CT, MR and PET by their headers. Every rule fuses the same sources, as a reader displays them; the
network's weights follow the harmonized ones. Pairs and the triple are fused and judged twice:
inside the MR's box, where every image sees every voxel, and on the whole planes of the CT that the
MR reaches, where it ends, as it does in use. Each image is judged inside its own field of view, by
`fusion_measures`: Q, VIF and SSIM on three slices (at a quarter, a half and three quarters), and
contrast kept, tone slope, background, saturation and frames in the volume. Last, the triple is
fused on the CT's whole grid as well, as a pipeline does it: how far is that from what the MR's box
alone gives? And with an MR that is cut in the middle: what does its end change before it?
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from fusion_measures import Scene, measures
from fusion_measures import displayed as as_read
from sarcoma_grids import KEYS, Patient, patients
from torch import Tensor, nn

from fusion_pipeline.baselines import FuseBy, average, laplacian_pyramid, maximum, pca
from fusion_pipeline.data import Image
from fusion_pipeline.fuse import Fuse, Fusion, displayed_images, faded
from fusion_pipeline.fuse.shares import FADE_MM
from fusion_pipeline.networks.fusion_net import FusionNet
from fusion_pipeline.networks.harmonization_net import HarmonizationNet
from fusion_pipeline.networks.kinds import kind_of
from fusion_pipeline.pipeline import FusionPipeline

GROUPS = (("ct", "mr"), ("ct", "pet"), ("mr", "pet"), ("ct", "mr", "pet"))
SHOWN = 0.06  # what is no brighter is air
WHOLE_PLANES = ", whole planes"  # of the CT, where the MR ends
Judge = Callable[[np.ndarray, np.ndarray, np.ndarray], dict[str, float]]
Rule = Callable[[dict[str, Image], dict[str, Tensor], dict[str, Image]], Fusion]


def harmonized(network: HarmonizationNet, patient: Patient) -> dict[str, Image]:
    """The three images in [0, 1]."""
    out = {}
    for m, key in enumerate(KEYS):
        with torch.no_grad():
            array = network(
                *(patient.original[m][None, None], kind_of(key)),
                *(patient.valid[m][None, None], patient.body[m][None, None]),
            )[0]
        out[key] = Image(array, patient.affine, key)
    return out


def whole_against_box(
    rule: Fuse, images: dict[str, Image], seen: dict[str, Tensor], box: tuple[slice, ...]
) -> dict[str, float]:
    """Mean differences of fused image and weights, within the box less a rim of 8 voxels."""
    inside = (slice(None), *box)
    whole = rule(images, seen)
    cut = {key: image.with_array(image.array[inside]) for key, image in images.items()}
    alone = rule(cut, {key: one[inside] for key, one in seen.items()})
    within = (slice(None), *[slice(8, -8)] * 3)
    pairs = (
        ("fused", whole.fused.array, alone.fused.array),
        ("weights", whole.weights, alone.weights),
    )
    return {name: float((a[inside] - b)[within].abs().mean()) for name, a, b in pairs}


def cut_against_whole(
    rule: Fuse, images: dict[str, Image], seen: dict[str, Tensor]
) -> dict[str, float]:
    """What the end of an MR changes, which is cut in the middle of the first axis.

    Means over what is shown: how much the fused image differs in the 30 mm before the MR fades; how
    far it lies beyond that with the whole MR and that without where the MR fades; how much all
    weights differ there from those of the whole MR and those without it, mixed by its share; and
    how much larger the step from voxel to voxel is across the end than over the 6 on either side,
    where that is a ratio (1: no frame).
    """
    step = images["mr"].spacing[0]
    half, fade, before = images["mr"].shape[0] // 2, int(FADE_MM / step) + 2, int(30 / step)
    beyond = seen["mr"].clone()
    beyond[:, :half] = 0
    whole, cut = rule(images, seen), rule(images, {**seen, "mr": beyond})
    without = rule(*({k: v for k, v in given.items() if k != "mr"} for given in (images, seen)))
    shown = torch.stack([image.array[0] > SHOWN for image in images.values()]).any(0)
    fading, deep = slice(half, half + fade), slice(half + fade, half + fade + before)
    ends = torch.stack([fusion.fused.array[0] for fusion in (whole, without)])
    found = cut.fused.array[0]
    outside = (found - ends.amax(0)).clamp_min(0) + (ends.amin(0) - found).clamp_min(0)
    mr = list(images).index("mr")
    share = faded((beyond[0] > 0.5).float(), images["mr"].spacing.tolist())
    others = without.weights
    others = torch.cat([others[:mr], torch.zeros_like(others[:1]), others[mr:]])
    expected = share * whole.weights + (1 - share) * others
    apart = (cut.weights - expected).abs().mean(0)

    def mean(values: Tensor, where: slice) -> float:
        return float(values[where][shown[where]].mean())

    both = shown[1:] & shown[:-1]
    steps = found.diff(dim=0).abs()
    at_end = steps[half - 1][both[half - 1]].mean()
    nearby = [n for n in range(half - 7, half + 6) if n != half - 1]
    around = torch.cat([steps[n][both[n]] for n in nearby]).mean()
    return {
        "step across the end over those nearby": float(at_end / around),
        "fused, before the fade": mean((found - ends[0]).abs(), deep),
        "fused, in the fade, beyond those with and without MR": mean(outside, fading),
        "weights, in the fade": mean(apart, fading),
    }


def box_of_mr(patient: Patient) -> tuple[slice, ...]:
    """Where MR sees something."""
    places = torch.nonzero(patient.valid[KEYS.index("mr")] > 0)
    low, high = places.amin(0), places.amax(0) + 1
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))


def scene_of(
    patient: Patient, tumour: np.ndarray, box: tuple[slice, ...], group: Sequence[str]
) -> Scene:
    """What a fused image of some of the images is judged against, within a box."""
    numbers = {key: KEYS.index(key) for key in group}
    bodies = {key: patient.body[m].numpy() > 0 for key, m in numbers.items()}
    views = {key: patient.valid[m].numpy() > 0 for key, m in numbers.items()}
    shown = {
        key: as_read(patient.original[m].numpy(), key, bodies[key]) * views[key]
        for key, m in numbers.items()
    }
    return Scene(
        shown={key: array[box] for key, array in shown.items()},
        view={key: view[box] for key, view in views.items()},
        body=(patient.body[0].numpy() > 0)[box],
        hu=patient.original[0].numpy()[box],
        tumour=tumour[box],
        spacing=patient.spacing,
    )


def tumours(open_data: Path) -> dict[str, np.ndarray]:
    """Per patient the tumour's contour on the CT's grid."""
    entries = json.loads((open_data / "datalist.json").read_text())["ct_mr_pet_3d"]
    return {e["id"]: np.asarray(nib.load(open_data / e["gtv_ct"]).dataobj) > 0 for e in entries}


def by_display(rule: FuseBy) -> Rule:
    """A rule that fuses the images as displayed."""
    return lambda _, seen, shown: rule(shown, seen)


def neutral_judge(folder: Path | None) -> Judge | None:
    """The neutral judge, where it is."""
    if folder is None or not (folder / "source_wise.py").exists():
        return None
    sys.path.insert(0, str(folder))
    from source_wise import source_wise

    return source_wise


def _load(network: nn.Module, path: Path | None, packaged: nn.Module) -> None:
    """Give a network the weights of a file, or the packaged ones."""
    weights = packaged.state_dict() if path is None else torch.load(path, weights_only=True)
    network.load_state_dict(weights)


def main() -> None:
    """Measure, and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--harmonization", type=Path)
    parser.add_argument("--fusion", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--open-data", type=Path, default=Path("../shared/data/open"))
    parser.add_argument("--cache", type=Path, default=Path("/tmp/hf/cache"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    packaged = FusionPipeline.from_bundle().network
    network, fusion = HarmonizationNet().eval(), FusionNet()
    _load(network, arguments.harmonization, packaged.harmonization)
    _load(fusion, arguments.fusion, packaged.fusion)
    network_rule = Fuse(fusion)
    rules: dict[str, Rule] = {
        "ours": network_rule,
        "network alone": Fuse(fusion, steps=0),
        "average": by_display(FuseBy(average)),
        "max": by_display(FuseBy(maximum)),
        "PCA": by_display(FuseBy(pca)),
        "Laplacian": by_display(FuseBy(laplacian_pyramid)),
    }
    contours = tumours(arguments.open_data)
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    apart: list[dict[str, float]] = []
    ended: list[dict[str, float]] = []
    for patient in patients(arguments.open_data, arguments.cache, evaluation=True):
        whole, box = harmonized(network, patient), box_of_mr(patient)
        valid = {k: patient.valid[m][None] for m, k in enumerate(KEYS)}
        apart.append(whole_against_box(network_rule, whole, valid, box))
        originals = {
            k: Image(patient.original[m : m + 1], patient.affine, k) for m, k in enumerate(KEYS)
        }
        displayed = displayed_images(originals, valid)
        inside = (slice(None), *box)
        ended.append(
            cut_against_whole(
                network_rule,
                {k: i.with_array(i.array[inside]) for k, i in whole.items()},
                {k: one[inside] for k, one in valid.items()},
            )
        )
        planes = (slice(None), slice(None), box[2])
        for suffix, region in (("", box), (WHOLE_PLANES, planes)):
            inside = (slice(None), *region)
            images = {k: i.with_array(i.array[inside]) for k, i in whole.items()}
            shown = {k: i.with_array(i.array[inside], units="a.u.") for k, i in displayed.items()}
            fields = {k: one[inside] for k, one in valid.items()}
            for group in GROUPS:
                given = [{key: of[key] for key in group} for of in (images, fields, shown)]
                scene = scene_of(patient, contours[patient.id], region, group)
                table = results.setdefault("–".join(group) + suffix, {})
                for name, rule in rules.items():
                    begun = time.process_time()
                    result = rule(*given)
                    seconds = time.process_time() - begun
                    row = {**measures(result.fused.array[0].numpy(), scene), "cpu_s": seconds}
                    table.setdefault(name, []).append(row)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "fusion.json").write_text(json.dumps(results, indent=1) + "\n")
    text = "\n".join(
        [
            markdown(results),
            sentence(
                "The triple on the CT's whole grid against the MR's box alone, mean difference "
                "within the box less 8 voxels",
                apart,
            ),
            sentence("The triple with an MR that is cut, mean differences", ended),
        ]
    )
    (arguments.out / "fusion.md").write_text(text)
    print(text)


def sentence(what: str, found: list[dict[str, float]]) -> str:
    """Means and standard deviations over the patients."""
    told = [
        f"{name} {np.mean([f[name] for f in found]):.4f} ± {np.std([f[name] for f in found]):.4f}"
        for name in found[0]
    ]
    return f"{what} (n = {len(found)} patients): {'; '.join(told)}.\n"


def line(name: str, rows: Sequence[dict[str, float]], measures: Sequence[str]) -> str:
    """A line of a table: mean ± standard deviation of each measure."""
    cells = [
        f"{np.nanmean([r[m] for r in rows]):.3f} ± {np.nanstd([r[m] for r in rows]):.3f}"
        for m in measures
    ]
    return f"| {name} | {' | '.join(cells)} |"


def markdown(results: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    """A table for each group: mean ± standard deviation over the patients."""
    parts = []
    for group, table in results.items():
        rows = next(iter(table.values()))
        measures = list(rows[0])
        parts += [f"**{group}**, n = {len(rows)} patients", ""]
        parts += [f"| | {' | '.join(measures)} |", "|---" * (len(measures) + 1) + "|"]
        parts += [line(name, rows, measures) for name, rows in table.items()]
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    main()
