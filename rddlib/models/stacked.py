"""Several networks of one kind side by side, as one: they train in as many operations as one of them.

An instance norm, a ReLU and a pool know nothing of other channels. So K networks of C channels are one network of K * C
channels whose convolutions have K groups, and whose linear layer is a batch of K products. Each network's weights get
the gradient of its own loss, since the loss that is summed over the networks has no term of two of them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..base import SettingError
from . import architectures


class Linears(nn.Linear):
    """The linear layers of K networks of `out_features` outputs each: (N, K * D) -> (K, N, out_features)."""

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        k = len(self.weight) // self.out_features
        features = x.unflatten(1, (k, -1)).transpose(0, 1)  # (K, N, D)
        weight = self.weight.unflatten(0, (k, -1))
        return torch.baddbmm(self.bias.view(k, 1, -1), features, weight.mT)


def stackable(net: nn.Module) -> bool:
    """Whether networks like this one can be stacked: convolutions, instance norms and one linear layer at the end."""
    return all(_fits(module, module is getattr(net, "classifier", None)) for module in net.modules())


def stack(nets: Sequence[nn.Module]) -> nn.Module:
    """One network of the weights of all: images (N, K * C, H, W), network after network, -> logits (K, N, n_classes).

    Its parameters have the names of one network's; each is those of the networks, one after another along the first
    axis. Raises SettingError for networks that are not `stackable`.
    """
    if not stackable(nets[0]):
        kind = type(nets[0]).__name__
        raise SettingError("network", kind, "one of convolutions and instance norms, where networks train together")
    whole = copy.deepcopy(nets[0])
    for module, *given in zip(whole.modules(), *(net.modules() for net in nets), strict=True):
        if isinstance(module, nn.Conv2d):
            module.groups *= len(nets)
        elif isinstance(module, nn.GroupNorm):
            module.num_groups *= len(nets)
            module.num_channels *= len(nets)
        elif isinstance(module, nn.Linear):
            module.__class__ = Linears
        for name, _ in list(module.named_parameters(recurse=False)):
            together = torch.cat([getattr(each, name).detach() for each in given])
            setattr(module, name, nn.Parameter(together))
    return whole


@torch.no_grad()
def unstack(whole: nn.Module, nets: Sequence[nn.Module]) -> None:
    """Give the weights of `whole` back to the networks that it was made of, in place."""
    for own, *taken in zip(whole.parameters(), *(net.parameters() for net in nets), strict=True):
        for each, part in zip(taken, own.chunk(len(nets)), strict=True):
            each.copy_(part)


def _fits(module: nn.Module, last: bool) -> bool:
    if isinstance(module, nn.GroupNorm):
        return module.num_groups == module.num_channels
    if isinstance(module, nn.Linear):
        return last and module.bias is not None
    if isinstance(module, nn.Conv2d):
        return True
    return not list(module.parameters(recurse=False)) and not isinstance(module, architectures.Dropout)
