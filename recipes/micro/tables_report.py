"""`report.html` and `report.md` of `llava reproduce`: the tables beside the paper's, what holds of it, answers."""

import html
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from data_generation.microworld.wordings import KINDS
from data_generation.page import document, table
from data_generation.replacing import write_atomically
from recipes.micro import exam
from recipes.micro.page import STYLE, marked, picture
from recipes.micro.tables import DONE, JUDGED, Tables, slug
from recipes.training.checkpoints import FINISHED


# Of the paper: relative scores on 30 COCO pictures (all, conversation, detail, reasoning), and ScienceQA accuracy.
COCO = {
    "full data": (85.1, 83.1, 75.3, 96.5),
    "detail + reasoning": (81.9, 81.5, 73.3, 90.8),
    "conversation + 5 % detail + 10 % reasoning": (80.5, 81.0, 68.4, 91.5),
    "conversation": (73.8, 76.5, 59.8, 84.9),
    "no instruction tuning": (21.5, 22.0, 24.0, 18.5),
}
SCIENCEQA = {
    "full data": 90.92,
    "last layer": 89.96,
    "smaller language model": 89.84,
    "no stage 1": 85.81,
    "answer first": 89.77,
}
JUDGED_KINDS = ("all", "conversation", "detail", "reasoning")
NUM_SAMPLES, SAMPLED = 6, ("full data", "conversation", "no instruction tuning")
# What the paper (of `linear projector`: LLaVA-1.5) found: better row, worse row, by which figure, in words.
FINDINGS = (
    ("full data", "conversation", "judged all", "All kinds of data are better than conversations alone"),
    ("full data", "detail + reasoning", "judged all", "All kinds of data are better than detail and reasoning alone"),
    (
        "conversation + 5 % detail + 10 % reasoning",
        "conversation",
        "judged all",
        "A little detail and reasoning beside conversations helps",
    ),
    ("conversation", "no instruction tuning", "judged all", "Without instruction tuning little is answered"),
    ("full data", "no stage 1", "exact", "Stage 1 helps"),
    ("full data", "last layer", "exact", "Features before the last layer are better than the last"),
    ("full data", "linear projector", "exact", "An MLP is a better projector than a matrix"),
    ("full data", "smaller language model", "exact", "A larger language model is better"),
    ("full data", "answer first", "conclusions", "Reasons first and then the answer are better than the answer first"),
)


@dataclass(frozen=True)
class Found:
    """Figures in per cent, seed by seed."""

    by_row: dict[str, list[dict[str, float]]]

    def values(self, row: str, figure: str) -> list[float]:
        return [seed[figure] for seed in self.by_row[row]]

    def told(self, row: str, figure: str) -> str:
        """Mean and standard deviation over the seeds."""
        values = self.values(row, figure)
        return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def write_reports(out: Path, tables: Tables, rows: Sequence[str], seeds: Sequence[int]) -> list[Path]:
    found = gather(out, rows, seeds)
    facts = f"seeds {', '.join(map(str, seeds))}; {tables.steps} steps of stage 2 each"
    sections = list(told_tables(found, tables))
    lines = ["# The paper's tables on the micro world", "", f"{ABOUT} {facts}.", ""]
    for title, text, head, body in sections:
        lines += [f"## {title}", "", text, "", f"| {' | '.join(head)} |", "|---" + "|--:" * (len(head) - 1) + "|"]
        lines += [f"| {' | '.join(cells)} |" for cells in body] + [""]
    lines += ["## What holds", "", RULE, ""] + [f"- {finding}" for finding in findings(found)]
    made = circumstances(out, rows, seeds)
    told = told_circumstances(made)
    lines += ["", told]
    write_atomically(out / "report.md", "\n".join(lines) + "\n")
    write_atomically(out / "report.json", json.dumps({"seeds": list(seeds), **made, "rows": found.by_row}, indent=1))
    write_atomically(out / "report.html", page(out, found, sections, facts, rows, seeds, told))
    return [out / "report.html", out / "report.md", out / "report.json"]


