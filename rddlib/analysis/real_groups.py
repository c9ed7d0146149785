"""Sets with known groups: which look is of use, and what each arm does to the rare group, paired by seed.

Everything that decides something here was fixed before the runs (the book's page "Where groups are real: the rules").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import nan

import pandas as pd

from ..base import SettingError
from ..data.looks import CLASSES, recipe
from ..experiments.grid import Job
from ..experiments.records import Record
from ..stats import Interval, mean_interval
from . import rules
from .mechanism import chosen_rates
from .results import by_seed, tidy

# What a network trained on all images must reach on the rare look, as a share of its accuracy on the common one, and
# what one trained on a few random images may reach at most; both above chance.
LEAST_ALL, MOST_RANDOM = 0.85, 0.5
CHANCE = 100 / CLASSES  # per cent
FAMILY = 0.025  # one-sided level of the primary comparison, over all its arms together
MARGIN = 2.0  # points within which two arms are called alike

FLOORS = ("start", "start_representative", "start_covering")
WITHOUT_LABELS = (
    "network_upper",
    "network_lower",
    "matching_upper_all",
    "matching_lower_all",
    "matching_upper_class",
    "matching_lower_class",
    "equal_found",
    "representative",
)
WITH_LABELS = ("matching_upper_true", "equal_true", "balanced", "covering")
ARMS = (*FLOORS, "control", *WITHOUT_LABELS, *WITH_LABELS)
# What tables and figures call an arm; "matched": the term stands in the gradient that is matched.
ARM_WORDS = {
    "start": "random images",
    "start_representative": "representative images",
    "start_covering": "covering images",
    "control": "control",
    "network_upper": "in the network, upper tail",
    "network_lower": "in the network, lower tail",
    "matching_upper_all": "matched, upper tail, any class",
    "matching_lower_all": "matched, lower tail, any class",
    "matching_upper_class": "matched, upper tail, own class",
    "matching_lower_class": "matched, lower tail, own class",
    "equal_found": "found groups alike",
    "representative": "from representative images",
    "matching_upper_true": "matched, upper tail, true groups",
    "equal_true": "true groups alike",
    "balanced": "balanced batches",
    "covering": "from covering images",
}

LOOKS = ("rotated", "inverted", "tinted")  # in the order of the rule
BASE_IPC = 5  # images a class around which the curves move one setting
CURVES = {  # name of a curve -> the setting that moves along it
    "share": "share",
    "ipc": "ipc",
    "length": "outer_steps",
    "alpha": "alpha",
    "groups": "centres_in_all",
}
MEASURES: dict[str, tuple[str, float]] = {  # name -> metric of the records, and its group, nan for one of all images
    "common": ("known_accuracy", 0),
    "rare": ("known_accuracy", 1),
    "worst group": ("known_min", nan),
    "worst class": ("known_class_min", nan),
    "worst cluster": ("cluster_min", nan),
}


# --- look and share ---------------------------------------------------------------------------------------


def qualifies(everything: tuple[float, float], few: tuple[float, float]) -> bool:
    """Whether a look can be learnt and can be lost.

    everything, few: accuracy on the common and on the rare look, per cent, after training on all images and on a few
    random ones. Shares are of accuracy above chance.
    """
    learnt = everything[1] - CHANCE >= LEAST_ALL * (everything[0] - CHANCE)
    lost = few[1] - CHANCE <= MOST_RANDOM * (few[0] - CHANCE)
    return learnt and lost


def looks(records: Iterable[Record]) -> pd.DataFrame:
    """Looks by share and in the order of the rule: accuracies of both trainings in per cent, means over seeds.

    Columns: share, look, all_common, all_rare, random_common, random_rare, qualifies. `records`: runs of the grid
    `looks`, methods "full" and "random".
    """
    frame = tidy(records)
    own = frame[frame["test"] == "known_accuracy"]
    means = own.groupby(["dataset", "method", "group"])["value"].mean()
    rows = []
    for name in own["dataset"].unique():
        asked = recipe(name)
        if asked is None:
            raise SettingError("records", name, "runs on sets with a rare look")
        everything = tuple(means[name, "full"])
        few = tuple(means[name, "random"])
        rows.append([asked.share, asked.look, *everything, *few, qualifies(everything, few)])
    rows.sort(key=lambda row: (-row[0], LOOKS.index(row[1])))
    columns = ["share", "look", "all_common", "all_rare", "random_common", "random_rare", "qualifies"]
    return pd.DataFrame(rows, columns=columns)


# --- arms -------------------------------------------------------------------------------------------------


def arm_names(jobs: Iterable[Job]) -> dict[str, str]:
    """Key of each run -> its arm, without the number of images a class that ends an arm's name in the grid."""
    return {job.key: job.arms[0].split("/")[1].rstrip("0123456789").rstrip("_") for job in jobs}


def named(records: Iterable[Record], names: Mapping[str, str]) -> pd.DataFrame:
    """The rows of `results.tidy` with the arms of `arm_names`."""
    frame = tidy(records)
    return frame.assign(arm=frame["key"].map(names))


