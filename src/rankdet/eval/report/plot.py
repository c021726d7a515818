"""Axes and lines in SVG: as much of plotting as the report needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rankdet.eval.instances import Floats, Ints
from rankdet.eval.report.markup import Markup, significant, tag

POINTS = 200
"""Most points of a line."""

_WIDTH, _HEIGHT = 440, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 12, 44


@dataclass(frozen=True)
class Scale:
    """Numbers to places along an axis."""

    low: float
    high: float
    logarithmic: bool = False

    def __call__(self, values: Floats) -> Floats:
        """Return places from 0 to 1; beyond the ends is at the ends."""
        low, high = self._inner(np.array([self.low, self.high]))
        places: Floats = (self._inner(np.maximum(values, self.low)) - low) / (high - low)
        return np.clip(places, 0.0, 1.0)

    def ticks(self) -> list[tuple[float, str]]:
        """Return round numbers with their text."""
        if self.logarithmic:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.log10(self.high)
            decades = list(range(first, math.floor(last + 1e-9) + 1))
            steps: Sequence[float] = (1, 2, 5) if len(decades) < 2 else (1, 3)
            if len(decades) > 3:
                steps = (1,)
                decades = decades[:: math.ceil(len(decades) / 6)]
            else:
                decades = [first - 1, *decades]
            values = [step * 10.0**decade for decade in decades for step in steps]
            values = [v for v in values if self.low * 0.999 <= v <= self.high * 1.001]
        else:
            rough = (self.high - self.low) / 5
            power = 10.0 ** math.floor(math.log10(rough))
            step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= rough * 0.999)
            first = math.ceil(self.low / step - 1e-9)
            values = [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]
        return [(value, f"{value:.4g}") for value in values]

    def _inner(self, values: Floats) -> Floats:
        return np.log(values) if self.logarithmic else values


def score_scale(scores: Floats, optima: Sequence[float]) -> Scale:
    """Return a scale on which both the scores and the optimal thresholds can be told apart.

    Linear for scores spread over [0, 1]; logarithmic if thresholds are small and all scores
    positive, as after training with a ranking loss.

    Args:
        scores: [N] any finite numbers.
        optima: the optimal thresholds.
    """
    if not len(scores):
        return Scale(0.0, 1.0)
    low, high = float(scores.min()), float(scores.max())
    least = min(optima, default=high)
    if low > 0 and least < 0.1 * high:
        begin = max(low, least / 100)
        return Scale(begin, max(high, begin * 10), logarithmic=True)
    if low >= 0 and 0.1 < high <= 1:
        return Scale(0.0, 1.0)
    pad = 0.5 * max(abs(low), 1e-6) if low == high else 0.0
    return Scale(min(low, 0.0) if low >= 0 else low - pad, high + pad)


@dataclass(frozen=True)
class Plot:
    """A frame with two axes, and what is drawn in it."""

    x: Scale
    y: Scale
    x_title: str
    y_title: str

    def place(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Return pixels of the drawing."""
        across = _LEFT + self.x(x) * (_WIDTH - _LEFT - _RIGHT)
        down = _HEIGHT - _BOTTOM - self.y(y) * (_HEIGHT - _TOP - _BOTTOM)
        return across, down

    def line(self, x: Floats, y: Floats, *, class_: str, data_class: int | None = None) -> Markup:
        """Return a line, thinned to what can be seen."""
        across, down = self.place(x, y)
        keep = thin(across, down)
        return tag("path", d=path(across[keep], down[keep]), class_=class_, data_class=data_class)

    def dots(self, x: Floats, y: Floats, *, class_: str, data_class: int | None = None) -> Markup:
        """Return round dots as one path: the width of its stroke is that of the dots."""
        across, down = self.place(x, y)
        d = "".join(f"M{_short(a)} {_short(b)}h0" for a, b in zip(across, down, strict=True))
        return tag("path", d=d, class_=class_, data_class=data_class)

    def mark(
        self, x: float, y: float, label: str, *, class_: str, below: bool, data_class: int
    ) -> Markup:
        """Return a ring with a text beside it."""
        across, down = (float(v[0]) for v in self.place(np.array([x]), np.array([y])))
        left = across > _WIDTH * 0.55
        text_y = max(down + (18 if below else -10), _TOP + 10)
        return tag(
            "g",
            tag("circle", cx=across, cy=down, r=4.5),
            tag(
                "text",
                label,
                x=across + (-9 if left else 9),
                y=min(text_y, _HEIGHT - _BOTTOM - 6),
                text_anchor="end" if left else "start",
            ),
            class_=class_,
            data_class=data_class,
        )

    def svg(self, *inside: Markup, name: str, title: str, description: str) -> Markup:
        """Return the whole drawing.

        Args:
            inside: what to draw, in this order.
            name: used for ids; letters and digits, once in a page.
            title: what it shows, for those who cannot see it.
            description: what is to be seen in it.
        """
        return figure(
            *self._frame(),
            *inside,
            name=name,
            title=title,
            description=description,
            width=_WIDTH,
            height=_HEIGHT,
        )

    def _frame(self) -> list[Markup]:
        right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
        parts = []
        for value, text in self.x.ticks():
            at = float(self.place(np.array([value]), np.array([self.y.low]))[0][0])
            parts.append(tag("path", d=f"M{_short(at)} {_TOP}V{bottom}", class_="grid"))
            parts.append(tag("text", text, x=at, y=bottom + 16, text_anchor="middle"))
        for value, text in self.y.ticks():
            at = float(self.place(np.array([self.x.low]), np.array([value]))[1][0])
            parts.append(tag("path", d=f"M{_LEFT} {_short(at)}H{right}", class_="grid"))
            parts.append(tag("text", text, x=_LEFT - 7, y=at + 4, text_anchor="end"))
        middle = (_TOP + bottom) // 2
        return [
            tag("g", *parts, class_="axis"),
            tag(
                "text",
                self.x_title,
                x=(_LEFT + right) // 2,
                y=_HEIGHT - 8,
                text_anchor="middle",
                class_="axis-title",
            ),
            tag(
                "text",
                self.y_title,
                x=12,
                y=middle,
                text_anchor="middle",
                class_="axis-title",
                transform=f"rotate(-90 12 {middle})",
            ),
        ]


