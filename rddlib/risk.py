"""Value at risk, CVaR of either tail, CVaR by group, and the robust loss made of them.

One convention everywhere: `alpha` is the TAIL MASS, in (0, 1]. The upper tail is the mean of the worst
(largest) alpha share of the losses, the lower tail the mean of the best share. A share need not be a whole
number of items: the item on its boundary counts with the fraction that is left, which makes the value exact
(Rockafellar & Uryasev, 2002) and continuous in alpha.

Losses are computed in their own dtype (half precision is raised to float32), weights in float64. A NaN or an
infinity anywhere in a group makes that group's CVaR not finite, whichever tail is asked for: it is never
sorted out of sight, except by the public code's own estimator (`released_group_cvar`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from .base import SettingError, Settings, check_choice, check_type, setting

Tail = Literal["upper", "lower"]
TAILS = get_args(Tail)

# alpha * n this close (relative) to a whole number is that number: 20 * (1 - 0.8) = 3.9999999999999996 is 4
# items. The slack is far above rounding and no more than the accuracy that the values are held to.
WHOLE = 1e-12

# Up to this many float32 losses are sorted together with their groups as one int64 key, 1.5 times as fast as two
# sorts but above the memory of ten times the losses that a large problem may take.
ONE_KEY = 2**16


def value_at_risk(losses: Tensor, alpha: float, tail: str = "upper") -> Tensor:
    """The loss at which the tail of mass alpha begins: f_alpha of the paper (section 3) for ``tail="lower"``.

    Lower: min{f : share of losses <= f is at least alpha}. Upper: the same of the negated losses, negated,
    which is the largest minimiser of `rockafellar_uryasev`. losses (n,) -> scalar. Cost: one sort. Raises
    SettingError for an empty or non-float `losses`, alpha outside (0, 1], or an unknown tail.
    """
    losses = _checked(losses, alpha, tail)
    ordered = losses.sort(descending=tail == "upper").values
    item = ordered[math.ceil(_tail_items(len(losses), alpha)) - 1]
    return torch.where(losses.isnan().any(), torch.nan, item)


def tail_weights(losses: Tensor, alpha: float, tail: str = "upper") -> Tensor:
    """The weights (n,) with which CVaR averages the losses: they sum to 1 and none exceeds 1 / (alpha n).

    They solve the dual problem max{q . F : 0 <= q <= 1/(alpha n), sum q = 1} (min for the lower tail) and are
    therefore a subgradient of CVaR at `losses`; at ties one of several. No gradient flows through them.
    Errors as `value_at_risk`.
    """
    losses = _checked(losses.detach(), alpha, tail)
    items = _tail_items(len(losses), alpha)
    position = torch.arange(len(losses), dtype=torch.float64, device=losses.device)
    weights = ((items - position).clamp(0, 1) / items).to(losses.dtype)
    order = losses.argsort(descending=tail == "upper")
    return torch.zeros_like(losses).scatter(0, order, weights)


def cvar(losses: Tensor, alpha: float, tail: str = "upper") -> Tensor:
    """Conditional value at risk: the mean of the worst (upper) or best (lower) alpha share.

    losses (n,) -> scalar. The lower tail is the bracket of the paper's CVaR display over alpha; upper =
    -lower of -losses, the Rockafellar-Uryasev minimum. alpha = 1 is the mean, alpha -> 0 the maximum
    (minimum). Differentiable: the gradient is `tail_weights`. Cost: one sort. Errors as `value_at_risk`.
    """
    losses = _checked(losses, alpha, tail)
    return (losses * tail_weights(losses, alpha, tail)).sum()


def cvar_as_printed(losses: Tensor, alpha: float) -> Tensor:
    """The paper's CVaR display (section 3) term by term, with its minus sign.

    losses (n,) -> scalar, equal to -cvar(losses, alpha, "lower"). Minimising it raises the losses and has no
    lower bound: it is here to be looked at. Applied to the reward, `cvar_as_printed(-losses, alpha)`, it is
    the upper tail. It cancels before it divides by alpha, so a small alpha costs digits; `cvar` does not.
    """
    threshold = value_at_risk(losses, alpha, "lower")
    below = (losses <= threshold).to(losses.dtype)
    return -((losses * below).mean() + threshold * (alpha - below.mean())) / alpha


def rockafellar_uryasev(losses: Tensor, threshold: Tensor, alpha: float) -> Tensor:
    """c + mean(max(F - c, 0)) / alpha for each threshold c: convex, with the upper-tail CVaR as minimum.

    losses (n,), threshold (m,) -> (m,). Source: Rockafellar & Uryasev (2000), theorem 1. Cost: n * m. Errors as
    `value_at_risk`.
    """
    losses = _checked(losses, alpha, "upper")
    excess = (losses[:, None] - threshold[None, :]).clamp(min=0)  # (n, m)
    return threshold + excess.mean(0) / alpha


def group_cvar(
    losses: Tensor, groups: Tensor, n_groups: int, alpha: float, tail: str = "upper"
) -> tuple[Tensor, Tensor]:
    """CVaR within each group: values (n_groups,) and counts (n_groups,); an empty group has 0 and 0.

    losses (n,) float; groups (n,) int64 in [0, n_groups). Exact for every group size, differentiable in the
    losses, without a loop over groups or samples and without a host sync. Cost O(n log n), two sorts.
    For several problems at once, flatten and add n_groups * problem to `groups`. Raises SettingError for
    wrong shapes or dtypes and, on a CPU, for a group out of range. On a GPU such a group trips the
    device-side assertion of the indexing kernel instead, because looking would make the host wait.
    """
    losses = _checked(losses, alpha, tail, groups, n_groups)
    with torch.no_grad():
        order, member, counts = _order_in_groups(losses, groups, n_groups, tail == "upper")
        items = counts.double() * alpha  # (n_groups,)
        nearest = items.round()
        items = torch.where((items - nearest).abs() <= WHOLE * items, nearest, items).clamp(min=1)
        fraction = items.frac().to(losses.dtype).index_select(0, member)  # (n,) of the item on the boundary
        share = (_left(member, counts, items.long()) + fraction).clamp(0, 1)
        share = share.scatter(0, order, share)  # (n,) how much of each loss counts, in the order of the losses
    values = losses.new_zeros(n_groups).index_add(0, groups, losses * share) / items.to(losses.dtype)
    return values, counts


def released_group_cvar(losses: Tensor, groups: Tensor, n_groups: int, alpha: float) -> tuple[Tensor, Tensor]:
    """The value that the public code (commit 2709295) computes for each group; counts as in `group_cvar`.

    Each group's losses are padded with zeros to the longest group's length L and sorted upwards. Of the first
    k = max(1, int(alpha L)) the mean of the non-zero ones, plus the k-th value times (alpha - k / L), all
    over alpha: 0 where padding fills the share. Written from that description, int() with its rounding
    included. losses must be >= 0 (a cross-entropy is). Shapes and errors as `group_cvar`.
    """
    losses = _checked(losses, alpha, "lower", groups, n_groups)
    order, member, counts = _order_in_groups(losses.detach(), groups, n_groups, descending=False)
    longest = counts.max()
    kept = (longest.double() * alpha).floor().clamp(min=1)  # scalar: padding and losses together
    left = _left(member, counts, kept.long() - (longest - counts))
    ordered = losses.index_select(0, order)
    live = (left > 0) & (ordered != 0)
    empty = losses.new_zeros(n_groups)
    total = empty.index_add(0, member, torch.where(live, ordered, 0))
    mean = total / empty.index_add(0, member, live.to(losses.dtype)).clamp(min=1)
    last = empty.index_add(0, member, torch.where(left == 1, ordered, 0))
    return (mean + last * (alpha - kept / longest).to(losses.dtype)) / alpha, counts


class TermWeights(Settings):
    """The numbers of Eq. 2, declared here for the term and for the experiments that have one."""

    title: ClassVar[str] = "Robust term and its groups"

    alpha: float = setting(0.8, "tail mass of the CVaR: the share of each group that counts", above=0, high=1)
    average: float = setting(1.0, "weight of the average of the groups' CVaR", low=0)
    worst: float = setting(1.0, "weight of the largest of the groups' CVaR", low=0)


class RiskTerm(TermWeights):
    """What is added to the mean loss: average * mean + worst * max of the (non-empty) groups' CVaR (Eq. 2)."""

    tail: Tail = setting("upper", "which share: the worst losses (upper) or the best (lower)")
    differentiable: bool = setting(True, "whether the term has a gradient, or is a logged constant")
    sign: Literal[1, -1] = setting(1, "sign of each group's CVaR; -1 is the printed minus")
    zero_padded: bool = setting(False, "value of the public code, see released_group_cvar; lower tail only")
    gradient_scale: float = setting(
        1.0, "factor on the gradient, not the value, of the mean loss (2 in the first release)", low=0.0
    )

    def conflicts(self) -> Iterator[SettingError]:
        """The public code's value is that of the lower tail."""
        if self.zero_padded and self.tail != "lower":
            yield SettingError("tail", self.tail, "lower where zero_padded is set")

    @property
    def total_weight(self) -> float:
        """1 + average + worst, the weights of cross-entropy and term together; 1 where the term has no gradient."""
        return 1 + self.average + self.worst if self.differentiable else 1.0

    @staticmethod
    def preset(name: str, **overrides: Any) -> RiskTerm:
        """One of the named variants, other fields as given; SettingError for an unknown name or field.

        control: the mean loss alone. released / released_2024: the public code's value, with the gradient of
        control / twice that (its loop adds the term on every third batch only: see `released_step`).
        lower: the paper's bracket with a plus sign. upper: textbook risk aversion. literal: the printed minus
        sign, unbounded below.
        """
        check_choice("risk", name, PRESETS)
        return RiskTerm(**(PRESETS[name] | overrides))


