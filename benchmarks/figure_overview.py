"""The stages at a glance, in the README and at the top of docs/results.md."""

from figure_tables import SOURCES, Figures, rounded, spread, table

_RULES = ("average", "max", "pca", "laplacian")


def summary(f: Figures) -> str:
    """README: a few figures with n and spread, the stages without trained parts beside them."""
    pairs = {
        "ct-mr": "register CT–MR, limb and trunk, error in mm",
        "ct-pet": "register CT–PET, limb and trunk, error in mm",
        "tcga-t1-t2": "register MR–MR, brain, error in mm",
    }
    rows = [
        [
            name,
            str(f.n("registration", f"{key}/strong")),
            rounded(f.value("registration", f"{key}/strong", "before"), 1),
            spread(f.numbers("registration", f"{key}/strong", "after")),
        ]
        for key, name in pairs.items()
    ]
    agreement = "correlation/ct-mr"
    edges = max(f.value("fusion", f"ct-pet/{rule}", "q") for rule in _RULES)
    rows += [
        [
            "harmonize CT–MR, correlation",
            str(f.n("harmonization", agreement)),
            rounded(f.value("harmonization", agreement, "zscore"), 2),
            spread(f.numbers("harmonization", agreement, "network")),
        ],
        [
            "fuse CT–PET, share of the weaker image's edges kept",
            str(f.n("fusion", "ct-pet/network")),
            rounded(edges, 2),
            spread(f.numbers("fusion", "ct-pet/network", "q")),
        ],
    ]
    return table(
        "Patients never trained on; mean ± standard deviation over n cases. Registration: "
        "error over the body after a known, strong, elastic move; patients are moved several "
        "times. Before is the moved image, the z-score, and the best of four fusion rules.",
        ["stage", "n", "before", "after"],
        rows,
    )


def stages(f: Figures) -> str:
    """What each stage does, with its most telling figures."""
    demo = ", ".join(
        f"{key.upper()} {rounded(f.value('demo', key, 'before'), 1)} → "
        f"{rounded(f.value('demo', key, 'after'), 1)} mm"
        for key in ("mr", "pet")
    )
    pairs = ("ct-mr", "ct-pet", "mr-pet")
    agreement = ", ".join(
        f"{SOURCES[key]} {rounded(f.value('harmonization', f'correlation/{key}', 'zscore'), 2)} → "
        f"{rounded(f.value('harmonization', f'correlation/{key}', 'network'), 2)}"
        for key in pairs
    )
    edges = [f.value("harmonization", f"edges/{key}", "network") for key in ("ct", "mr", "pet")]
    kept = ", ".join(
        f"{SOURCES[key]} {rounded(f.value('fusion', f'{key}/network', 'q'), 3)} "
        f"({rounded(f.value('fusion', f'{key}/average', 'q'), 3)}, "
        f"{rounded(f.value('fusion', f'{key}/laplacian', 'q'), 3)})"
        for key in pairs
    )
    return table(
        "What each stage does and one figure for it, on the demo (one synthetic head) and on "
        f"{f.n('fusion', 'ct-mr/network')} sarcoma patients never trained on.",
        ["stage", "what it does", "measured"],
        [
            [
                "register",
                "pose search, diffeomorphic network, refinement on the images",
                f"demo, mean error: {demo}; real pairs below",
            ],
            [
                "harmonize",
                "smooth increasing tone curves, which cannot invent structure",
                f"correlation, z-score → ours: {agreement}; "
                f"{rounded(100 * min(edges), 0)}–{rounded(100 * max(edges), 0)} % of edges kept",
            ],
            [
                "fuse",
                "attention weights that sum to one, for any number of modalities",
                f"edges kept of the weaker source (average, Laplacian pyramid): {kept}",
            ],
        ],
    )