ABOUT = (
    "Every row trains a LLaVA of the micro world's halves and asks it about scenes that nobody trained on. The "
    "relative score is that of a judge of rules; `exact` is the share of answers right in every word, over fourteen "
    "kinds of questions; `black` is the same with a black picture. Means and standard deviations over"
)
RULE = (
    "A finding of the paper holds here if it does for every seed, does not hold if the mean is the other way round, "
    "and is undecided otherwise."
)


def circumstances(out: Path, rows: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    """What the rows' trainings wrote of when, where and with which code they ran, which may be at several commits."""
    files = [out / f"seed-{seed}/rows/{slug(name)}/stage2" / FINISHED for seed in seeds for name in rows]
    runs = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]
    return {
        "ended": max((run["ended"] for run in runs), default=None),
        "commits": sorted({run["commit"] or "unknown" for run in runs}),
        "hardware": sorted({run["hardware"] for run in runs}),
        "versions": sorted({f"{name} {number}" for run in runs for name, number in run["versions"].items()}),
    }


def told_circumstances(made: dict[str, Any]) -> str:
    where = f"{', '.join(made['hardware'])}; commit {', '.join(made['commits'])}; {', '.join(made['versions'])}"
    return f"Trained until {made['ended']} on {where}." if made["ended"] else "Nothing was trained."


def gather(out: Path, rows: Sequence[str], seeds: Sequence[int]) -> Found:
    by_row: dict[str, list[dict[str, float]]] = {name: [] for name in rows}
    for seed in seeds:
        judged = json.loads((out / f"seed-{seed}/judge" / JUDGED).read_text(encoding="utf-8"))["candidates"]
        for name in rows:
            figures = json.loads((out / f"seed-{seed}/rows/{slug(name)}" / DONE).read_text(encoding="utf-8"))
            scores = judged[slug(name)]["scores"]
            shares = {figure: figures[figure] for figure in ("exact", "blind", "conclusions")} | figures["by_kind"]
            by_row[name].append(
                {judged_as(kind): scores[kind]["score"] for kind in JUDGED_KINDS}
                | {figure: 100 * share for figure, share in shares.items()}
            )
    return Found(by_row)


def judged_as(kind: str) -> str:
    """The relative score among the figures, where kinds of questions have shares, too."""
    return f"judged {kind}"


Section = tuple[str, str, list[str], list[list[str]]]


def told_tables(found: Found, tables: Tables) -> Iterable[Section]:
    """Title, text, heads and cells of each table."""
    data = [name for name in tables.data if name in found.by_row]
    first = next(iter(tables.rows))
    model = [name for name in (first, *tables.model) if name in found.by_row]
    yield (
        "Instruction data",
        "Relative scores; in brackets the paper's on 30 COCO pictures, by GPT-4.",
        ["data", *JUDGED_KINDS, "exact", "black"],
        [[name, *_beside(found, name), found.told(name, "exact"), found.told(name, "blind")] for name in data],
    )
    yield (
        "Model and training",
        "Exact answers, and of the questions that take reasons the share with the right conclusion; the paper's are "
        "ScienceQA accuracies.",
        ["", "exact", "conclusions", "relative score", "black", "paper"],
        [
            [
                name,
                *(found.told(name, figure) for figure in ("exact", "conclusions", "judged all", "blind")),
                str(SCIENCEQA.get(name, "")),
            ]
            for name in model
        ],
    )
    yield (
        "By kind of question",
        "Exact answers, means over the seeds.",
        ["", *KINDS],
        [[name, *(f"{mean(found.values(name, kind)):.0f}" for kind in KINDS)] for name in found.by_row],
    )


def _beside(found: Found, name: str) -> list[str]:
    paper = COCO.get(name)
    return [
        found.told(name, judged_as(kind)) + (f" ({paper[i]})" if paper else "") for i, kind in enumerate(JUDGED_KINDS)
    ]


def findings(found: Found) -> Iterable[str]:
    for better, worse, figure, words in FINDINGS:
        if better not in found.by_row or worse not in found.by_row:
            continue
        apart = [a - b for a, b in zip(found.values(better, figure), found.values(worse, figure), strict=True)]
        verdict = "holds" if min(apart) > 0 else "does not hold" if mean(apart) <= 0 else "undecided"
        name = "relative score" if figure == "judged all" else figure
        yield f"{words}: {verdict} ({name} {found.told(better, figure)} against {found.told(worse, figure)})"