_RELEASED: dict[str, Any] = {"tail": "lower", "differentiable": False, "zero_padded": True}
PRESETS: dict[str, dict[str, Any]] = {
    "control": {"average": 0.0, "worst": 0.0},
    "released": _RELEASED,
    "released_2024": _RELEASED | {"gradient_scale": 2.0},
    "lower": {"tail": "lower"},
    "upper": {"tail": "upper"},
    "literal": {"tail": "lower", "sign": -1},
}


def group_risk(losses: Tensor, groups: Tensor, n_groups: int, term: RiskTerm, weights: Tensor | None = None) -> Tensor:
    """The bracket of Eq. 2, a scalar: average * mean + worst * max over the non-empty groups of their CVaR.

    With `weights` (n_groups,), positive, their weighted mean over the non-empty groups stands for the maximum, as in
    group DRO (Sagawa et al. 2020); `group_weights` moves them. The paper divides by |S|, all groups; the two agree
    where no group is empty. With `zero_padded`, groups of value 0 drop out of the average as they do in the public
    code. Shapes, cost and errors as `group_cvar`.
    """
    if term.zero_padded:
        released, _ = released_group_cvar(losses, groups, n_groups, term.alpha)
        live = released != 0
        values = term.sign * released
        worst = values.amax()
    else:
        cvars, counts = group_cvar(losses, groups, n_groups, term.alpha, term.tail)
        live = counts > 0
        values = term.sign * cvars
        worst = values.masked_fill(~live, -torch.inf).amax()
        if weights is not None:
            shares = weights * live
            worst = (shares * values).sum() / shares.sum()
    return term.average * (values.sum() / live.sum().clamp(min=1)) + term.worst * worst


