"""One page about a data set that a teacher wrote: what is in it, what is not and why, what it cost, how it looks."""

import html
from collections import Counter
from itertools import groupby

from .page import document, table, tiles
from .pictures import thumbnail
from .rejections import Counts
from .summary import BIN, Sample, Summary


BARS = 40


def report(summary: Summary, title: str, facts: dict[str, str]) -> str:
    """All of it in one file, pictures included. `facts`: name -> value, in the order they are shown."""
    body = f"""<h1>{html.escape(title)}</h1>
<p class="faint">Visual instruction data, written by a language model from captions and boxes.</p>
{figures(summary)}
<h2>Kinds</h2>
{kinds(summary)}
<h2>What was left out</h2>
{left_out(summary)}
<h2>Lengths</h2>
<div class="charts">{"".join(histogram(*key, bins) for key, bins in sorted(summary.lengths.items()))}</div>
<h2>How it was made</h2>
{table(["", ""], [[html.escape(name), html.escape(value)] for name, value in facts.items()], "")}
<h2>Some rows</h2>
{gallery(summary.samples())}"""
    return document(title, body)


def figures(summary: Summary) -> str:
    spent = summary.spent
    shown = [
        (f"{summary.rows.kept:,}", "rows"),
        (f"{summary.images:,}", "pictures"),
        (f"{sum(summary.turns.values()):,}", "answers"),
        (f"{spent.requests:,}", "requests billed"),
        (short(spent.input), "input tokens"),
        (short(spent.output), "output tokens"),
    ]
    if spent.cached:
        shown.append((f"{spent.cached / max(spent.input, 1):.0%}", "of the input from the cache"))
    if spent.maybe_requests:
        shown.append((f"{spent.maybe_requests:,}", "requests more that may have been billed"))
    if summary.cost is not None:
        shown.append((f"${summary.cost:,.2f}", "at most, at the prices given"))
    return tiles(shown)


def short(number: int) -> str:
    for size, unit in ((10**9, "B"), (10**6, "M")):
        if number >= size:
            return f"{number / size:,.1f} {unit}"
    return f"{number:,}"


def kinds(summary: Summary) -> str:
    rows = [
        [
            html.escape(kind),
            *(f"{n:,}" for n in (wanted, summary.kept[kind])),
            f"{summary.kept[kind] / max(wanted, 1):.1%}",
            f"{summary.turns[kind] / max(summary.kept[kind], 1):.1f}",
        ]
        for kind, wanted in summary.wanted.items()
    ]
    tries = ", ".join(f"{number:,} at attempt {attempt}" for attempt, number in sorted(summary.attempts.items()))
    return table(["kind", "asked for", "kept", "share", "answers a row"], rows, "nnnn") + f"<p>Answered: {tries}.</p>"


def left_out(summary: Summary) -> str:
    sections = [
        ("Rows without an answer that can be used", summary.rows),
        ("Answers refused, also where a later attempt was good", summary.replies),
        ("Rows that could not be asked for", summary.tasks),
        ("Images of the source", summary.source),
    ]
    shown = "".join(reasons(title, counts) for title, counts in sections if counts.rejected or counts.trimmed)
    replies = "".join(
        f"<details><summary>{html.escape(reason)}: {html.escape(row)}</summary>"
        f"<p>{html.escape(detail)}</p><pre>{html.escape(text) or 'no text'}</pre></details>"
        for reason, examples in sorted(summary.refused.items())
        for row, detail, text in examples
    )
    return (shown or "<p>Nothing.</p>") + (f"<h3>Refused answers</h3>{replies}" if replies else "")


def reasons(title: str, counts: Counts) -> str:
    found = [(n, reason, "") for reason, n in counts.rejected.items()]
    found += [(n, reason, " (parts)") for reason, n in counts.trimmed.items()]
    rows = []
    for number, reason, what in sorted(found, key=lambda entry: (-entry[0], entry[1])):
        examples = counts.examples[reason]
        names = ", ".join(f"<code>{html.escape(name)}</code>" for name, _ in examples)
        rows.append([f"{html.escape(reason)}{what}", f"{number:,}", f"{names}<br>{html.escape(examples[0][1])}"])
    return f"<h3>{html.escape(title)}</h3>" + table(["reason", "number", "such as"], rows, "n")


def histogram(kind: str, what: str, bins: Counter[int]) -> str:
    """How many texts have how many characters; the longest hundredth is in the last bar."""
    total, seen, end, middle = bins.total(), 0, BIN, 0
    for start, count in sorted(bins.items()):
        middle = start if seen < total / 2 else middle
        if seen < 0.99 * total:
            end = start + BIN
        seen += count
    step = max(BIN, -(-end // BARS // BIN) * BIN)
    bars: Counter[int] = Counter()
    for start, count in bins.items():
        bars[min(start, end - BIN) // step] += count
    width, height, number, top = 360, 120, max(bars) + 1, max(bars.values())
    each = width / max(number, 8)
    rectangles = "".join(
        f'<rect x="{place * each + 0.5:.1f}" width="{each - 1:.1f}" y="{height * (1 - count / top):.1f}" '
        f'height="{height * count / top:.1f}"><title>from {place * step:,}: {count:,}</title></rect>'
        for place, count in sorted(bars.items())
    )
    words = f"{kind}, {what}s: {total:,}, half of them below {middle + BIN:,} characters"
    return f"""<figure><svg viewBox="0 0 {width} {height + 18}" role="img" aria-label="{html.escape(words)}">
<g fill="var(--blue)">{rectangles}</g>
<line x2="{width}" y1="{height}" y2="{height}" stroke="var(--line)"/>
<g fill="var(--faint)" font-size="12"><text y="{height + 14}">0</text>
<text x="{min(number * each, width):.0f}" y="{height + 14}" text-anchor="end">{number * step:,}</text></g></svg>
<figcaption>{html.escape(words)}</figcaption></figure>
"""


def gallery(samples: list[Sample]) -> str:
    parts = []
    for kind, group in groupby(samples, key=lambda sample: sample.kind):
        parts.append(f"<h3>{html.escape(kind)}</h3>")
        parts += [article(sample) for sample in group]
    return "\n".join(parts)


def article(sample: Sample) -> str:
    url = "" if sample.picture is None else thumbnail(sample.picture)
    picture = f'<img src="{url}" alt="">' if url else '<p class="faint">picture not found</p>'
    turns = "".join(f"<p><b>{html.escape(q)}</b></p><p>{html.escape(a)}</p>" for q, a in sample.turns)
    captions = html.escape("\n".join(sample.captions))
    return f"""<article><div class="picture">{picture}</div><div class="words">{turns}
<p class="faint">{html.escape(sample.id)}; what people had written of it:
{captions or "nothing, there are boxes alone"}</p></div></article>"""
