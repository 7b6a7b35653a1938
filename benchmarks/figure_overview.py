"""The stages at a glance, in the README and at the top of docs/results.md."""

from figure_tables import Figures, rounded, spread, table


def summary(f: Figures) -> str:
    """README: a few figures with n and spread."""
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
    return table(
        "Patients never trained on; mean ± standard deviation over n cases: error over the body "
        "after a known, strong, elastic move; patients are moved several times. Before is the "
        "moved image. Harmonization and fusion are new and were measured on few patients: "
        "[history](docs/history).",
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
    return table(
        "What each stage does. Harmonization and fusion are those of decisions 30 and 31; tables "
        "below that name them are of the versions before.",
        ["stage", "what it does", "measured"],
        [
            [
                "register",
                "pose search, diffeomorphic network, refinement on the images",
                f"demo, mean error: {demo}; real pairs below",
            ],
            [
                "harmonize",
                "a standard of each modality, one increasing curve and a bias field: nothing is "
                "invented, and there is a way back",
                "four patients: [history](history/harmonization.md)",
            ],
            [
                "fuse",
                "weights that sum to one at each scale, for any number of modalities; then descent "
                "on the fusion loss",
                "slices and two patients: [history](history/fusion.md)",
            ],
        ],
    )