def rates(records: Iterable[Record], names: Mapping[str, str]) -> pd.DataFrame:
    """The image rate that each arm gets (`mechanism.chosen_rates`): largest mean accuracy over both looks."""
    frame = named(records, names)
    return chosen_rates(by_seed(frame[frame["test"] == "accuracy"], "arm", "lr_image"))


def by_arm(records: Iterable[Record], names: Mapping[str, str]) -> pd.DataFrame:
    """One row a run, index (ipc, arm, seed), one column a measure (`MEASURES`), in per cent."""
    return _measured(named(records, names), "ipc", "arm")


def _measured(frame: pd.DataFrame, *settings: str) -> pd.DataFrame:
    """One row for each combination of `settings` and seed, one column a measure, in per cent."""
    measures = pd.DataFrame.from_dict(MEASURES, orient="index", columns=["test", "group"]).rename_axis("measure")
    means = by_seed(frame, *settings).merge(measures.reset_index(), on=["test", "group"])
    return means.pivot(index=[*settings, "seed"], columns="measure", values="value").rename_axis(columns=None)


def curve(records: Iterable[Record], names: Mapping[str, str], by: str) -> pd.DataFrame:
    """How measures depend on one setting: index (arm, value, seed), one column a measure, per cent.

    records, names: of the grids `real_groups` and `real_groups_curves` together. `by`: a name of `CURVES`; the arms are
    those that the second grid has for it. Where the arm of the first has the same settings but for that one, it is a
    point of the curve.
    """
    ending = f"_by_{by}"
    frame = named(records, names)
    recipes = [recipe(name) for name in frame["dataset"]]
    frame = frame.assign(
        share=[nan if asked is None else asked.share for asked in recipes],
        centres_in_all=frame["centres_in_all"].fillna(frame["ipc"] * CLASSES),
    )
    moved = frame[frame["arm"].str.endswith(ending)]
    moved = moved.assign(arm=moved["arm"].str.removesuffix(ending))
    base = frame[frame["arm"].isin(moved["arm"].unique()) & (frame["ipc"] == BASE_IPC)]
    setting = CURVES[by]
    return _measured(pd.concat([base, moved]), "arm", setting).rename_axis(index={setting: by})


def present(table: pd.DataFrame, ipc: int) -> list[str]:
    """The arms with two seeds or more at `ipc` images a class, in the order of `ARMS`; `table` as from `by_arm`."""
    seeds = table.groupby(level=("ipc", "arm")).size()
    return [arm for arm in ARMS if seeds.get((ipc, arm), 0) >= 2]


def values(table: pd.DataFrame, ipc: int, arm: str, measure: str) -> pd.Series:
    """Values of an arm by seed, per cent, seeds in order; `table` as from `by_arm`."""
    return table.xs((ipc, arm), level=("ipc", "arm"))[measure].dropna()


def level(table: pd.DataFrame, ipc: int, arm: str, measure: str) -> Interval:
    """Mean of an arm over its seeds, with Student's 95 % interval."""
    return mean_interval(values(table, ipc, arm, measure))


def paired(table: pd.DataFrame, ipc: int, arm: str, other: str, measure: str) -> pd.Series:
    """Differences arm - other, one for each seed that both have, seeds in order."""
    return (values(table, ipc, arm, measure) - values(table, ipc, other, measure)).dropna()


def against(table: pd.DataFrame, ipc: int, arm: str, other: str, measure: str) -> Interval:
    """Mean of `paired`, with Student's 95 % interval."""
    return mean_interval(paired(table, ipc, arm, other, measure))


def gate(table: pd.DataFrame, ipc: int = 5) -> dict[str, Interval]:
    """The two differences on the rare look that must lie above zero before any "no gain" is printed."""
    return {
        "equal_true - control": against(table, ipc, "equal_true", "control", "rare"),
        "start_covering - start": against(table, ipc, "start_covering", "start", "rare"),
    }


def primary(table: pd.DataFrame, ipc: int = 5, arms: Sequence[str] = WITHOUT_LABELS) -> pd.DataFrame:
    """The arms without labels against control on the rare look: difference, adjusted p (Holm), rejected, verdict.

    Rows in order of `arms`; p is one-sided. The verdict is that of the single difference (`rules.decide`).
    """
    gaps = {arm: paired(table, ipc, arm, "control", "rare") for arm in arms}
    adjusted = rules.holm({arm: rules.one_sided(gap) for arm, gap in gaps.items()})
    rows = {}
    for arm, gap in gaps.items():
        decision = rules.decide(gap, MARGIN)
        rows[arm] = {
            "difference": decision.interval,
            "p": adjusted[arm],
            "rejected": adjusted[arm] <= FAMILY,
            "verdict": decision.verdict,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def best_without_labels(tested: pd.DataFrame) -> str | None:
    """Among the arms whose hypothesis is rejected (`primary`), the one with the largest mean difference; else None."""
    won = tested.loc[tested["rejected"], "difference"].to_dict()
    return max(won, key=lambda arm: won[arm].mean) if won else None