def figure(
    *inside: Markup, name: str, title: str, description: str, width: int, height: int
) -> Markup:
    """Return an SVG that tells what it shows."""
    return tag(
        "svg",
        tag("title", title, id=f"{name}-title"),
        tag("desc", description, id=f"{name}-desc"),
        *inside,
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_labelledby=f"{name}-title {name}-desc",
        class_="chart",
        id=name,
    )


def path(x: Floats, y: Floats) -> str:
    """Return the points as the d of a path, each relative to the one before.

    Example:
        >>> path(np.array([1.0, 2.0, 2.0]), np.array([3.0, 3.0, 0.5]))
        'M1 3l1 0l0-2.5'
    """
    if not len(x):
        return ""
    across, down = np.round(x, 1), np.round(y, 1)
    steps = [_pair(a, b) for a, b in zip(np.diff(across), np.diff(down), strict=True)]
    return f"M{_pair(across[0], down[0])}" + "".join(f"l{step}" for step in steps)


def thin(x: Floats, y: Floats, most: int = POINTS) -> Ints:
    """Return the places of at most so many points that keep the shape of a line.

    The line is cut into equal stretches of its length, as drawn; from each the first, lowest and
    highest point stay, and the very last one.
    """
    if len(x) <= most:
        return np.arange(len(x), dtype=np.int64)
    length = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    stretches = (most - 1) // 3
    bounds = np.searchsorted(length, np.linspace(0, length[-1], stretches + 1)[:-1])
    bounds = np.unique(np.append(bounds, len(x)))
    keep = {len(x) - 1}
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        part = y[start:stop]
        keep |= {start, start + int(part.argmin()), start + int(part.argmax())}
    return np.array(sorted(keep), dtype=np.int64)


def legend(names: Sequence[tuple[str, str]]) -> Markup:
    """Return what the colours mean: pairs of a class of the style sheet and a text."""
    items = [
        tag("li", tag("span", class_=f"swatch {kind}", aria_hidden="true"), text)
        for kind, text in names
    ]
    return tag("ul", *items, class_="legend")


def threshold_text(value: float, lrp: float) -> str:
    """Return the label of an optimum."""
    return f"threshold {significant(value)}, LRP {lrp:.2f}"


def _pair(a: float, b: float) -> str:
    second = _short(b)
    return f"{_short(a)}{'' if second.startswith('-') else ' '}{second}"


def _short(value: float) -> str:
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text
