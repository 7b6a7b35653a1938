"""The study: generated and real patients, ours against the traditional chain, and the page of it.

    python benchmarks/study.py --output out/study --page docs/study.md           # n = 200: hours
    python benchmarks/study.py --output out/study --patients 24 --page out/page.md     # minutes
    python benchmarks/study.py --output out/study --open ../shared/data/open --page docs/study.md
    python benchmarks/study.py --output out/study --page docs/study.md --parts    # page alone

A stopped run goes on where it was. The rules stand in ``study_rules.md``, written before the run.
"""

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import study_fused
from sarcoma_grids import EVALUATION
from study_page import Part, draw_auroc, note_code, study_page

from fusion_pipeline.cli import main as command
from fusion_pipeline.data import Image, read_image, write_image, write_labels, written_whole
from fusion_pipeline.geometry import WorldMap
from fusion_pipeline.register import Evidence, Registration
from fusion_pipeline.synthesis import diagnostic_patient, save_cohort
from fusion_pipeline.synthesis.diagnosis import LESION_LABEL

_PICTURE_AFFINE = np.diag([-1.0, -1.0, 1.0])
_WINDOW = {"ct": (-160.0, 240.0), "mr": (0.0, None), "pet": (0.0, 10.0)}  # HU, a.u., SUV
_HEIGHTS = (0.35, 0.65)  # of the tumour
_LEAST_OVERLAP = 0.35  # of the CT's body that MR and PET have to show: one thigh of two counts
_BODY_HU = -300.0
_PARTS = ("generated", "sarcoma", "stages")
_GENERATED_TRUTH = (
    "The field that made the PET, at each pixel: the least registration error that can be measured "
    "is 0 mm. What no registration can beat in diagnosis is the row *true alignment*."
)
_SARCOMA_TRUTH = (
    "The alignment is not known, so there is no registration error and no row *true alignment*. MR "
    "was fused rigidly to CT in the clinic: over all 51 patients of the collection the median "
    "residual is 4.4 mm; of the seven below, six have 2.1 mm or less (mutual information). PET and "
    "CT come from one session. The class comes from one planning contour per patient."
)
_STAGE_PATIENTS = 60  # of the part in which one stage is replaced at a time


def generated(output: Path, patients: int) -> Path:
    """The cohort's datalist, written once for each size."""
    datalist = output / "cohort" / "cases.json"
    listed = []
    if datalist.is_file():
        listed = json.loads(datalist.read_text(encoding="utf-8"))["testing"]
    if len(listed) != patients:
        save_cohort([diagnostic_patient(seed) for seed in range(patients)], output / "cohort")
    return datalist


def sarcoma(data: Path, output: Path, only: Sequence[str] = ()) -> Path:
    """Slices of the sarcoma patients as 2D cases, with their classes.

    Args:
        data: with ``datalist.json``.
        output: gets ``sarcoma_slices/``.
        only: these patients; all by default.
    """
    listed = json.loads((data / "datalist.json").read_text(encoding="utf-8"))["ct_mr_pet_3d"]
    root, entries = output / "sarcoma_slices", []
    for patient in listed:
        if not only or patient["id"] in only:
            entries += list(_slices_of(patient, data, root))
    datalist = root / "cases.json"
    with written_whole(datalist) as aside:
        aside.write_text(json.dumps({"testing": entries}, indent=1) + "\n", encoding="utf-8")
    return datalist


def _slices_of(patient: dict[str, Any], data: Path, root: Path) -> Iterator[dict[str, Any]]:
    """Two slices with tumour and two without, or none where a patient lacks the latter."""
    volumes = {
        key: read_image(str(data / patient[key]), key)[0].in_canonical_axes()
        for key in ("ct", "mr", "pet")
    }
    fixed = volumes["ct"]
    still = Registration(WorldMap.identity(3), Evidence("none"))
    marked = read_image(str(data / patient["gtv_ct"]), "mr")[0].in_canonical_axes()
    tumour = still.warp(marked, fixed, nearest=True).array[0].numpy() > 0.5
    body = fixed.array[0].numpy() > _BODY_HU
    on_grid, shown = {"ct": fixed}, np.ones_like(body)
    for key in ("mr", "pet"):
        on_grid[key] = still.warp(volumes[key], fixed)
        # black padding shows nothing, whatever the grid says
        data = (volumes[key].array > volumes[key].fill_value).float()
        view = volumes[key].with_array(data, units="mask")
        shown &= still.warp(view, fixed).array[0].numpy() > 0.5
    share = (shown & body).sum((0, 1)) / np.maximum(body.sum((0, 1)), 1)
    for height, target in _chosen(tumour.any((0, 1)), share > _LEAST_OVERLAP):
        case = f"{patient['id']}-{height:03d}"
        (root / case).mkdir(parents=True, exist_ok=True)
        entry = {"id": case, "patient": patient["id"], "reference": "ct", "target": target}
        for key, image in on_grid.items():
            entry[key] = f"{case}/{key}.png"
            write_image(_picture(image, key, height), root / case / f"{key}.png")
        labels = body[..., height] + tumour[..., height] * 1
        entry["ct_label"] = f"{case}/ct_label.png"
        write_labels(_flat(fixed, labels), root / case / "ct_label.png")
        yield entry


