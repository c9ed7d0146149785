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


class Linears(nn.Linear):
    """The linear layers of K networks of `out_features` outputs each: (N, K * D) -> (K, N, out_features)."""

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        weight = self.weight.unflatten(0, (-1, self.out_features))
        features = x.unflatten(1, (len(weight), -1)).transpose(0, 1)  # (K, N, D)
        return torch.baddbmm(self.bias.view(len(weight), 1, -1), features, weight.mT)


def stack(nets: Sequence[nn.Module]) -> nn.Module:
    """One network of the weights of all: images (N, K * C, H, W), network after network, -> logits (K, N, n_classes).

    Each parameter is those of the networks, one after another along the first axis. Raises SettingError for a network
    that has more than convolutions, instance norms and one linear layer: a ViT.
    """
    whole = copy.deepcopy(nets[0])
    for module, *given in zip(whole.modules(), *(net.modules() for net in nets), strict=True):
        if isinstance(module, nn.GroupNorm) and module.num_groups == module.num_channels:
            module.num_groups *= len(nets)
            module.num_channels *= len(nets)
        elif isinstance(module, nn.Conv2d):
            module.groups *= len(nets)
        elif isinstance(module, nn.Linear) and module is getattr(whole, "classifier", None):
            module.__class__ = Linears
        elif list(module.parameters(recurse=False)):
            raise SettingError("network", type(nets[0]).__name__, "convolutions and instance norms, to train together")
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
