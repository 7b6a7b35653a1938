"""The stages at a glance, in the README and at the top of docs/results.md."""

from figure_tables import Figures, rounded, table
from scipy import stats


def summary(f: Figures) -> str:
    """README: a few figures with n and interval."""
    # name, and how many patients the cases are of; each was moved in three draws
    pairs = {
        "ct-mr": ("CT–MR, limb and trunk", 6),
        "ct-pet": ("CT–PET, limb and trunk", 6),
        "tcga-t1-t2": ("MR–MR, brain", 1),
    }

    def row(key: str, name: str, patients: int) -> list[str]:
        one = f"{key}/strong"
        mean, deviation = f.numbers("registration", one, "after")
        before = rounded(f.value("registration", one, "before"), 1)
        after = f"{rounded(mean, 1)} ({_interval(mean, deviation, patients)})"
        return [name, f"{patients}, {f.n('registration', one)}", before, after]

    return table(
        "Mean error over the body in mm after a known strong elastic move of patients never "
        "trained on. In brackets the 95 % interval of the mean over patients (t, spread of the "
        "cases).",
        ["register", "patients, cases", "before", "after"],
        [row(key, *named) for key, named in pairs.items()],
    )


def _interval(mean: float, deviation: float, patients: int) -> str:
    """The 95 % interval of a mean over patients; of one patient there is none."""
    if patients < 2:
        return "–"
    half = stats.t.ppf(0.975, patients - 1) * deviation / patients**0.5
    return f"{rounded(mean - half, 1)} to {rounded(mean + half, 1)}"


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
