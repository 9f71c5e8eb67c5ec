"""What the figures share: one colour a policy, labels at the ends of lines, and SVG."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

# Okabe and Ito's palette, told apart with every common kind of colour vision. Vermillion is left
# for what was missed, grey for policies that a figure does not dwell on.
COLOURS = {
    "pace": "#0072B2",
    "pace-told": "#7fb2d6",
    "slice": "#E69F00",
    "fastserve": "#009E73",
    "orca": "#CC79A7",
    "slai": "#56B4E9",
    "sarathi": "#7A5C2E",
}
OTHER = "#98a2ab"
MISSED = "#D55E00"
INK, MUTED, FAINT = "#1d2730", "#66727d", "#e4e8eb"
CLASS_COLOURS = {"realtime": "#22313f", "voice": "#5f86ad", "qa": "#a9c1d9"}
CLASS_NAMES = {"realtime": "real-time", "voice": "voice", "qa": "question answering"}

WIDTH = 10.6  # inches, the width of the page


def colour(policy: str) -> str:
    """The colour of a policy, whatever its parameters."""
    return COLOURS.get(re.split(r"[:, ]", policy)[0], OTHER)


def figure(rows: int, columns: int, height: float, **grid: Any) -> tuple[Any, Any]:
    """A figure as wide as the page, and its axes [rows, columns]."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.12)
    made = Figure(figsize=(WIDTH, height), layout=layout)
    FigureCanvasSVG(made)
    axes = made.subplots(rows, columns, squeeze=False, **grid)
    for each in axes.flat:
        plain(each)
    return made, axes


def plain(axes: Any) -> None:
    """Lines that carry no data go or step back."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b7c0c7")
    axes.tick_params(colors=MUTED, labelsize=8.5, length=3, color="#b7c0c7")
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)


def title(axes: Any, text: str, beside: str = "") -> None:
    """A heading at the left, with a lighter word on what is counted."""
    axes.set_title(text, loc="left", fontsize=10.5, fontweight="bold", color=INK, pad=9)
    if beside:
        axes.set_title(beside, loc="right", fontsize=8.5, color=MUTED, pad=9)


def x_label(axes: Any, text: str) -> None:
    axes.set_xlabel(text, fontsize=8.5, color=MUTED)


def legend(made: Any, handles: Sequence[Any]) -> None:
    """One line of keys above all panels."""
    made.legend(
        handles=handles,
        loc="outside upper left",
        ncols=len(handles),
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
    )


def apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The places moved as little as a sweep can so that they are `gap` apart, within low..high
    where there is room; in the order given."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = [0.0] * len(places)
    at = low - gap
    for i in order:
        at = max(places[i], at + gap)
        moved[i] = at
    at = high + gap
    for i in reversed(order):
        at = min(moved[i], at - gap)
        moved[i] = at
    return moved


def label_ends(axes: Any, ends: Sequence[tuple[str, float, str]], x: float) -> None:
    """Names lines at the right of the axes, apart from one another: (text, y, colour) of each; all
    end at `x`. The limits and scales of the axes must be set."""

    def inside(y: float) -> tuple[float, float]:
        place = axes.transLimits.transform(axes.transScale.transform((x, y)))
        return float(place[0]), float(place[1])

    height = axes.get_position().height * axes.figure.get_figheight() * 72  # points, about
    places = [inside(y) for _, y, _ in ends]
    moved = apart([y for _, y in places], 8.5 / height, 0.0, 1.0)
    for (text, _, ink), (left, low), high in zip(ends, places, moved):
        start = max(left, 1.0) + 0.04
        line = {"color": ink, "linewidth": 0.6, "clip_on": False, "transform": axes.transAxes}
        axes.plot([left + 0.008, start - 0.006], [low, high], alpha=0.7, **line)
        axes.annotate(
            text,
            (start, high),
            xycoords="axes fraction",
            fontsize=8,
            color=MUTED if ink == OTHER else ink,
            va="center",
            fontweight="bold" if text.startswith(("pace", "slice")) else "normal",
            annotation_clip=False,
        )


def ticks(
    axes: Any, times: Iterable[float], low: float, high: float, ink: str, width: float
) -> None:
    """Upright strokes at `times` from low to high, as one path."""
    x = [at for time in times for at in (time, time, float("nan"))]
    y = [low, high, float("nan")] * (len(x) // 3)
    axes.plot(x, y, color=ink, linewidth=width, solid_capstyle="butt")


def svg(made: Any, name: str, described: str) -> str:
    """The figure as an SVG element for an HTML page: text stays text (its font is the page's to
    say), the same data give the same bytes, and no id is that of another figure's."""
    import matplotlib

    content = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        made.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    text = content.getvalue()
    text = text[text.index("<svg") :]
    for needless in (
        r"<metadata>.*?</metadata>",
        r"<!--.*?-->",
        r' id="[A-Za-z0-9.]+_[0-9_]+"',  # matplotlib's own names of groups
        r" font-family: [^;\"]+;",
        r' transform="rotate\(-0 [^)]*\)"',
        r' (width|height)="[0-9.]+pt"',
        r"^\s+",
        r"<g/>",
    ):
        text = re.sub(needless, "", text, flags=re.S | re.M)
    text = re.sub(r"(\d\.\d\d)\d+", r"\1", text)  # a hundredth of a point is enough
    head = f'<svg role="img" aria-label="{html.escape(described, quote=True)}"'
    return text.replace("<svg", head, 1)
