"""Curves of a benchmark, drawn with Pillow: one line for each run, a colour for each kind of run."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont


WIDTH, HEIGHT, LEFT, TOP, BOTTOM, RIGHT = 1200, 640, 90, 90, 70, 40
COLOURS, PAPER, INK, FAINT = ("#3b6ea8", "#d0812e", "#4d9a5b"), "#ffffff", "#222222", "#cccccc"
SCALE = 2  # drawn larger, then made smaller, for smooth lines


def draw_curves(title: str, curves: list[tuple[str, list[tuple[float, float]]]], foot: str, path: Path) -> None:
    """Each curve has a kind and its points; x from 0 to 1."""
    kinds = list(dict.fromkeys(kind for kind, _ in curves))
    greatest = max(y for _, points in curves for _, y in points) * 1.02
    picture = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), PAPER)
    draw = ImageDraw.Draw(picture)
    font, bold = ImageFont.load_default(17 * SCALE), ImageFont.load_default(22 * SCALE)

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + x * (WIDTH - LEFT - RIGHT)
        down = TOP + (1 - y / greatest) * (HEIGHT - TOP - BOTTOM)
        return across * SCALE, down * SCALE

    draw.text((LEFT * SCALE, 18 * SCALE), title, INK, bold)
    for i in range(5):
        y = greatest * i / 4
        draw.line([place(0, y), place(1, y)], FAINT, SCALE)
        draw.text((place(0, y)[0] - 10 * SCALE, place(0, y)[1]), f"{y:.2f}", INK, font, anchor="rm")
    for kind, points in curves:
        draw.line([place(*point) for point in points], COLOURS[kinds.index(kind)], 2 * SCALE, joint="curve")
    for i, kind in enumerate(kinds):
        x = (LEFT + 160 * i) * SCALE
        draw.line([(x, 66 * SCALE), (x + 34 * SCALE, 66 * SCALE)], COLOURS[i], 4 * SCALE)
        draw.text((x + 44 * SCALE, 66 * SCALE), kind, INK, font, anchor="lm")
    draw.text((LEFT * SCALE, (HEIGHT - 36) * SCALE), f"{foot}; from the first to the last step", INK, font)
    picture.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS).save(path)