def _chosen(tumour: np.ndarray, shown: np.ndarray) -> list[tuple[int, int]]:
    """Heights and classes: inside the tumour, and as far from it as all images reach."""
    with_tumour = np.flatnonzero(tumour & shown)
    without = np.flatnonzero(~tumour & shown)
    if len(with_tumour) < 2 or len(without) < 2:
        return []
    inside = [int(with_tumour[round(h * (len(with_tumour) - 1))]) for h in _HEIGHTS]
    middle = with_tumour.mean()
    far = without[np.argsort(-np.abs(without - middle), kind="stable")]
    # of the two farthest that do not touch: neighbours would be one slice twice
    second = next((h for h in far[1:] if abs(int(h) - int(far[0])) > 1), far[1])
    return [(height, 1) for height in inside] + [(int(far[0]), 0), (int(second), 0)]


def _picture(image: Image, key: str, height: int) -> Image:
    """One axial slice in grey levels 0..255."""
    values = image.array[0, ..., height].numpy()
    low, high = _WINDOW[key]
    top = float(np.quantile(image.array.numpy(), 0.998)) if high is None else high
    return _flat(image, np.clip((values - low) / max(top - low, 1e-6), 0, 1) * 255)


def _flat(image: Image, values: np.ndarray) -> Image:
    """A slice as a picture, its axes turned so that it stands upright."""
    turned = np.ascontiguousarray(values[::-1, ::-1]).astype(np.float32)
    return image.with_array(
        image.array.new_tensor(turned)[None], affine=_PICTURE_AFFINE, units="a.u."
    )


def first(datalist: Path, patients: int) -> Path:
    """The first cases of a list as a list beside it."""
    listed = json.loads(datalist.read_text(encoding="utf-8"))["testing"][:patients]
    shorter = datalist.with_name("cases_of_stages.json")
    with written_whole(shorter) as aside:
        aside.write_text(json.dumps({"testing": listed}, indent=1) + "\n", encoding="utf-8")
    return shorter


def run(datalist: Path, output: Path, *options: object) -> None:
    """One datalist through the product's own command; a failed case is reported, not fatal."""
    note_code(output)
    given = ["evaluate", "--resume", "--datalist", datalist, "--output", output, *options]
    code = command([str(one) for one in given])
    if code == 2:
        raise SystemExit(code)


def run_all(args: argparse.Namespace) -> None:
    """All parts of the study."""
    diagnosis = ("--diagnosis", args.folds, "--lesion-label", LESION_LABEL)
    diagnosis += ("--diagnosis-steps", args.steps)
    if "generated" in args.parts:
        cohort = generated(args.output, args.patients)
        run(cohort, args.output / "generated", "--against", "traditional", *diagnosis)
        same = ["--folds", str(args.folds), "--steps", str(args.steps)]
        study_fused.main(["--output", str(args.output), *same])
    if "sarcoma" in args.parts and args.open is not None:
        slices = sarcoma(args.open, args.output)
        run(slices, args.output / "sarcoma", "--against", "traditional", *diagnosis)
    if "stages" in args.parts:
        cohort = generated(args.output, args.patients)
        some = first(cohort, min(args.patients, _STAGE_PATIENTS))
        run(some, args.output / "stages", "--against", "stages")


def parts_of(output: Path) -> list[Part]:
    """What the folder holds."""
    parts = [
        Part("Generated patients", "generated", output / "generated", _GENERATED_TRUTH),
        Part(
            "Generated patients: one stage at a time",
            "stages",
            output / "stages",
            _GENERATED_TRUTH,
        ),
        Part(
            "Real patients: sarcoma slices",
            "sarcoma",
            output / "sarcoma",
            _SARCOMA_TRUTH,
            EVALUATION,
        ),
    ]
    return [part for part in parts if (part.folder / "summary.json").is_file()]


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--patients", type=int, default=200)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=150, help="of each classifier")
    parser.add_argument("--open", type=Path, help="folder of the open data, for real patients")
    parser.add_argument("--page", type=Path, required=True, help="made of the parts that are done")
    parser.add_argument(
        "--parts", nargs="*", choices=_PARTS, default=_PARTS, help="what runs; none: the page alone"
    )
    args = parser.parse_args(arguments)
    run_all(args)
    rules = Path(__file__).with_name("study_rules.md").read_text(encoding="utf-8")
    figures = args.page.parent / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    parts = parts_of(args.output)
    for part in parts:
        for source in (part.folder / "diagnosis").glob("*.png"):
            shutil.copyfile(source, figures / f"study_{part.key}_{source.name}")
        told = part.folder / "diagnosis" / "diagnosis.json"
        if told.is_file():
            draw_auroc(told, figures / f"study_{part.key}_auroc.png")
    text = study_page(rules, parts)
    with written_whole(args.page) as aside:
        aside.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
