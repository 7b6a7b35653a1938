"""The tables and sentences that texts state, made from the figures: a function for each block."""

from collections.abc import Callable, Sequence

from figure_overview import stages, summary
from figure_tables import SOURCES, Figures, rounded, spread, table

MOVES = ("rigid", "mild", "strong")
PAIRS = {
    "ct-mr": "CT–MR, limb and trunk",
    "ct-pet": "CT–PET, limb and trunk",
    "tcga-t1-t2": "T1–T2, brain",
    "tcga-t1-flair": "T1–FLAIR, brain",
    "templates": "T1–T2, templates",
    "painted-ct-t1": "CT–T1, painted heads",
    "painted-t1-pet": "T1–PET, painted heads",
}
SLICES = {"ct-mr": "CT–MR", "pet-mr": "PET–MR", "spect-mr": "SPECT–MR"}
PEERS = ("convexadam", "greedy")
NETWORKS = ("gesenet", "ifcnn", "u2fusion", "matr")
RULES = ("average", "max", "laplacian", "gff")


def _cases() -> list[tuple[str, str]]:
    """Row and name of each pair and move."""
    return [(f"{key}/{move}", f"{name}, {move}") for key, name in PAIRS.items() for move in MOVES]


def registration(f: Figures) -> str:
    """Mean error before and after each kind of move, and the nearer of two peers."""

    def cell(case: str) -> str:
        before, after = (f.value("registration", case, c) for c in ("before", "after"))
        peer = min(f.value("registration_peers", f"{case}/{p}", "after") for p in PEERS)
        return f"{rounded(before, 1)} → **{rounded(after, 2)}** ({rounded(peer, 2)})"

    rows = [
        [name, str(f.n("registration", f"{key}/rigid")), *[cell(f"{key}/{m}") for m in MOVES]]
        for key, name in PAIRS.items()
    ]
    return table(
        "Mean target registration error over the body in mm, before → after one image was moved by "
        "a known map; in brackets the nearer of convexAdam and greedy on the same cases (limb "
        "and trunk: on 6 of the 18, which are 6 patients in three draws). Rigid: up to 15°, 20 mm. "
        "Mild: elastic up to 5 mm as well. Strong: 20°, 25 mm, ±8 %, elastic up to 12 mm.",
        ["pair", "n", *MOVES],
        rows,
    )


def registration_details(f: Figures) -> str:
    """Spread, median and tail of our errors."""

    def row(case: str, name: str) -> list[str]:
        read = {c: f.value("registration", case, c) for c in ("before", "median", "p95", "worse")}
        return [
            name,
            str(f.n("registration", case)),
            rounded(read["before"], 1),
            spread(f.numbers("registration", case, "after")),
            f"{rounded(read['median'], 2)}, {rounded(read['p95'], 1)}",
            f"{rounded(read['worse'], 0)} %",
        ]

    folded = max(f.value("registration", case, "folded") for case, _ in _cases())
    return table(
        "Ours: target registration error over the body in mm, mean ± SD over n cases. Limb and "
        "trunk: 6 patients in three draws. Brain and templates: one pair in three draws. Painted "
        "heads: 3 heads in one draw. Median, mean of the cases' 95th percentiles, and the share of "
        "cases that end further off than they began. Largest share of folded voxels in a case: "
        f"{rounded(folded, 4)} %.",
        ["pair, move", "n", "before", "after", "median, p95", "worse"],
        [row(*case) for case in _cases()],
    )


def registration_peers(f: Figures) -> str:
    """Ours and two peers on the same cases."""

    def row(case: str, name: str) -> list[str]:
        first = case.startswith(("ct-mr/", "ct-pet/"))
        ours = f.value(*(("first_draw", case) if first else ("registration", case, "after")))
        theirs = [
            spread(f.numbers("registration_peers", f"{case}/{p}", "after")[:1]) for p in PEERS
        ]
        count = f.n("registration_peers", f"{case}/convexadam")
        seconds = rounded(f.value("registration", case, "cpu_s"), 0)
        return [name, str(count), rounded(ours, 2), *theirs, seconds]

    return table(
        "Mean target registration error in mm on the same n cases (limb and trunk: the first "
        "draw), peers with their defaults at 2 mm, deformable, without masks; CPU seconds of ours "
        "on one thread, beside two to four other jobs.",
        ["pair, move", "n", "ours", "convexAdam", "greedy", "CPU s"],
        [row(*case) for case in _cases()],
    )


