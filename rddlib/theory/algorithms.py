"""Algorithms 1 and 2 of the paper on problems small enough to solve exactly, and gradients from values alone.

Two readings of L(S), for a linear model. As written (`algorithm_1`), theta minimises Eq. 2 over clusters of real data
(hinge loss, a linear program). Bilevel (`bilevel_loss`), theta minimises the loss on S, as Eq. 3 asks (ridge
regression, closed form), and L(S) is its risk on real data. Both take a batch of sets: one call, M evaluations.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import torch
from scipy import sparse
from scipy.optimize import linprog
from torch import Tensor

from ..base import SettingError, Settings, check_choice, generator, setting
from ..risk import RiskTerm, group_risk

Estimator = Literal[
    "gaussian_forward",
    "gaussian_central",
    "sphere_forward",
    "sphere_central",
    "difference_forward",
    "difference_central",
    "interpolation",
]
METHODS = get_args(Estimator)


@dataclasses.dataclass(frozen=True)
class Task:
    """Real data and the labels of the synthetic set; the ridge weight of the model fitted to the latter."""

    features: Tensor  # (n, d) float
    labels: Tensor  # (n,) int64 in [0, number of classes)
    synthetic_labels: Tensor  # (m,) int64
    ridge: float = 0.1

    @property
    def classes(self) -> int:
        """Number of classes: one more than the largest label."""
        return int(torch.cat([self.labels, self.synthetic_labels]).max()) + 1

    def subsample(self, size: int, rng: torch.Generator) -> Task:
        """Algorithm 1, line 1: `size` items of the real data, without replacement; SettingError for more than n."""
        if not 1 <= size <= len(self.labels):
            raise SettingError("size", size, f"an int from 1 to the {len(self.labels)} items there are")
        chosen = torch.randperm(len(self.labels), generator=rng)[:size]
        return dataclasses.replace(self, features=self.features[chosen], labels=self.labels[chosen])


def rare_group_sample(n: int, rng: torch.Generator, rare: float = 0.06, spread: float = 0.4) -> tuple[Tensor, ...]:
    """Features (n, 2) float64, labels (n,) and groups (n,) of a population in the spirit of Figure 1.

    Groups 0 and 1, of classes 0 and 1, lie around (-1, 0) and (1, 0); group 2, a share `rare`, is of class 1 but lies
    around (-1, 2), each with standard deviation `spread`. A line parts the classes; the mean loss hardly asks for it.
    """
    uniform = torch.rand(n, generator=rng, dtype=torch.float64)
    groups = torch.where(uniform < rare, 2, (uniform < (1 + rare) / 2).long())  # (n,)
    centres = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [-1.0, 2.0]], dtype=torch.float64)
    features = centres[groups] + spread * torch.randn(n, 2, generator=rng, dtype=torch.float64)
    return features, (groups > 0).long(), groups


def nearest_synthetic(features: Tensor, synthetic: Tensor) -> Tensor:
    """Algorithm 1, line 2: the index of the nearest synthetic item, in squared distance.

    features (n, d), synthetic (..., m, d) -> (..., n) int64. Of several equally near, any.
    """
    inner = synthetic @ features.T  # (..., m, n); |z|^2 is left out: it changes no order
    return inner.sub_(synthetic.square().sum(-1, keepdim=True) / 2).max(-2).indices  # argmax is far slower here


def hinge_losses(theta: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """max(0, 1 - y theta.(x, 1)) with y = 2 label - 1: theta (d + 1,), features (n, d), labels in {0, 1} -> (n,)."""
    margins = (2 * labels - 1) * (features @ theta[:-1] + theta[-1])
    return (1 - margins).clamp(min=0)


def minimise_eq2(features: Tensor, labels: Tensor, clusters: Tensor, alpha: float) -> tuple[float, Tensor]:
    """Eq. 2 solved exactly: its least value over theta, and a minimiser theta (d + 1,).

    Hinge loss, upper-tail CVaR (with the printed sign there is no minimum). Writing each CVaR as the minimum over c
    of c + mean(max(F - c, 0)) / alpha (Rockafellar & Uryasev, 2000) leaves a linear program in (theta, F, excess,
    c, max). Empty clusters take no part. Cost: milliseconds for 100 items. SettingError for labels beyond 0 and 1.
    """
    if not set(labels.unique().tolist()) <= {0, 1}:
        raise SettingError("labels", labels.unique().tolist(), "0 and 1: the hinge loss knows two classes")
    live, member = np.unique(clusters.numpy(), return_inverse=True)  # clusters renumbered without gaps
    (n, d), m = features.shape, len(live)
    share = 1 / (alpha * np.bincount(member)[member])  # (n,) weight of an item's excess in its cluster's CVaR
    signed = (2 * labels - 1).numpy()[:, None] * np.c_[features.numpy(), np.ones(n)]  # (n, d + 1)
    one = sparse.identity(n)
    of_cluster = sparse.csr_matrix((np.ones(n), (np.arange(n), member)), shape=(n, m))
    weights = sparse.csr_matrix((share, (member, np.arange(n))), shape=(m, n))
    rows = sparse.bmat(
        [
            [-signed, -one, None, None, None],  # 1 - margin <= F
            [None, one, -one, -of_cluster, None],  # F - c <= excess
            [None, None, weights, sparse.identity(m), -np.ones((m, 1))],  # CVaR of each cluster <= max
        ],
        format="csr",
    )
    cost = np.r_[np.zeros(d + 1 + n), share / m, np.full(m, 1 / m), 1.0]
    bounds = [(None, None)] * (d + 1) + [(0, None)] * (2 * n) + [(None, None)] * (m + 1)
    solved = linprog(cost, A_ub=rows, b_ub=np.r_[-np.ones(n), np.zeros(n + m)], bounds=bounds, method="highs")
    if not solved.success:
        raise RuntimeError(f"Eq. 2 was not solved: {solved.message}")
    return float(solved.fun), torch.from_numpy(solved.x[: d + 1].copy())


def algorithm_1(synthetic: Tensor, task: Task, alpha: float) -> Tensor:
    """L(S) as Algorithm 1 is written, lines 2 and 3: cluster by S, then the least value of Eq. 2 over theta.

    synthetic (b, m, d) -> (b,), no gradient. `task` is the subsample (`Task.subsample` is line 1). Only who is nearest
    to whom enters: sets with the same clusters share one solution, computed once. Errors as `minimise_eq2`.
    """
    clusters = nearest_synthetic(task.features, synthetic.detach())  # (b, n)
    distinct, which = clusters.unique(dim=0, return_inverse=True)
    solved = [minimise_eq2(task.features, task.labels, c, alpha)[0] for c in distinct]
    return torch.tensor(solved, dtype=synthetic.dtype)[which]


def fit_ridge(synthetic: Tensor, task: Task) -> Tensor:
    """theta*(S) = argmin of the mean of |theta (x, 1) - onehot(y)|^2 over S + ridge |theta|^2: Eq. 3, second line.

    synthetic (..., m, d) -> theta (..., d + 1, classes). Differentiable in S. Cost: one m x m solve a set.
    """
    return torch.nn.functional.pad(synthetic, (0, 1), value=1.0).mT @ _dual(synthetic, task)


def _dual(synthetic: Tensor, task: Task) -> Tensor:
    """Coefficients (..., m, classes) of theta*(S) in the span of the synthetic items."""
    m = synthetic.shape[-2]
    kernel = synthetic @ synthetic.mT + 1 + m * task.ridge * torch.eye(m, dtype=synthetic.dtype)
    targets = torch.nn.functional.one_hot(task.synthetic_labels, task.classes).to(synthetic.dtype)
    return torch.cholesky_solve(targets.expand(*kernel.shape[:-1], -1), torch.linalg.cholesky(kernel))


def squared_losses(theta: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """F(theta; z) = |theta (x, 1) - onehot(y)|^2: theta (..., d + 1, c), features (n, d), labels (n,) -> (..., n)."""
    outputs = features @ theta[..., :-1, :] + theta[..., -1:, :]
    return (outputs - torch.nn.functional.one_hot(labels, theta.shape[-1])).square().sum(-1)


def bilevel_loss(synthetic: Tensor, task: Task, term: RiskTerm | None) -> Tensor:
    """L(S) in the bilevel reading: the risk, on real data, of the model that S trains (Eq. 3 with Eq. 2's bracket).

    synthetic (b, m, d) -> (b,). `term` None is the mean loss, i.e. distillation by empirical risk. The clusters
    are those of Algorithm 1. Differentiable where no item changes its cluster.
    Cost: one m x m solve a set, n * m * (d + classes) products, one or two sorts of all b * n losses.
    """
    kernel = (synthetic @ task.features.T).add_(1)  # (b, m, n)
    targets = torch.nn.functional.one_hot(task.labels, task.classes).T
    losses = (_dual(synthetic, task).mT @ kernel).sub_(targets).square().sum(-2)  # (b, n)
    if term is None:
        return losses.mean(-1)
    clusters = nearest_synthetic(task.features, synthetic.detach())
    bracket: Callable[..., Tensor] = torch.vmap(functools.partial(group_risk, n_groups=synthetic.shape[-2], term=term))
    return bracket(losses, clusters)


def draw_directions(method: str, dimension: int, probes: int, rng: torch.Generator) -> Tensor:
    """The directions v_l of an estimator, (probes, dimension) float64.

    Gaussian: N(0, I). Sphere: uniform of length 1. Difference: the coordinate axes (probes = dimension).
    Interpolation: random orthonormal bases, one under the other (probes >= dimension). SettingError otherwise.
    """
    check_choice("method", method, METHODS)
    least = dimension if method == "interpolation" else 1
    if probes < least or (method.startswith("difference") and probes != dimension):
        allowed = "at least 1; equal to the dimension for differences, no less for interpolation"
        raise SettingError("probes", probes, f"{allowed} (dimension {dimension})")
    if method.startswith("difference"):
        return torch.eye(dimension, dtype=torch.float64)
    if method == "interpolation":
        bases = math.ceil(probes / dimension)
        normal = torch.randn(bases, dimension, dimension, generator=rng, dtype=torch.float64)
        orthonormal: Tensor = torch.linalg.qr(normal).Q
        return orthonormal.flatten(0, 1)[:probes]
    normal = torch.randn(probes, dimension, generator=rng, dtype=torch.float64)
    return normal / normal.norm(dim=1, keepdim=True) if method.startswith("sphere") else normal


def estimate_gradient(
    values: Callable[[Tensor], Tensor], point: Tensor, method: str, directions: Tensor, sigma: float
) -> Tensor:
    """A gradient of `values` at `point` from values alone, of the shape of `point` (Algorithm 2; Berahas et al., 2022).

    values (b, *shape) -> (b,) is called once, with 2 M points if central, else M + 1. gaussian_forward is the paper's
    display; sphere has the factor dimension / M; interpolation solves directions @ g = slopes by least squares.
    """
    directions = directions.to(point.dtype)
    steps = sigma * directions.view(-1, *point.shape)  # (M, *shape)
    if method.endswith("central"):
        plus, minus = values(torch.cat([point + steps, point - steps])).chunk(2)
        slopes = (plus - minus) / (2 * sigma)  # (M,)
    else:
        at_points = values(torch.cat([point[None], point + steps]))
        slopes = (at_points[1:] - at_points[0]) / sigma
    if method == "interpolation":
        gradient: Tensor = torch.linalg.lstsq(directions, slopes[:, None]).solution[:, 0]
    else:
        size = {"gaussian": 1 / len(slopes), "sphere": point.numel() / len(slopes), "difference": 1.0}
        gradient = size[method.split("_")[0]] * (slopes @ directions)
    return gradient.view(point.shape)


def quadratic_error(
    method: str, gradient: Tensor, hessian: Tensor, probes: int, sigma: float, noise: float = 0
) -> float:
    """Exact root mean square error of an estimate on a quadratic, by Gaussian and spherical moments.

    gradient (n,), hessian (n, n) at the point; `noise` is the standard deviation of independent noise on every
    value. Interpolation: probes = n.
    """
    n, slope, trace = len(gradient), float(gradient @ gradient), float(hessian.trace())
    curve = trace**2 + 2 * float((hessian @ hessian).trace())  # n (n + 2) times the mean of (w.Hw)^2 on the sphere
    family, central = method.split("_")[0], method.endswith("central")
    spread = (0.5 if central else 2.0) * (noise / sigma) ** 2  # variance of the noise of one slope, for unit M
    if family in ("difference", "interpolation"):
        diagonal = float(hessian.diagonal() @ hessian.diagonal()) if family == "difference" else curve / (n + 2)
        return math.sqrt((0 if central else sigma**2 / 4 * diagonal) + n * spread)
    linear, bend, size = (n + 1, n + 4, n) if family == "gaussian" else (n - 1, n / (n + 2), n**2)
    return math.sqrt((linear * slope + (0 if central else sigma**2 / 4 * bend * curve) + size * spread) / probes)


def error_bound(method: str, n: int, probes: int, sigma: float, slope: float, smooth: float, noise: float = 0) -> float:
    """An upper bound on the root mean square error, in the terms of Berahas et al. (2022), derived anew.

    slope = |gradient|; |noise on a value| <= noise, an arbitrary function of the point; smooth = Lipschitz constant
    of the gradient (forward, interpolation with probes = n) or of the Hessian (central). By Taylor a slope errs by
    r <= smooth sigma |v|^2 / 2 + 2 noise / sigma (forward), smooth sigma^2 |v|^3 / 6 + noise / sigma (central).
    Differences: sqrt(n) r, for certain. Smoothing: bias + (spread of the linear part + root mean square of r v) /
    sqrt(M), where the bias is that of the smoothed function and of the noise.
    """
    central, family = method.endswith("central"), method.split("_")[0]
    jitter = (1 if central else 2) * noise / sigma
    bend = smooth * sigma**2 / 6 if central else smooth * sigma / 2
    if family in ("difference", "interpolation"):
        return math.sqrt(n) * (bend + jitter)
    if family == "sphere":
        bias = (3 if central else 2) * bend + math.sqrt(n) * noise / sigma
        return bias + (math.sqrt(n - 1) * slope + n * (bend + jitter)) / math.sqrt(probes)
    bias = (3 * n if central else 2 * math.sqrt(n)) * bend + math.sqrt(2 / math.pi) * noise / sigma
    moment = math.prod(n + 2 * k for k in range(4 if central else 3))  # E |v|^8 or E |v|^6
    return bias + (math.sqrt(n + 1) * slope + bend * math.sqrt(moment) + math.sqrt(n) * jitter) / math.sqrt(probes)


class Search(Settings):
    """Settings of Algorithm 2."""

    epochs: int = setting(100, "steps taken; the paper leaves the number open", low=0)
    probes: int = setting(32, "M, directions of one gradient estimate", low=1)
    sigma: float = setting(
        0.1, "step of a probe (of Gaussian ones in each coordinate), in units of the features", above=0.0
    )
    method: Estimator = setting("gaussian_forward", "gradient estimator")
    first_step: float = setting(0.1, "s = first_step / sqrt(1 + E); 0.1 is the paper's", above=0.0)

    def step(self, epoch: int) -> float:
        """Step size of epoch E = 1, 2, ...: first_step / sqrt(1 + E)."""
        return self.first_step / math.sqrt(1 + epoch)


def algorithm_2(value: Callable[..., Tensor], start: Tensor, search: Search, seed: int) -> Tensor:
    """Algorithm 2: zeroth-order descent from `start` (m, d); returns the path (epochs + 1, m, d), start included.

    value(sets (b, m, d), epoch=E) -> (b,), once an epoch: a subsample seeded by `epoch` is common to the epoch.
    Directions depend on seed and epoch alone: arms with one seed share them.
    """
    path = [start]
    for epoch in range(1, search.epochs + 1):
        rng = generator(seed, "algorithm 2", epoch)
        directions = draw_directions(search.method, start.numel(), search.probes, rng)
        at_epoch = functools.partial(value, epoch=epoch)
        gradient = estimate_gradient(at_epoch, path[-1], search.method, directions, search.sigma)
        path.append(path[-1] - search.step(epoch) * gradient)
    return torch.stack(path)
