"""What choosing the best step would have claimed: test and validation accuracy at checkpoints of one training.

Published numbers are often the best on test data over a training. From one and the same training the audit gives the
accuracy of the last step, of the step that validation images choose, and of the best on test; the last minus the
others is the optimism of the choice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..base import SettingError, numpy_generator
from ..data import sources
from ..data.dataset import DataSet
from ..distillation.synthetic import levels
from ..models.training import predict

MOST = 5000  # images on which a step is chosen
SHARE = 0.1  # of each class, at most


def checkpoints(steps: int, n: int) -> list[int]:
    """`n` steps spread evenly over a training, the last of them its end."""
    return [steps * (i + 1) // n for i in range(n)]


def held_out(data: DataSet, images: Tensor) -> tuple[Tensor, Tensor]:
    """Validation images and labels: a fixed sample of the training part, a tenth of each class (rounded, so none of a
    class of five images or fewer), `MOST` in all.

    Training images that stand in the small set `images` unchanged are left out (compared byte by byte after rounding
    to uint8). What this cannot do: a distilled set, or the shrunk tiles of "mix", has been made from training images,
    these among them. The *level* of validation accuracy therefore flatters; only its choice of a step is used.
    Raises SettingError where a class has no image left.
    """
    small = images if images.dtype == torch.uint8 else levels(images)
    in_set = {row.tobytes() for row in small.cpu().numpy()}
    free = np.array([row.tobytes() not in in_set for row in data.train_images.cpu().numpy()])
    labels = data.train_labels.cpu().numpy()
    left = np.bincount(labels[free], minlength=data.n_classes)
    if left.min() == 0:
        raise SettingError("eval_audit", "above 0", "0 where no training image of some class is left for validation")
    portion = min(SHARE, MOST / len(labels)) * len(labels) / free.sum()
    index = np.flatnonzero(free)
    chosen = index[sources.stratified(labels[index], min(portion, 1.0), numpy_generator(0, "audit"))]
    where = torch.from_numpy(chosen).to(data.train_labels.device)
    return data.train_images[where], data.train_labels[where]


class Audit:
    """Callback of a training: test and validation accuracy at its checkpoints, of the weights that would be tested.

    images, labels: the validation part, as `held_out` gives it.
    """

    def __init__(self, data: DataSet, images: Tensor, labels: Tensor) -> None:
        self.parts = ((data.test_images, data.test_labels), (images, labels))
        self.data = data
        self.test: list[float] = []
        self.valid: list[float] = []

    def __call__(self, step: int, net: nn.Module) -> None:
        """Note both accuracies, in per cent."""
        for curve, (images, labels) in zip((self.test, self.valid), self.parts, strict=True):
            curve.append(100 * float((predict(net, images, self.data) == labels).double().mean()))

    def row(self) -> dict[str, Any]:
        """Test accuracy at the last step, at the best step by validation (the first of equals), and at the best by
        test; with both curves.
        """
        return {
            "audit_last": self.test[-1],
            "audit_chosen": self.test[int(np.argmax(self.valid))],
            "audit_best": max(self.test),
            "audit_test": self.test,
            "audit_validation": self.valid,
        }
