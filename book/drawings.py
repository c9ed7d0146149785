"""The drawings of the book that are no plots: the pipeline of distillation, with and without the paper's term.

``python book/drawings.py`` writes the files under book/_static/drawings; ``--check`` compares them.
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "_static" / "drawings"
BLUE, ORANGE, GREY = "#0072B2", "#B84A00", "#555555"  # real and synthetic as in all figures; arrows
WEIGHTS = ("bold", "normal")  # of a first line, and of the others
STYLE = "font-family='Helvetica, Arial, sans-serif' font-size='13'"


def box(x: int, y: int, lines: list[str], colour: str = GREY, width: int = 160, fill: str = "white") -> str:
    """A box of `width` with its upper left corner at (x, y); the first line is bold. Pixels of the drawing."""
    height = 18 * len(lines) + 18
    text = "".join(
        f"<text x='{x + width // 2}' y='{y + 24 + 18 * i}' text-anchor='middle' "
        f"font-weight='{WEIGHTS[min(i, 1)]}'>{escape(line)}</text>"
        for i, line in enumerate(lines)
    )
    frame = f"<rect x='{x}' y='{y}' width='{width}' height='{height}' rx='8' fill='{fill}' stroke='{colour}'/>"
    return frame.replace("/>", " stroke-width='2'/>") + text


def arrow(points: list[tuple[int, int]], colour: str = GREY, said: str = "", at: tuple[int, int] = (0, 0)) -> str:
    """An arrow along straight lines from the first point to the last, with words at `at`."""
    path = " ".join(f"{'M' if i == 0 else 'L'}{x} {y}" for i, (x, y) in enumerate(points))
    words = f"<text x='{at[0]}' y='{at[1]}' text-anchor='middle' fill='{colour}'>{escape(said)}</text>" if said else ""
    mark = "orange" if colour == ORANGE else "grey"
    return f"<path d='{path}' fill='none' stroke='{colour}' stroke-width='2' marker-end='url(#{mark})'/>{words}"


def pipeline(term: bool) -> str:
    """The loop of gradient matching as SVG; with the paper's term where `term` says so."""
    heads = "".join(
        f"<marker id='{name}' viewBox='0 0 10 10' refX='9' refY='5' markerWidth='7' markerHeight='7' orient='auto'>"
        f"<path d='M0 0 L10 5 L0 10 z' fill='{colour}'/></marker>"
        for name, colour in (("grey", GREY), ("orange", ORANGE))
    )
    top = 120 if term else 20
    parts = [
        box(20, top, ["Real images T", "a batch of them"], BLUE),
        box(20, top + 150, ["Synthetic images S", "a few, the unknowns"], ORANGE),
        box(270, top + 75, ["Network θ", "new in each outer step,", "trained between steps"], width=180),
        box(560, top, ["Gradient on T"], BLUE, width=130),
        box(560, top + 168, ["Gradient on S"], ORANGE, width=130),
        box(590, top + 84, ["Distance"], width=100),
        arrow([(180, top + 25), (300, top + 25), (300, top + 73)]),
        arrow([(180, top + 175), (300, top + 175), (300, top + 149)]),
        arrow([(450, top + 92), (500, top + 92), (500, top + 18), (558, top + 18)]),
        arrow([(450, top + 130), (500, top + 130), (500, top + 186), (558, top + 186)]),
        arrow([(640, top + 36), (640, top + 82)]),
        arrow([(640, top + 168), (640, top + 122)]),
        arrow([(692, top + 102), (715, top + 102), (715, top + 235), (95, top + 235), (95, top + 206)], ORANGE,
              "image step: move S so that the distance falls", (400, top + 228)),
    ]  # fmt: skip
    said = "Real and synthetic images go through one network; the distance of its gradients moves the synthetic images."
    if term:
        lines = ["Loss of the training", "mean loss + mean and maximum", "of CVaR over groups of T"]
        parts += [
            box(235, 20, lines, ORANGE, width=250, fill="#FFF1E6"),
            arrow([(95, top - 2), (95, 56), (233, 56)], said="batch", at=(160, 50)),
            arrow([(390, 92), (390, top + 73)], ORANGE, "trains θ", (425, 140)),
            f"<text x='600' y='50' text-anchor='middle' fill='{ORANGE}' font-weight='bold'>the paper's term</text>",
            f"<text x='600' y='70' text-anchor='middle' fill='{ORANGE}'>groups: nearest image of S</text>",
        ]
        said += " The paper changes the loss that trains the network: it adds the CVaR of groups of real images."
    height = top + 250
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 730 {height}' role='img' {STYLE}><title>{said}</title>"
        f"<defs>{heads}</defs><rect width='730' height='{height}' fill='white'/>" + "\n".join(parts) + "</svg>\n"
    )


DRAWINGS = {"distillation.svg": lambda: pipeline(False), "paper.svg": lambda: pipeline(True)}


def main() -> int:
    """Write the drawings, or compare them with what stands there (`--check`)."""
    made = {FOLDER / name: draw() for name, draw in DRAWINGS.items()}
    if "--check" in sys.argv:
        return int(any(not path.is_file() or path.read_text(encoding="utf-8") != text for path, text in made.items()))
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path, text in made.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