def no_refinement(f: Figures) -> str:
    """What the refinement costs and brings."""
    names = {
        "ct-mr": "CT–MR, limb",
        "ct-pet": "CT–PET, limb",
        "ct-t1": "CT–T1, painted heads",
        "t1-pet": "T1–PET, painted heads",
    }

    def row(key: str, name: str) -> list[str]:
        seconds, without, refined = (f"{one:g}" for one in f.numbers("no_refinement", key))
        return [name, str(f.n("no_refinement", key)), seconds, without, refined]

    return table(
        "Without refinement (`--refine-steps 0`), mild moves, first draw: CPU seconds on one "
        "thread, and the mean target registration error without and with refinement in mm.",
        ["pair", "n", "CPU s without", "error without", "error with"],
        [row(*one) for one in names.items()],
    )


def seconds(f: Figures) -> str:
    """CPU seconds of limbs and heads."""

    def span(pairs: Sequence[str]) -> str:
        cells = [
            f.value("registration", f"{pair}/{move}", "cpu_s") for pair in pairs for move in MOVES
        ]
        return f"{rounded(min(cells), 0)}–{rounded(max(cells), 0)}"

    limbs, heads = list(PAIRS)[:2], list(PAIRS)[2:]
    return (
        f"A pair takes {span(limbs)} CPU seconds (limb and trunk) or {span(heads)} (brains and "
        "heads): mean of each kind of move, one thread, refinement included."
    )


def registration_far(f: Figures) -> str:
    """Far rigid starts."""

    def row(key: str, name: str) -> list[str]:
        before, after, worst, success = (
            f.numbers("registration_far", key, c) for c in ("before", "after", "worst", "success")
        )
        return [
            name,
            str(f.n("registration_far", key)),
            rounded(before[0], 1),
            spread(after),
            rounded(worst[0], 1),
            f"{rounded(success[0], 0)} %",
        ]

    return table(
        "Rigid moves of 15–30° and 20–40 mm, one draw, n cases: target registration error in mm, "
        "mean ± SD and the furthest case. Success: the share of cases under 3 mm or under a voxel "
        "of the coarser image (the cube root of its volume).",
        ["pair", "n", "before", "after", "furthest", "success"],
        [row(key, name) for key, name in PAIRS.items()],
    )


def flags(f: Figures) -> str:
    """How many poor results ``ok`` finds, and how many good ones it doubts."""

    def row(key: str) -> list[str]:
        cases = [f"{key}/{move}" for move in MOVES]
        flagged, over = f.numbers("flags", f"{key}/over")
        all_flagged = sum(f.value("registration", case, "flagged") for case in cases)
        count = sum(f.n("registration", case) for case in cases)
        return [
            SOURCES[key],
            str(count),
            f"{flagged} of {over}",
            f"{all_flagged - flagged} of {count - over}",
            rounded(f.value("flags", f"{key}/rank"), 2),
        ]

    return table(
        "Results with `ok: false` among n held-out results of known truth (6 patients, three "
        "moves, three draws), and the rank correlation of `error_mm` with the true error.",
        ["pair", "n", "flagged over 5 mm", "flagged under 5 mm", "rank correlation"],
        [row(key) for key in ("ct-mr", "ct-pet")],
    )


def flags_at_5(f: Figures) -> str:
    """What the limit of doubt did to the flags."""
    counts = [f.numbers("flags", f"{key}/at_5") for key in ("ct-mr", "ct-pet")]
    (mr, mr_all), (pet, pet_all) = counts
    return (
        "The limit of 4 mm was chosen after two of these results had been estimated at 4.9 and "
        f"5.0 mm. With a limit of 5 mm, {mr} of {mr_all} (CT–MR) and {pet} of {pet_all} (CT–PET) "
        "would be flagged."
    )


def sts026(f: Figures) -> str:
    """The one patient that decides CT–MR."""
    alone = " / ".join(rounded(x, 1) for x in f.numbers("ct_mr_patients", "sts026"))
    others = " / ".join(rounded(x, 2) for x in f.numbers("ct_mr_patients", "others"))
    return (
        f"One of the six patients, sts026 (a thigh), ends {alone} mm from its headers (rigid / "
        f"mild / strong), and is flagged each time. The other five end at {others} mm. Contours "
        "fit our pose of sts026 better than its headers, so how much of this is error is not known."
    )


def harmonization(f: Figures) -> str:
    """How far two protocols of one anatomy lie apart."""

    def row(key: str) -> list[str]:
        cells = [spread(f.numbers("harmonization", f"residual/{key}", "network"), 3)]
        cells += [
            rounded(f.value("harmonization", f"residual/{key}", m), 3) for m in ("zscore", "nyul")
        ]
        cells.append(rounded(f.value("harmonization", f"oracle/{key}", "network"), 3))
        smooth = [
            rounded(f.value("harmonization", f"smoothed/{key}", c), 3)
            for c in ("network", "zscore")
        ]
        return [key.upper(), *cells, " / ".join(smooth)]

    return table(
        "Difference between two protocols of one anatomy over the body, in standard deviations of "
        f"the output (lower is better); mean over {f.n('harmonization', 'residual/ct')} held-out "
        "sarcoma patients. Oracle: what the best increasing curve and smooth bias leave. Last: "
        "ours and z-score after 2 mm of smoothing.",
        ["image", "ours", "z-score", "Nyúl", "oracle", "smoothed"],
        [row(key) for key in ("ct", "mr", "pet")],
    )