def robust_loss(losses: Tensor, groups: Tensor, n_groups: int, term: RiskTerm) -> Tensor:
    """The loss of a training step, a scalar: mean of the losses + `group_risk`.

    losses (n,), n >= 1; groups (n,) int64 in [0, n_groups). With average = worst = 0 the groups are not
    looked at and the cost is that of the mean. With ``differentiable=False`` the term is a constant: the
    gradient is exactly that of the mean. Errors as `group_cvar`.
    """
    loss = mean = _floats(losses).mean()
    if term.gradient_scale != 1:
        loss = mean + (term.gradient_scale - 1) * (mean - mean.detach())
    if term.average == 0 and term.worst == 0:
        return loss
    return loss + group_risk(losses if term.differentiable else losses.detach(), groups, n_groups, term)


@torch.no_grad()
def group_weights(
    weights: Tensor, losses: Tensor, groups: Tensor, n_groups: int, term: RiskTerm, step: float
) -> Tensor:
    """Running weights of the groups after one more batch: (n_groups,), positive, sum 1 but for rounding.

    Algorithm 1 of group DRO (Sagawa et al. 2020) with CVaR as the loss of a group: w <- w exp(step * CVaR), then
    normalised; a group without images in the batch keeps its weight before that. `step` >= 0; 0 leaves equal weights
    equal, a large one gives the largest group nearly all. Shapes and errors as `group_cvar`.
    """
    values, counts = group_cvar(losses, groups, n_groups, term.alpha, term.tail)
    logits = weights.log() + step * torch.where(counts > 0, term.sign * values, torch.zeros_like(values))
    return logits.softmax(0).clamp(min=torch.finfo(logits.dtype).tiny)  # a weight of 0 would never rise again


