"""What is matched between a real and a synthetic batch: a statistic of one network, and its distance.

The statistic is the gradient of the loss (DC, DSA, IDC, GLaD) or the mean feature of a class (DM); both come as a list
of tensors, so that one loop serves them. The kernel objective of KIP has no network and lives in `kip`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

Objective = Literal["gradient", "mean"]
Metric = Literal["idc", "dc", "l1", "l1_mean"]
METRICS = get_args(Metric)


def matched_parameters(net: nn.Module, metric: str) -> list[nn.Parameter]:
    """The parameters whose gradients are compared: convolution weights (IDC, l1), all weight matrices (DC).

    Biases and norm parameters (one axis) never count.
    """
    least = 2 if metric == "dc" else 4
    return [p for p in net.parameters() if p.ndim >= least]


def gradients(loss: Tensor, parameters: Sequence[nn.Parameter], create_graph: bool = False) -> list[Tensor]:
    """Gradient of a scalar loss at `parameters`; with `create_graph` it can itself be differentiated."""
    return list(torch.autograd.grad(loss, list(parameters), create_graph=create_graph))


def distance(real: Sequence[Tensor], synthetic: Sequence[Tensor], metric: str = "idc") -> Tensor:
    """Distance of two statistics, a scalar >= 0.

    idc: sum over tensors of the squared differences (IDC section 3, released `mse`; for feature means DM's distance).
    dc: sum over layers and rows of 1 - cosine, a row being the weights into one output (DC, Zhao et al. 2021, Eq. 10).
    l1, l1_mean: absolute differences, summed over all, or over rows of their mean in a row (IDC's options; l1 on
    ImageNet).
    """
    return torch.stack([_distance(r, s, metric) for r, s in zip(real, synthetic, strict=True)]).sum()


def _distance(real: Tensor, synthetic: Tensor, metric: str) -> Tensor:
    """Distance of one tensor of two statistics."""
    if metric == "dc":
        a, b = real.flatten(1), synthetic.flatten(1)  # (rows, weights into one output)
        cosines: Tensor = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)
        return (1 - cosines).sum()
    gap = real - synthetic
    if metric == "idc":
        return gap.square().sum()
    return gap.abs().sum() if metric == "l1" else gap.abs().flatten(1).mean(1).sum()
