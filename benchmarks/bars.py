"""Bar charts of a benchmark, drawn with Pillow: rows of a label, a bar and its number, with a mark at the goal."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont


WIDTH, ROW, MARGIN, LABELS = 1200, 34, 24, 470
OURS, PAPER, INK, FAINT, GOAL = "#3b6ea8", "#ffffff", "#222222", "#888888", "#c0392b"


def draw_bars(
    charts: list[tuple[str, list[tuple[str, float, float | None]]]], foot: str, path: Path, one: str = "as TRL"
) -> None:
    """Charts under each other, each a title and its bars: label, value, goal. The thin grey line is at 1, `one`."""
    rows = sum(len(bars) + 2 for _, bars in charts) + 1
    picture = Image.new("RGB", (WIDTH, rows * ROW + 2 * MARGIN), PAPER)
    draw = ImageDraw.Draw(picture)
    font, bold = ImageFont.load_default(17), ImageFont.load_default(21)
    top = MARGIN
    for title, bars in charts:
        draw.text((MARGIN, top), title, INK, bold)
        top += ROW
        greatest = max([1.0, *(value for _, value, _ in bars), *(goal or 0 for _, _, goal in bars)])
        scale = (WIDTH - LABELS - MARGIN - 90) / greatest
        for label, value, goal in bars:
            draw.text((LABELS - 12, top + ROW // 2), label, INK, font, anchor="rm")
            draw.rectangle((LABELS, top + 5, LABELS + value * scale, top + ROW - 5), OURS)
            draw.text((WIDTH - MARGIN, top + ROW // 2), f"{value:.2f}", INK, bold, anchor="rm")
            if goal is not None:
                x = LABELS + goal * scale
                draw.line((x, top + 1, x, top + ROW - 1), GOAL, 3)
            top += ROW
        unit = LABELS + scale
        draw.line((unit, top - len(bars) * ROW, unit, top), FAINT, 1)
        top += ROW
    has_goal = any(goal is not None for _, bars in charts for _, _, goal in bars)
    draw.text((MARGIN, top), foot + ("; red: goal" if has_goal else "") + f"; grey: 1, {one}", FAINT, font)
    picture.save(path)