def page(
    out: Path,
    found: Found,
    sections: Sequence[Section],
    facts: str,
    rows: Sequence[str],
    seeds: Sequence[int],
    made: str,
) -> str:
    tables = "".join(
        f"<h2>{title}</h2><p>{html.escape(text)}</p>"
        + table(list(head), [[html.escape(cell) for cell in cells] for cells in body], "n" * (len(head) - 1))
        for title, text, head, body in sections
    )
    held = "".join(f"<li>{html.escape(finding)}</li>" for finding in findings(found))
    shown = f"""<h1>The paper's tables on the micro world</h1>
<p>{html.escape(ABOUT).replace("`", "")} {facts}.</p>
<h2>Relative score</h2>
{plot(found, "judged all", lambda name: COCO[name][0] if name in COCO else None)}
<h2>Exact answers</h2>
{plot(found, "exact", lambda name: None)}
{tables}
<h2>What holds</h2><p>{RULE}</p><ul>{held}</ul>
<h2>Answers</h2>
{samples(out, [name for name in SAMPLED if name in rows] or list(rows)[:3], seeds[0])}
<p class="faint">{html.escape(made)}</p>"""
    return document("the paper's tables", shown, f"{STYLE}body {{ max-width: 72rem; }}")


def plot(found: Found, figure: str, paper: Callable[[str], float | None]) -> str:
    """A line for each row: a dot for each seed, a stroke at their mean, a ring for the paper's figure."""
    left, right, step = 330, 870, 30
    height = step * len(found.by_row) + 40

    def x(value: float) -> float:
        return left + (right - left) * value / 100

    parts = [
        f'<line x1="{x(v):.0f}" x2="{x(v):.0f}" y1="10" y2="{height - 28}" stroke="var(--line)"/>'
        f'<text x="{x(v):.0f}" y="{height - 10}" text-anchor="middle" fill="var(--faint)">{v}</text>'
        for v in range(0, 101, 20)
    ]
    for number, name in enumerate(found.by_row):
        y, values = 25 + step * number, found.values(name, figure)
        parts.append(
            f'<text x="{left - 14}" y="{y + 5}" text-anchor="end" fill="var(--ink)">{html.escape(name)}</text>'
        )
        middle = x(mean(values))
        parts.append(
            f'<line x1="{middle:.1f}" x2="{middle:.1f}" y1="{y - 10}" y2="{y + 10}" stroke="var(--ink)" '
            f'stroke-width="2"><title>mean {mean(values):.1f}</title></line>'
        )
        parts += [
            f'<circle cx="{x(value):.1f}" cy="{y}" r="5" fill="var(--blue)" fill-opacity=".65"><title>{value:.1f}'
            "</title></circle>"
            for value in values
        ]
        if (published := paper(name)) is not None:
            parts.append(
                f'<circle cx="{x(published):.1f}" cy="{y}" r="6" fill="none" stroke="var(--faint)" stroke-width="2">'
                f"<title>paper {published}</title></circle>"
            )
    ring = ", ring: the paper's" if any(paper(name) is not None for name in found.by_row) else ""
    return (
        f'<svg viewBox="0 0 900 {height}" font-size="13" role="img">{"".join(parts)}</svg>'
        f'<p class="faint">dot: a seed, stroke: their mean{ring}</p>'
    )


def samples(out: Path, rows: Sequence[str], seed: int) -> str:
    """Questions of different kinds about different scenes, with the answers of some rows."""
    answers = {name: exam.read(out / f"seed-{seed}/rows/{slug(name)}/seen.json") for name in rows}
    asked = answers[rows[0]]
    chosen = range(0, len(asked), max(1, len(asked) // NUM_SAMPLES))
    articles = []
    for number in list(chosen)[:NUM_SAMPLES]:
        one = asked[number]
        lines = [[html.escape(name), marked(answers[name][number])] for name in rows]
        articles.append(
            f'<article>{picture(one.scene)}<div class="words"><p>{html.escape(one.question)}</p>'
            f"{table(['', ''], lines, '')}</div></article>"
        )
    return "\n".join(articles)
