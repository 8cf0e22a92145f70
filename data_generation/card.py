"""The data set card: a README.md whose header says which files are the data set, and whose text how it was made."""

from pathlib import Path

from .rejections import Counts
from .report import short
from .summary import Summary


YOURS = "<!-- yours: what stands below this line stays when the card is written again -->"
TO_FILL = """

## Licence and terms

To be filled in by whoever publishes this:

- licence of the pictures:
- licence of the captions and boxes:
- terms of the model's provider for what it writes:
- licence of this data set (also as `license` in the header: `llava generate --license`):
"""


def card(summary: Summary, title: str, facts: dict[str, str], pattern: str, licence: str | None, old: str) -> str:
    """`pattern` of the data set's files; `old` is the card that this one replaces."""
    return "\n".join(
        [
            "---",
            "configs:",
            "- config_name: default",
            "  data_files:",
            "  - split: train",
            f"    path: {pattern}",
            *([f"license: {licence}"] if licence else []),
            "task_categories:",
            "- image-text-to-text",
            "tags:",
            "- llava",
            "- synthetic",
            "---",
            "",
            f"# {title}",
            "",
            f"{summary.rows.kept:,} conversations about {summary.images:,} pictures, written by a language model that "
            "saw captions and boxes and never the pictures. It may have been wrong about what they show.",
            "",
            "| kind | asked for | kept | answers a row |",
            "|---|---:|---:|---:|",
            *(
                f"| {kind} | {wanted:,} | {summary.kept[kind]:,} "
                f"| {summary.turns[kind] / max(summary.kept[kind], 1):.1f} |"
                for kind, wanted in summary.wanted.items()
            ),
            "",
            "## How it was made",
            "",
            "With `llava generate`.",
            "",
            *(f"- {name}: {line(value)}" for name, value in facts.items()),
            f"- {spending(summary)}",
            "",
            "## What was left out",
            "",
            *section("Rows without an answer that can be used", summary.rows),
            *section("Answers refused, also where a later attempt was good", summary.replies),
            *section("Rows that could not be asked for", summary.tasks),
            *section("Images of the source", summary.source),
            "`report.html` has examples of each, the lengths, and some rows with their pictures.",
            "",
            YOURS + (old.partition(YOURS)[2] or TO_FILL),
        ]
    )


def section(title: str, counts: Counts) -> list[str]:
    found = counts.rejected | {f"{reason} (parts)": n for reason, n in counts.trimmed.items()}
    if not found:
        return [f"{title}: none.", ""]
    lines = [f"- {reason}: {n:,}" for reason, n in sorted(found.items(), key=lambda item: (-item[1], item[0]))]
    return [f"{title}:", "", *lines, ""]


def spending(summary: Summary) -> str:
    spent = summary.spent
    tokens = f"{short(spent.input)} input and {short(spent.output)} output tokens"
    words = f"all runs together: {spent.requests:,} requests, {tokens}"
    if spent.maybe_requests:
        words += f"; {spent.maybe_requests:,} more may have been billed"
    return words if summary.cost is None else f"{words}; ${summary.cost:,.2f} at most"


def line(value: str) -> str:
    """One line that Markdown shows as it is."""
    return " ".join(value.split()).replace("<", "&lt;")


def read_card(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
