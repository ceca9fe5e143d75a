"""Lines over time as pieces of SVG: a frame with a title, levels, lines and a legend. Plain text, no library."""

import math
from collections.abc import Sequence
from html import escape

LEGEND_LETTER_WIDTH, LEGEND_MORE_WIDTH = 6.5, 60  # pixels, of the widest letters common in names
COLORS = ("#2a78b8", "#d97b29", "#3f9142", "#b8443c", "#7d5ba6", "#8a6d3b", "#c45a9a", "#5d6b78")
BACKGROUND, FRAME, TEXT, FAINT = "#ffffff", "#d8dee4", "#24292f", "#6e7781"

Points = list[tuple[float, float]]  # (seconds, value)
Series = Sequence[tuple[str, Points]]  # by name


def document(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    """A whole picture around its parts, which begin 40 pixels from the top."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif">',
            f'<rect width="100%" height="100%" fill="{BACKGROUND}"/>',
            f'<text x="8" y="26" font-size="18" fill="{TEXT}">{escape(title)}</text>',
            *parts,
            "</svg>",
            "",
        ]
    )


def frame(title: str, x: float, y: float, width: float, height: float) -> list[str]:
    return [
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="none" stroke="{FRAME}"/>',
        f'<text x="{x + 8}" y="{y + 17}" font-size="12" fill="{TEXT}">{escape(title)}</text>',
    ]


def panel(title: str, series: Series, unit: str, x: float, y: float, width: float, height: float) -> list[str]:
    """One framed chart from zero to a round number above the highest value."""
    return [
        *frame(title, x, y, width, height),
        *_lines(series, unit, x + 52, y + 28, width - 62, height - 64),
        *_legend(series, x + 8, y + height - 9, width - 16),
    ]


def _lines(series: Series, unit: str, x: float, y: float, width: float, height: float) -> list[str]:
    points = [point for _, line in series for point in line]
    if not points:
        return []
    start_s, end_s = min(at for at, _ in points), max(at for at, _ in points)
    top = round_above(max(value for _, value in points))
    parts = []
    for share in (0.0, 0.5, 1.0):
        level = y + height * (1 - share)
        parts.append(f'<line x1="{x}" x2="{x + width}" y1="{level:.1f}" y2="{level:.1f}" stroke="{FRAME}"/>')
        parts.append(
            f'<text x="{x - 5}" y="{level + 4:.1f}" font-size="10" text-anchor="end" fill="{FAINT}">'
            f"{shown(top * share, unit)}</text>"
        )
    for number, (_, line) in enumerate(series):
        places = " ".join(
            f"{x + width * (at - start_s) / max(end_s - start_s, 1):.1f},{y + height * (1 - max(value, 0) / top):.1f}"
            for at, value in line
        )
        parts.append(f'<polyline points="{places}" fill="none" stroke="{COLORS[number % len(COLORS)]}"/>')
    return parts


def _legend(series: Series, x: float, y: float, width: float) -> list[str]:
    """As many names as there is room for; how many more there are stands in their place."""
    names, room = [], width - LEGEND_MORE_WIDTH
    for number, (name, _) in enumerate(series):
        room -= (len(name) + 3) * LEGEND_LETTER_WIDTH
        if room < 0:
            names.append(f'<tspan fill="{FAINT}">and {len(series) - number} more</tspan>')
            break
        names.append(f'<tspan fill="{COLORS[number % len(COLORS)]}">&#8212; {escape(name)} </tspan>')
    return [f'<text x="{x}" y="{y}" font-size="10" fill="{TEXT}">{"".join(names)}</text>']


def round_above(value: float) -> float:
    """The first of 1, 2, 4, 10 times a power of ten that is not below it, whose half is round too; 1 for nothing."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 10) if step * power >= value * (1 - 1e-9))


SUFFIXES = {"bytes": "B", "Bps": "B/s", "reqps": "/s", "ops": "/s"}


def shown(value: float, unit: str) -> str:
    """A value as people read it, in a unit of Grafana's."""
    if math.isnan(value):
        return "-"
    if unit == "percentunit":
        return f"{value * 100:.3g}%"
    if unit == "s":
        return f"{value * 1e3:.3g} ms" if 0 < value < 1 else f"{value:.3g} s"
    suffix = SUFFIXES.get(unit, "")
    for bound, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= bound:
            return f"{value / bound:.3g} {prefix}{suffix}"
    return f"{value:.3g} {suffix}".rstrip()
