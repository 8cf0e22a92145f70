"""The page about a judging: scores with their intervals as a plot and a table, the judge's bias, what was left out."""

import html
from dataclasses import dataclass, field
from typing import Any

from data_generation.judge_files import Question
from data_generation.judging import Outcome, Verdict, Wanted
from data_generation.page import document, table, tiles
from data_generation.rejections import Counts
from data_generation.relative_score import ALL
from data_generation.report import reasons
from recipes.measuring.judge_table import HEADS, between, cells, entries


COLOURS = ("#2f6fb3", "#c4622d", "#3d8b4f", "#8a5bb5", "#b0902a", "#3a9a9a", "#b8507a", "#7a7a80")
STYLE = """
.dot { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .4em; }
td.what { min-width: 6rem; } .words p.faint { margin-top: -.4rem; }
"""


@dataclass
class Sample:
    """A question, and what was said of the answers to it."""

    question: Question
    answers: dict[str, str] = field(default_factory=dict)
    verdicts: list[tuple[Wanted, Outcome[Verdict]]] = field(default_factory=list)

    def add(self, wanted: Wanted, answer: str, found: Outcome[Verdict]) -> None:
        self.answers[wanted.candidate] = answer
        self.verdicts.append((wanted, found))


def page(results: dict[str, Any], counts: dict[str, Counts], samples: dict[str, Sample]) -> str:
    candidates = results["candidates"]
    body = f"""<h1>Relative scores</h1>
<p class="faint">A judge that reads what is known of the pictures scored each answer beside the reference's, from 1 to
10. The relative score is 100 × the mean of the candidate's scores over the mean of the reference's.</p>
{figures(results, counts)}
<h2>By kind of question</h2>
{plot(candidates)}
{scores(candidates)}
<h2>What the place decides</h2>
{places(candidates)}
<h2>What was left out</h2>
{left_out(results, counts)}
<h2>How it was judged</h2>
{facts(results)}
<h2>Some judgements</h2>
{"".join(map(article, samples.values()))}"""
    return document("Relative scores", body, STYLE)


def figures(results: dict[str, Any], counts: dict[str, Counts]) -> str:
    spent = results["spent"]
    shown = [
        (f"{results['questions']['number']:,}", "questions"),
        (f"{len(results['candidates']):,}", "candidate" + "s" * (len(results["candidates"]) > 1)),
        (f"{sum(found.kept for found in counts.values()):,}", "replies with scores"),
        (f"{sum(found.num_rejected for found in counts.values()):,}", "replies without"),
        (f"{spent['requests']:,}", "requests billed"),
    ]
    if spent["dollars"] is not None:
        shown.append((f"${spent['dollars']:,.2f}", "at most, at the prices given"))
    return tiles(shown)


def colours(candidates: dict[str, Any]) -> dict[str, str]:
    return {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(candidates)}


def plot(candidates: dict[str, Any]) -> str:
    """A point and its interval for each candidate, kind by kind, and a line where the reference is."""
    kinds = [kind for _, kind, _ in entries(candidates)]
    kinds = [*dict.fromkeys(kind for kind in kinds if kind != ALL), ALL]
    ends = [100.0]
    for _, _, figures in entries(candidates):
        ends += [figures[name] for name in ("score", "low", "high") if figures[name] is not None]
    low, high = min(ends), max(ends)
    low, high = low - 0.06 * (high - low) - 0.5, high + 0.06 * (high - low) + 0.5
    left, width, step, gap = min(300, 40 + 8 * max(map(len, kinds))), 760, 18, 14

    def at(score: float) -> float:
        return left + (width - left - 60) * (score - low) / (high - low)

    marks, y = [], 8.0
    for kind in kinds:
        shown = [(name, found["scores"][kind]) for name, found in candidates.items() if kind in found["scores"]]
        middle = y + step * len(shown) / 2 + 4
        marks.append(f'<text x="{left - 14}" y="{middle:.0f}" text-anchor="end">{html.escape(kind)}</text>')
        for name, figures in shown:
            y += step
            marks.append(mark(at, y - step / 2, colours(candidates)[name], name, figures))
        y += gap
    zero = at(100.0)
    ticks = "".join(
        f'<text x="{at(tick):.0f}" y="{y + 14:.0f}" text-anchor="middle">{tick:g}</text>' for tick in nice(low, high)
    )
    legend = "".join(
        f'<span style="margin-right:1.2em"><span class="dot" style="background:{colour}"></span>'
        f"{html.escape(name)}</span>"
        for name, colour in colours(candidates).items()
    )
    return f"""<figure><svg viewBox="0 0 {width} {y + 22:.0f}" role="img" aria-label="relative scores by kind">
<line x1="{zero:.1f}" x2="{zero:.1f}" y1="0" y2="{y:.0f}" stroke="var(--faint)" stroke-dasharray="4 4"/>
<line x1="{left}" x2="{width - 60}" y1="{y:.0f}" y2="{y:.0f}" stroke="var(--line)"/>
<g fill="var(--faint)" font-size="13">{ticks}</g><g fill="var(--ink)" font-size="13">{"".join(marks)}</g></svg>
<figcaption>{legend}<br>Lines are 95% intervals over questions. At 100 an answer is as good as the reference's.
</figcaption></figure>"""


def mark(at: Any, y: float, colour: str, name: str, figures: dict[str, Any]) -> str:
    x, end = at(figures["score"]), figures["score"]
    whisker = ""
    if figures["low"] is not None:
        end = max(figures["high"], end)
        whisker = (
            f'<line x1="{at(figures["low"]):.1f}" x2="{at(figures["high"]):.1f}" y1="{y:.1f}" y2="{y:.1f}" '
            f'stroke="{colour}" stroke-width="2"/>'
        )
    words = f"{name}: {figures['score']:.1f}, {between(figures)}"
    return (
        f'<g><title>{html.escape(words)}</title>{whisker}<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}"/>'
        f'<text x="{at(end) + 8:.1f}" y="{y + 4:.1f}">{figures["score"]:.1f}</text></g>'
    )