def harmonization_kept(f: Figures) -> str:
    """What each image keeps of its input."""

    def row(key: str) -> list[str]:
        kept = [
            rounded(f.value("harmonization", f"{what}/{key}", "network"), 2)
            for what in ("separation", "rank", "direction")
        ]
        lesion = rounded(f.value("harmonization", "tumour/pet", "network"), 2)
        return [key.upper(), *kept, lesion if key == "pet" else "–"]

    return table(
        "What a harmonized image keeps of its input, mean over "
        f"{f.n('harmonization', 'separation/ct')} held-out sarcoma patients: separation of "
        "tissues and contrast-to-noise of the tumour over the input's, rank correlation in blocks "
        "of 24 voxels, and cosine of the gradients.",
        ["image", "separation", "rank", "gradients", "tumour"],
        [row(key) for key in ("ct", "mr", "pet")],
    )


def fusion(f: Figures) -> str:
    """Edges of the weaker source against the traditional rules."""
    methods = ("network", "average", "max", "pca", "laplacian")

    def row(key: str) -> list[str]:
        found = {m: f.numbers("fusion", f"{key}/{m}", "q") for m in methods}
        best = max(found, key=lambda m: found[m][0])
        cells = [
            rounded(found[m][0], 3) if m != "network" else spread(found[m], 3) for m in methods
        ]
        cells = [f"**{c}**" if m == best else c for m, c in zip(methods, cells, strict=True)]
        return [SOURCES[key], *cells]

    return table(
        f"Edges kept of the weaker source (Q_MIN, higher is better), mean (ours ± SD) over "
        f"{f.n('fusion', 'ct-mr/network')} held-out sarcoma patients, aligned by their headers.",
        ["sources", "ours", "average", "maximum", "PCA", "Laplacian pyramid"],
        [row(key) for key in SOURCES],
    )


def _best(f: Figures, group: str, key: str, column: str, methods: Sequence[str]) -> float:
    """The highest score among methods."""
    return max(f.value(group, f"{key}/{m}", column) for m in methods)


def fusion_atlas(f: Figures) -> str:
    """The 3D fusion network alone, against published networks."""

    def row(key: str) -> list[str]:
        cells = []
        for column in ("q", "ssim"):
            cells.append(rounded(f.value("fusion_atlas", f"{key}/ours", column), 3))
            cells.append(rounded(_best(f, "fusion_atlas", key, column, NETWORKS), 3))
        return [SLICES[key], str(f.n("fusion_atlas", f"{key}/ours")), *cells]

    return table(
        "The 3D fusion network alone on n slices of the Harvard Whole Brain Atlas, raw grey "
        "values, and the best of GeSeNet, IFCNN, U2Fusion and MATR: edges (Q_MIN) and structure "
        "(SSIM_MIN) kept of the weaker source.",
        ["pair", "n", "Q_MIN, ours", "best network", "SSIM_MIN, ours", "best network"],
        [row(key) for key in SLICES],
    )


def pictures(f: Figures) -> str:
    """The whole 2D pipeline, against networks and rules on the same input."""
    inputs = {
        "left": ("aligned, `--transform none`", 0),
        "aligned": ("aligned, registered nevertheless", 0),
        "misaligned": ("moved by up to 5°, 10 + 8 pixels", 1),
    }

    def cell(key: str, which: str, number: int) -> str:
        ours = f.value("slices_fusion", f"{key}/{which}", "q")
        rivals = [f.numbers("slices_rivals", f"{key}/{m}", "q")[number] for m in NETWORKS + RULES]
        mine, theirs = rounded(ours, 3), rounded(max(rivals), 3)
        return f"**{mine}** ({theirs})" if ours > max(rivals) else f"{mine} (**{theirs}**)"

    return table(
        "Edges kept of the weaker source (Q_MIN, higher is better) by the whole pipeline, on n "
        "slices of the Harvard Whole Brain Atlas; in brackets the best of four published networks "
        "and four rules on the same input.",
        ["input", *[f"{v}, n = {f.n('slices_fusion', f'{k}/left')}" for k, v in SLICES.items()]],
        [
            [name, *[cell(key, which, number) for key in SLICES]]
            for which, (name, number) in inputs.items()
        ],
    )


