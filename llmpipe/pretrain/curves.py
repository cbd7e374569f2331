"""Draw a run's curves as one SVG, without a plotting library: loss and bits per byte, learning rate, speed.

    path.write_text(curves(read_metrics(out / "metrics.jsonl"), title="base"), encoding="utf-8")
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT, LEFT, GAP = 760, 190, 64, 46
PANELS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("loss (nats a token)", (("loss", "#8fb8de"), ("val_loss", "#c1440e"))),
    ("bits per byte, held out", (("val_bpb", "#c1440e"),)),
    ("gradient norm", (("grad_norm", "#5b7f5b"),)),
    ("learning rate", (("lr", "#5b5b8f"),)),
    ("tokens a second", (("tokens_per_s", "#555555"),)),
)
MAX_POINTS = 2000  # a line; more are invisible at this width and make the file heavy


def curves(records: Sequence[dict[str, Any]], *, title: str) -> str:
    """Return the SVG: one panel a quantity that has at least one point, steps to the right."""
    panels = [(name, shown) for name, lines in PANELS if (shown := [(k, colour, p) for k, colour in lines if (p := _points(records, k))])]
    last = max((r["step"] for r in records), default=1)
    height = 40 + len(panels) * (HEIGHT + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH + LEFT + 20} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="100%" height="100%" fill="white"/><text x="{LEFT}" y="20" font-size="15">{escape(title)}</text>',
        *(_panel(name, lines, last, top=44 + i * (HEIGHT + GAP)) for i, (name, lines) in enumerate(panels)),
        "</svg>\n",
    ]
    return "\n".join(parts)


def _points(records: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    found = [(r["step"], r[key]) for r in records if isinstance(r.get(key), int | float) and math.isfinite(r[key])]
    return found[:: max(1, len(found) // MAX_POINTS)]


def _panel(name: str, lines: Sequence[tuple[str, str, list[tuple[float, float]]]], last: float, *, top: float) -> str:
    values = [v for *_, points in lines for _, v in points]
    low, high = min(values), max(values)
    if high - low < 1e-12 * max(1.0, abs(high)):
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)

    def at(step: float, value: float) -> tuple[float, float]:
        return LEFT + WIDTH * step / last, top + HEIGHT * (high - value) / (high - low)

    out = [f'<text x="{LEFT}" y="{top - 6}" fill="#333">{escape(name)}</text>', f'<rect x="{LEFT}" y="{top}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#ccc"/>']
    for i in range(5):
        value = low + (high - low) * i / 4
        y = at(0, value)[1]
        out.append(f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#eee"/><text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#666">{value:.4g}</text>')
        step = last * i / 4
        out.append(f'<text x="{at(step, low)[0]:.1f}" y="{top + HEIGHT + 15}" text-anchor="middle" fill="#666">{step:,.0f}</text>')
    for number, (key, colour, points) in enumerate(lines):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*p) for p in points))
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        if len(points) < 60:
            out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{colour}"/>' for x, y in (at(*p) for p in points)]
        out.append(f'<text x="{LEFT + WIDTH - 6}" y="{top + 16 + 15 * number}" text-anchor="end" fill="{colour}">{escape(key)}: {points[-1][1]:.4g}</text>')
    return "\n".join(out)
