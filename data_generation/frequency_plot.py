"""How often the noun phrases of captions occur, before and after the filter, drawn with Pillow."""

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .replacing import replacing


WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 1200, 700, 110, 50, 70, 90
BEFORE, AFTER, PAPER, INK, FAINT, LIMIT = "#c9a227", "#3b6ea8", "#ffffff", "#222222", "#dddddd", "#c0392b"


def draw_frequencies(before: np.ndarray, after: np.ndarray, most: int, title: str, path: Path) -> None:
    """Phrases by rank against the number of their captions, both axes logarithmic; each curve has its own ranks."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(picture)
    font, bold = ImageFont.load_default(17), ImageFont.load_default(21)
    tops = [int(values.max(initial=1)) for values in (before, after)]
    x_decades = max(1, math.ceil(math.log10(max(2, int(np.count_nonzero(before))))))
    y_decades = max(1, math.ceil(math.log10(max(2, *tops))))

    def place(rank: float, frequency: float) -> tuple[float, float]:
        x = LEFT + math.log10(rank) / x_decades * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - math.log10(frequency) / y_decades * (HEIGHT - TOP - BOTTOM)
        return x, y

    for decade in range(x_decades + 1):
        x, bottom = place(10**decade, 1)
        draw.line((x, TOP, x, bottom), FAINT)
        draw.text((x, bottom + 10), f"{10**decade:,}", INK, font, anchor="mt")
    for decade in range(y_decades + 1):
        left, y = place(1, 10**decade)
        draw.line((left, y, WIDTH - RIGHT, y), FAINT)
        draw.text((left - 10, y), f"{10**decade:,}", INK, font, anchor="rm")
    draw.line((*place(1, most), *place(10**x_decades, most)), LIMIT, 1)
    for values, colour in ((before, BEFORE), (after, AFTER)):
        ordered = np.sort(values[values > 0])[::-1]
        # As many points as the picture has columns: there may be a million phrases.
        ranks = np.unique(np.geomspace(1, max(1, len(ordered)), WIDTH).astype(int))
        points = [place(int(rank), int(ordered[rank - 1])) for rank in ranks if rank <= len(ordered)]
        if len(points) > 1:
            draw.line(points, colour, 4, joint="curve")
        elif points:
            draw.ellipse((points[0][0] - 4, points[0][1] - 4, points[0][0] + 4, points[0][1] + 4), colour)
    draw.text((LEFT, 22), title, INK, bold)
    draw.text((WIDTH - RIGHT, 14), f"before: {np.count_nonzero(before):,} phrases", BEFORE, font, anchor="rt")
    draw.text((WIDTH - RIGHT, 38), f"after: {np.count_nonzero(after):,} phrases", AFTER, font, anchor="rt")
    foot = f"rank of the noun phrase; upward: captions that have it; red: {most:,} captions"
    draw.text(((WIDTH + LEFT) / 2, HEIGHT - 28), foot, INK, font, anchor="mm")
    with replacing(path) as file:
        picture.save(file, "PNG")
