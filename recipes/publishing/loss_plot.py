"""The losses of each stage by step, drawn with Pillow for a card."""

from io import BytesIO

from PIL import Image, ImageDraw, ImageFont


WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 560, 360, 60, 20, 50, 40
LEARNED, HELD_OUT, PAPER, INK, FAINT = "#8a8a92", "#2f6fb3", "#ffffff", "#222222", "#dddddd"
LINES = 4

Curve = list[tuple[int, float]]


def draw_losses(stages: list[tuple[str, Curve, Curve]]) -> bytes:
    """A PNG with one panel for each stage: its title, its training loss, its loss on held-out data."""
    scale = 2  # smooth lines
    picture = Image.new("RGB", (WIDTH * len(stages) * scale, HEIGHT * scale), PAPER)
    draw = ImageDraw.Draw(picture)
    for number, (title, learned, held_out) in enumerate(stages):
        _panel(draw, number * WIDTH, scale, title, learned, held_out)
    file = BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


def _panel(draw: ImageDraw.ImageDraw, start: int, scale: int, title: str, learned: Curve, held_out: Curve) -> None:
    font, bold = ImageFont.load_default(13 * scale), ImageFont.load_default(16 * scale)
    points = [*learned, *held_out]
    last, top = max(step for step, _ in points), max(loss for _, loss in points) * 1.05 or 1.0

    def place(step: float, loss: float) -> tuple[float, float]:
        x = start + LEFT + (WIDTH - LEFT - RIGHT) * step / max(last, 1)
        return x * scale, (TOP + (HEIGHT - TOP - BOTTOM) * (1 - loss / top)) * scale

    for line in range(LINES + 1):
        loss = top * line / LINES
        draw.line((*place(0, loss), *place(last, loss)), FAINT, scale)
        x, y = place(0, loss)
        draw.text((x - 8 * scale, y), f"{loss:.2f}", INK, font, anchor="rm")
    for curve, colour in ((learned, LEARNED), (held_out, HELD_OUT)):
        if len(curve) > 1:
            draw.line([place(*point) for point in curve], colour, 2 * scale, joint="curve")
        for step, loss in curve if len(curve) < 2 or curve is held_out else []:
            x, y = place(step, loss)
            draw.ellipse((x - 3 * scale, y - 3 * scale, x + 3 * scale, y + 3 * scale), colour)
    draw.text(((start + LEFT) * scale, 16 * scale), title, INK, bold)
    right, foot = place(last, 0)
    draw.text((right, foot + 10 * scale), f"step {last:,}", INK, font, anchor="rt")
    draw.text(((start + LEFT) * scale, foot + 10 * scale), "training loss", LEARNED, font, anchor="lt")
    if held_out:
        draw.text(((start + LEFT + 110) * scale, foot + 10 * scale), "held out", HELD_OUT, font, anchor="lt")