def pictures_registration(f: Figures) -> str:
    """Error of the 2D pipeline after known moves."""
    names = {f"{k}/misaligned": f"{v}, Atlas" for k, v in SLICES.items()} | {
        "sarcoma-ct-mr/misaligned": "CT–MR, held-out sarcoma",
        "sarcoma-ct-pet/misaligned": "CT–PET, held-out sarcoma",
    }

    def row(key: str, name: str) -> list[str]:
        before, after, median, worse = (
            f.numbers("slices_registration", key, c) for c in ("before", "after", "median", "worse")
        )
        return [
            name,
            str(f.n("slices_registration", key)),
            rounded(before[0], 2),
            spread(after),
            rounded(median[0], 2),
            f"{worse[0]} ({worse[1]})",
        ]

    return table(
        "Mean end-point error over the tissue in pixels, mean ± SD over n slices. Each slice was "
        "moved by up to 5°, 10 pixels and 8 pixels elastic. Worse: slices that end further off "
        "than they began; in brackets those of them that are not flagged.",
        ["pair", "n", "before", "after", "median", "worse"],
        [row(*one) for one in names.items()],
    )


def different_people(f: Figures) -> str:
    """Dice between heads of different people."""
    names = {"ct-mr": "CT–T1", "mr-mr_t2": "T1–T2"}

    def row(key: str, name: str) -> list[str]:
        methods = ("ours", *PEERS)
        after = [f.numbers("different_people", f"{key}/{m}", "after") for m in methods]
        before = rounded(f.value("different_people", f"{key}/ours", "before"), 3)
        count = str(f.n("different_people", f"{key}/ours"))
        return [name, count, before, *[spread(one, 3) for one in after]]

    return table(
        "Dice of brain labels between painted heads of different people, mean ± SD over n pairs, "
        "with `same_person=False`.",
        ["contrasts", "n", "before", "ours", "convexAdam", "greedy"],
        [row(*one) for one in names.items()],
    )


def cost(f: Figures) -> str:
    """Seconds and memory by spacing."""
    names = {"sarcoma": "CT–MR, limb", "painted": "CT–T1, painted head"}

    def row(key: str, spacing: str) -> list[str]:
        one = f"{key}/{spacing}"
        error, before = f.numbers("cost", one, "error")
        return [
            names[key],
            spacing,
            rounded(f.value("cost", one, "cpu_s"), 0),
            rounded(f.value("cost", one, "peak_mib") / 1024, 1),
            f"{rounded(before, 2)} → {rounded(error, 2)}",
        ]

    return table(
        "Cost of one mild pair each, refined, by the spacing of the working lattice: CPU seconds "
        "on one thread, peak memory, target registration error. By itself the pipeline chooses 2 "
        "to 4 mm.",
        ["pair", "spacing, mm", "CPU s", "peak GiB", "error, mm"],
        [row(key, spacing) for key in names for spacing in ("4", "2", "1")],
    )


def full_size(f: Figures) -> str:
    """One patient at a scanner's full size."""
    total, memory, registering, fusing, writing = (
        f"{one:g}" for one in f.numbers("full_size", "all")
    )
    return (
        "One patient at a scanner's full size (CT 512 × 512 × 250, MR 384 × 384 × 60, PET 200 × "
        f"200 × 60) takes {total} CPU s and {memory} GB from files to report. Registering both "
        f"takes {registering} of them, fusing {fusing}, writing {writing} (one run, one thread, "
        "beside one other job)."
    )


def cohort(f: Figures) -> str:
    """All patients as scanned."""
    good, patients = f.numbers("cohort", "not_worse")
    seconds, registering, memory = f.numbers("cohort", "cost")
    return (
        f"Of {patients} sarcoma patients as scanned 20 are training patients. In {good} of "
        f"{patients} neither MR nor PET is less similar in NMI or MIND than by its headers, and no "
        f"voxel folds. This is necessary, not sufficient. A patient takes {seconds} CPU s, "
        f"{registering} of them for registration (beside one to three other jobs, which double "
        f"them), and at most {rounded(memory / 1024, 1)} GiB."
    )


BLOCKS: dict[str, Callable[[Figures], str]] = {
    "summary": summary,
    "stages": stages,
    "registration": registration,
    "registration-details": registration_details,
    "registration-peers": registration_peers,
    "no-refinement": no_refinement,
    "seconds": seconds,
    "registration-far": registration_far,
    "flags": flags,
    "flags-at-5": flags_at_5,
    "sts026": sts026,
    "harmonization": harmonization,
    "harmonization-kept": harmonization_kept,
    "fusion": fusion,
    "fusion-atlas": fusion_atlas,
    "pictures": pictures,
    "pictures-registration": pictures_registration,
    "different-people": different_people,
    "cost": cost,
    "full-size": full_size,
    "cohort": cohort,
}
