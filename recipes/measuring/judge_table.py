"""The table of relative scores for a terminal, and the words for what the place of an answer decided."""

from typing import Any

from data_generation.relative_score import ALL


HEADS = ["candidate", "kind", "score", "95% interval", "questions", "reference mean", "candidate mean"]


def describe(candidates: dict[str, dict[str, Any]]) -> list[str]:
    """`candidates` as in results.json."""
    rows = [cells(name, kind, figures) for name, kind, figures in entries(candidates)]
    has_spread = any(figures["spread"] is not None for _, _, figures in entries(candidates))
    heads = HEADS + (["spread"] if has_spread else [])
    lines = aligned([heads, *(row[: len(heads)] for row in rows)])
    for name, candidate in candidates.items():
        if ALL not in candidate["scores"]:
            lines.append(f"{name}: nothing could be judged")
            continue
        figures = candidate["scores"][ALL]
        if figures["position_bias"] is not None:
            lines.append(f"{name}: {place(figures)}")
        if candidate["missing"]:
            lines.append(f"{name}: {candidate['missing']:,} questions have no answer and are not in the table")
        if figures["incomplete"]:
            lines.append(
                f"{name}: {figures['incomplete']:,} judgements are left out: a reply that they need cannot be used"
            )
    return lines


def entries(candidates: dict[str, dict[str, Any]]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (name, kind, figures)
        for name, candidate in candidates.items()
        for kind, figures in candidate["scores"].items()
    ]


def cells(name: str, kind: str, figures: dict[str, Any]) -> list[str]:
    return [
        name,
        kind,
        f"{figures['score']:.1f}",
        between(figures),
        f"{figures['questions']:,}",
        f"{figures['reference']:.2f}",
        f"{figures['candidate']:.2f}",
        "" if figures["spread"] is None else f"{figures['spread']:.2f}",
    ]


def between(figures: dict[str, Any]) -> str:
    return "-" if figures["low"] is None else f"{figures['low']:.1f} to {figures['high']:.1f}"


def place(figures: dict[str, Any]) -> str:
    return (
        f"position bias {figures['position_bias']:+.3f}: the answer shown first won in both orders in "
        f"{figures['first_always']:.1%} of judgements, the second in {figures['second_always']:.1%}; the first is "
        f"{figures['first_minus_second']:+.2f} points ahead"
    )


def aligned(rows: list[list[str]]) -> list[str]:
    """Names to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        parts = [
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(parts).rstrip())
    return lines
