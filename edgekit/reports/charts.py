"""Pictures of a page, by matplotlib, as SVG elements that take the page's own colours and font.

Figures are drawn for a column of a phone; a wide screen shows several side by side. Colours are
placeholders that become the page's variables, so that light and dark need no second picture.
"""

import io
import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any, cast

from edgekit.measure.evidence import Lengths, MemorySample

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Placeholders, and the variables of the page's style that take their places.
_INK, _MUTED, _GRID, _ACCENT, _SECOND, _PAPER = (f"#01020{n}" for n in range(6))
_VARIABLES = {
    _INK: "ink",
    _MUTED: "muted",
    _GRID: "line",
    _ACCENT: "accent",
    _SECOND: "second",
    _PAPER: "card",
}
_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "edgekit",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,
    "text.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "legend.frameon": False,
}
_WIDTH = 4.6  # inches of 72 points; the page scales it
_IDS = re.compile(
    r' id="(?:figure|axes|patch|text|line2d|legend|matplotlib\.axis|xtick|ytick|'
    r'PathCollection|LineCollection|FillBetweenPolyCollection)_\d+"'
)
# Names longer than this push everything else out of a picture.
_NAME = 24


def latency_chart(groups: Sequence[Lengths], title: str) -> str:
    """Boxes of the middle half, whiskers from 5 to 95 %, for each length in tokens."""
    boxes = [
        {"whislo": q[0], "q1": q[1], "med": q[2], "q3": q[3], "whishi": q[4], "label": label}
        for q, label in ((_ms(group.quantiles), _length(group)) for group in groups)
    ]

    def draw(axes: "Axes") -> None:
        line = {"color": _ACCENT, "linewidth": 1.1}
        axes.bxp(
            boxes,
            showfliers=False,
            widths=0.5,
            patch_artist=True,
            boxprops={"facecolor": _ACCENT, "edgecolor": _ACCENT, "alpha": 0.35},
            medianprops={"color": _INK, "linewidth": 1.6},
            whiskerprops=line,
            capprops=line,
        )
        axes.set_ylabel("milliseconds")
        axes.set_ylim(bottom=0)
        axes.grid(axis="x", visible=False)
        if groups[0].longest is not None:
            axes.set_xlabel("tokens")

    return _picture(draw, 2.7, title)


def memory_chart(samples: Sequence[MemorySample], title: str) -> str:
    """Megabytes of the process over time, from before the runtime to its last call."""

    def draw(axes: "Axes") -> None:
        seconds = [each.seconds for each in samples]
        megabytes = [each.bytes / 1e6 for each in samples]
        axes.plot(seconds, megabytes, color=_ACCENT, linewidth=1.5)
        axes.fill_between(seconds, megabytes, color=_ACCENT, alpha=0.15, linewidth=0)
        marks = {"start": "o", "loaded": "s", "first_run": "^", "running": "."}
        for when, marker in marks.items():
            found = [(s, m) for s, m, e in zip(seconds, megabytes, samples) if e.when == when]
            if found:
                x, y = zip(*found)
                label = when.replace("_", " ")
                axes.plot(x, y, marker, color=_ACCENT, label=label, markersize=5)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("MB")
        axes.set_xlabel("seconds")
        axes.legend(loc="lower right", fontsize=9)

    return _picture(draw, 2.7, title)


def score_chart(
    names: Sequence[str], scores: Sequence[tuple[float, float, float]], title: str
) -> str:
    """A dot and its interval (score, low, high; shares) for each name, top to bottom."""

    def draw(axes: "Axes") -> None:
        for place, (score, low, high) in enumerate(scores):
            colour = _SECOND if place == 0 else _ACCENT
            axes.plot([100 * low, 100 * high], [place, place], color=colour, linewidth=2)
            axes.plot([100 * score], [place], "o", color=colour, markersize=6)
        axes.axvline(100 * scores[0][0], color=_MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
        axes.set_yticks(range(len(names)), [_short(name) for name in names], color=_INK)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("%, with the 95 % interval")

    longest = max(len(_short(name)) for name in names)
    return _picture(draw, 0.9 + 0.34 * len(names), title, left=0.25 + 0.085 * longest)


def pareto_chart(
    names: Sequence[str], points: Sequence[tuple[int, float]], front: Sequence[bool], title: str
) -> str:
    """Shipped megabytes against a share; filled is what no other beats in both."""

    def draw(axes: "Axes") -> None:
        best = sorted(point for point, first in zip(points, front) if first)
        axes.step(
            [size / 1e6 for size, _ in best],
            [100 * share for _, share in best],
            where="post",
            color=_ACCENT,
            linewidth=1,
            alpha=0.6,
        )
        for name, (size, share), first in zip(names, points, front):
            face = _ACCENT if first else _PAPER
            axes.plot(size / 1e6, 100 * share, "o", color=_ACCENT, markerfacecolor=face)
            axes.annotate(
                _short(name),
                (size / 1e6, 100 * share),
                (0, 7),
                textcoords="offset points",
                ha="center",
                fontsize=9,
            )
        axes.margins(0.28)
        axes.locator_params(nbins=4)
        axes.set_xlabel("MB to ship")
        axes.set_ylabel("%")

    return _picture(draw, 2.8, title)


def _picture(draw: Any, height: float, title: str, left: float = 0.7) -> str:
    """What ``draw`` puts into axes, as an SVG element named ``title``.

    left: inches that the labels of the vertical axis take. A layout that finds out by itself draws
    everything twice.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(cast(Any, _SETTINGS)):
        figure: Figure = Figure(figsize=(_WIDTH, height))
        edges = {"bottom": 0.55 / height, "top": 1 - 0.1 / height}
        figure.subplots_adjust(left=left / _WIDTH, right=0.97, **edges)
        draw(figure.add_subplot())
        stream = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        cast(Any, FigureCanvasSVG(figure)).print_svg(stream, metadata=nothing)
    return _embedded(stream.getvalue(), title)


def _embedded(svg: str, title: str) -> str:
    """The element alone, in the page's colours, without ids that a second picture repeats."""
    head, _, body = svg[svg.index("<svg") :].partition(">")
    box = re.search(r'viewBox="[^"]*"', head)
    body = re.sub(r"<metadata>.*?</metadata>", "", _IDS.sub("", body), flags=re.S)
    # The sheet of the figure itself; the page has its own.
    body = re.sub(r'<path d="[^"]*" style="fill: #ffffff"/>', "", body)
    for placeholder, variable in _VARIABLES.items():
        body = body.replace(placeholder, f"var(--{variable})")
    body = "\n".join(line.strip() for line in body.splitlines() if line.strip())
    shape = box.group(0) if box else ""
    return f'<svg class="chart" role="img" aria-label="{escape(title)}" {shape}>{body}'


def _ms(seconds: Sequence[float]) -> list[float]:
    return [1e3 * each for each in seconds]


def _length(group: Lengths) -> str:
    if group.longest is None or group.above is None:
        return "all rows"
    first = group.above + 1
    return str(group.longest) if first == group.longest else f"{first}–{group.longest}"


def _short(name: str) -> str:
    name = " ".join(name.split())
    return name if len(name) <= _NAME else name[: _NAME - 1] + "…"