def released_step(batch: int) -> bool:
    """Whether the public code adds its term at this batch of an epoch: at 0, 3, 6, ...

    The losses it uses are those of all batches since the last such one: one batch first, then three at a time.
    """
    return batch % 3 == 0


def _checked(losses: Tensor, alpha: float, tail: str, groups: Tensor | None = None, n_groups: int = 1) -> Tensor:
    """The losses, at least float32, after the checks that cost no look at the data."""
    RiskTerm.checked({"alpha": alpha, "tail": tail})
    losses = _floats(losses)
    if groups is not None:
        check_type("groups", groups, Tensor, "a tensor")
        if groups.dtype != torch.int64 or groups.shape != losses.shape:
            raise SettingError("groups", (groups.dtype, tuple(groups.shape)), "int64, shaped as the losses")
    if isinstance(n_groups, bool) or not isinstance(n_groups, int) or n_groups < 1:
        raise SettingError("n_groups", n_groups, "an int of at least 1")
    return losses


def _floats(losses: Tensor) -> Tensor:
    """The losses, at least float32; SettingError unless they are a tensor of floats of shape (n,)."""
    check_type("losses", losses, Tensor, "a tensor")
    if losses.dim() != 1 or not losses.is_floating_point() or not 0 < len(losses) < 2**31:
        raise SettingError("losses", (losses.dtype, tuple(losses.shape)), "floats of shape (n,), 1 <= n < 2^31")
    return losses.float() if losses.dtype in (torch.float16, torch.bfloat16) else losses


def _tail_items(count: int, alpha: float) -> float:
    """alpha * count, free of the rounding that WHOLE speaks of; at least 1, as any smaller tail is the extreme."""
    items = alpha * count
    if abs(items - round(items)) <= WHOLE * items:
        items = float(round(items))
    return max(1.0, items)


def _order_in_groups(losses: Tensor, groups: Tensor, n_groups: int, descending: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Indices that sort by group, then by loss; the groups so sorted; counts (n_groups,)."""
    try:
        counts = groups.new_zeros(n_groups).scatter_add(0, groups, torch.ones_like(groups))
    except (RuntimeError, IndexError) as error:
        low, high = int(groups.min()), int(groups.max())
        if low >= 0 and high < n_groups:
            raise
        raise SettingError("groups", f"values from {low} to {high}", f"values in [0, {n_groups})") from error
    return *_order(losses, groups, n_groups, descending), counts


def _order(losses: Tensor, groups: Tensor, n_groups: int, descending: bool) -> tuple[Tensor, Tensor]:
    if losses.dtype == torch.float32 and len(losses) <= ONE_KEY:
        bits = (-losses if descending else losses).view(torch.int32)
        bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # floats as integers, negative ones the right way round
        keys, order = ((groups << 32) + bits).sort()
        return order, (keys + 2**31) >> 32
    by_loss = losses.argsort(descending=descending)
    narrow = groups.to(torch.int16 if n_groups <= 2**15 else torch.int32)
    member, by_group = narrow.index_select(0, by_loss).sort(stable=True)
    return by_loss.index_select(0, by_group), member.int()


def _left(member: Tensor, counts: Tensor, limit: Tensor) -> Tensor:
    """For items sorted by group: `limit` (n_groups,) of the item's group less the items before it in that group."""
    ends = (counts.cumsum(0) - counts + limit).to(member.dtype)
    return ends.index_select(0, member) - torch.arange(len(member), dtype=member.dtype, device=member.device)
