"""One picture for a table of ratios: a bar per case, the rival's cost is the line at 1. Plain SVG, no library."""

from collections.abc import Sequence
from html import escape

ROW_HEIGHT, LABEL_WIDTH, UNIT_WIDTH = 30, 400, 330
OURS, LINE, TEXT = "#2a78b8", "#888888", "#777777"  # readable on white and on black


def ratio_chart(title: str, rows: Sequence[tuple[str, float, float]]) -> str:
    """SVG text; a row is (case, our cost / the rival's, target)."""
    longest = max(1.0, *(ratio for _, ratio, _ in rows))
    width, height = LABEL_WIDTH + int(UNIT_WIDTH * longest) + 80, 60 + ROW_HEIGHT * len(rows)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        f'font-size="13" fill="{TEXT}">',
        f'<text x="8" y="22" font-size="15">{escape(title)}</text>',
    ]
    for number, (case, ratio, target) in enumerate(rows):
        y = 40 + ROW_HEIGHT * number
        parts += [
            f'<text x="{LABEL_WIDTH - 10}" y="{y + 15}" text-anchor="end">{escape(case)}</text>',
            f'<rect x="{LABEL_WIDTH}" y="{y}" width="{UNIT_WIDTH * ratio:.0f}" height="20" fill="{OURS}"/>',
            _line(LABEL_WIDTH + UNIT_WIDTH * target, y - 2, y + 22, dash="3 3"),
            f'<text x="{LABEL_WIDTH + UNIT_WIDTH * ratio + 8:.0f}" y="{y + 15}">{ratio:.2f}</text>',
        ]
    rival = LABEL_WIDTH + UNIT_WIDTH
    parts += [
        _line(rival, 34, height - 16),
        f'<text x="{rival}" y="{height - 3}" text-anchor="middle">vllm-rs = 1</text>',
    ]
    return "\n".join([*parts, "</svg>", ""])


def _line(x: float, top: float, bottom: float, dash: str = "none") -> str:
    return f'<line x1="{x:.0f}" y1="{top}" x2="{x:.0f}" y2="{bottom}" stroke="{LINE}" stroke-dasharray="{dash}"/>'
