"""All classes at once (`classes_at_once`, see `rddlib.distillation.batched`) against one class after another.

Both are the library's own and end at the same images. At once, the gradients come from one network whose weights are
repeated for every class: its convolutions then are grouped ones, and the graphics processor gets one large call where
it had K small ones.
"""

from __future__ import annotations

from typing import Any

from bench_inner_step import LAPTOP, PUBLISHED, TINY, begun
from measure import How, Work, in_turn


def work(kind: str, device: str, chosen: dict[str, Any]) -> Work:
    """Image steps from the same start, without network steps: "reference" takes one class after another."""
    return begun(device, chosen | {"classes_at_once": kind == "library"}).image_steps


def results(how: How) -> dict[str, Any]:
    """One entry a case."""
    cases = {"laptop": TINY} if how.quick else {"laptop": LAPTOP}
    cases |= {"published": PUBLISHED} if how.device == "cuda" else {}
    return {case: in_turn(work, (chosen,), how.rounds(5), how) for case, chosen in cases.items()}