def nice(low: float, high: float) -> list[float]:
    """Round numbers between the two, a handful."""
    step = next((size for size in (1, 2, 5, 10, 20, 50, 100, 200) if (high - low) / size <= 8), 500)
    first = -(-low // step) * step
    return [first + step * number for number in range(int((high - first) // step) + 1)]


def scores(candidates: dict[str, Any]) -> str:
    rows = []
    for name, kind, figures in entries(candidates):
        shown = [html.escape(cell) for cell in cells(name, kind, figures)]
        shown[0] = f'<span class="dot" style="background:{colours(candidates)[name]}"></span>{shown[0]}'
        if kind == ALL:
            shown = [f"<b>{cell}</b>" for cell in shown]
        repeats = ", ".join(f"{score:.1f}" for score in figures["repeats"])
        rows.append([*shown[:-1], repeats if len(figures["repeats"]) > 1 else "", shown[-1]])
    heads = list(HEADS)
    has_repeats = any(len(figures["repeats"]) > 1 for _, _, figures in entries(candidates))
    if has_repeats:
        heads += ["each repeat", "spread"]
    return table(heads, [row[: len(heads)] for row in rows], "wnnnnnnn"[: len(heads) - 1])


def places(candidates: dict[str, Any]) -> str:
    rows = [
        [
            html.escape(name),
            f"{figures['position_bias']:+.3f}",
            f"{figures['first_always']:.1%}",
            f"{figures['second_always']:.1%}",
            f"{figures['first_minus_second']:+.2f}",
            f"{figures['judgements']:,}",
        ]
        for name, kind, figures in entries(candidates)
        if kind == ALL and figures["position_bias"] is not None
    ]
    if not rows:
        return "<p>Not known: answers were shown in one order.</p>"
    heads = ["candidate", "bias", "first won both times", "second won both times", "first ahead, points", "judgements"]
    words = (
        "Each pair of answers was judged in both orders. The bias is the share of judgements in which the answer "
        "shown first won both times less the share in which the second did: 0 for a judge that does not mind, 1 for "
        "one that always takes the first."
    )
    return f'{table(heads, rows, "nnnnn")}<p class="faint">{words}</p>'


def left_out(results: dict[str, Any], counts: dict[str, Counts]) -> str:
    shown = []
    without = results["questions"]["without_reference"]
    if without:
        shown.append(f"<p>{without:,} questions have no reference answer.</p>")
    for name, candidate in results["candidates"].items():
        if candidate["missing"]:
            shown.append(f"<p>{html.escape(name)}: {candidate['missing']:,} questions have no answer.</p>")
        incomplete = candidate["scores"].get(ALL, {}).get("incomplete", 0)
        if incomplete:
            shown.append(f"<p>{html.escape(name)}: {incomplete:,} judgements are left out.</p>")
        if counts[name].rejected:
            shown.append(reasons(f"Replies about {name} without scores", counts[name]))
    return "".join(shown) or "<p>Nothing.</p>"


def facts(results: dict[str, Any]) -> str:
    judge, questions, interval = results["judge"], results["questions"], results["interval"]
    kinds = ", ".join(f"{kind} {number:,}" for kind, number in questions["kinds"].items())
    named = {
        "judge": f"{judge['model']}; the server said {', '.join(judge['answered_as']) or 'nothing'}",
        "server": judge["server"],
        "prompt": judge["prompt"],
        "temperature": "the server's" if judge["temperature"] is None else f"{judge['temperature']:g}",
        "orders": ", ".join(judge["orders"]),
        "repeats": f"{judge['repeats']:,}",
        "attempts": f"up to {judge['attempts']}",
        "questions": f"{questions['from']}" + (f" ({kinds})" if kinds else ""),
        "context": questions["context"],
        "reference": questions["reference"],
        "candidates": ", ".join(f"{name} ({found['file']})" for name, found in results["candidates"].items()),
        "interval": f"{interval['resamples']:,} resamples of the questions, seed {interval['seed']}",
        "written with": results["written_with"],
    }
    return table(["", ""], [[html.escape(name), html.escape(value)] for name, value in named.items()], "")


def article(sample: Sample) -> str:
    question = sample.question
    said = []
    for name, answer in sample.answers.items():
        rows = "".join(verdict(wanted, found) for wanted, found in sample.verdicts if wanted.candidate == name)
        said.append(f"<p><b>{html.escape(name)}</b>: {html.escape(answer) or '(nothing)'}</p>{rows}")
    kind = f", {html.escape(question.kind)}" if question.kind else ""
    return f"""<article><div class="words"><p><b>{html.escape(question.text)}</b></p>
<p class="faint">{html.escape(question.id)}{kind}</p>
<p><b>reference</b>: {html.escape(question.reference)}</p>{"".join(said)}
<details><summary>what the judge knew of the picture</summary><pre>{html.escape(question.context)}</pre></details>
</div></article>"""


def verdict(wanted: Wanted, found: Outcome[Verdict]) -> str:
    order = wanted.order.replace("-", " ")
    if found.value is None:
        return f'<p class="faint">{order}: no scores, {html.escape(str(found.rejection))}</p>'
    pair = [found.value.first, found.value.second]
    reference, candidate = pair if wanted.order == "reference-first" else pair[::-1]
    return (
        f'<p class="faint">{order}: {candidate:g} beside {reference:g} for the reference. '
        f"{html.escape(found.value.reason)}</p>"
    )
