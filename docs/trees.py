"""Draws docs/trees.svg: conversations that `processing` has encoded, planned and laid out, token by token.

    python -m docs.trees

Nothing in the picture is placed by hand, so that it shows what training does. tests/test_docs_site.py compares it with
a fresh one.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datasets import Dataset

from processing import LlavaProcessor
from processing.collator import Layout
from processing.packing import plan_rows
from processing.rows import PackedRows, encode_rows
from recipes import build


PAGE = Path(__file__).parent / "trees.svg"
HALVES = Path(__file__).parent.parent / "recipes/micro/halves"
MAX_LENGTH = 72
ASKED = [  # picture, question, answer
    ("a.png", "What colour is the ring?", "Red."),
    ("a.png", "Is there a cross?", "No, there is no cross."),
    ("a.png", "How many rings are there?", "One."),
    ("b.png", "What colour is the ring?", "Blue."),
    ("b.png", "How many rings are there?", "There are two rings."),
    ("c.png", "Is there a cross?", "Yes."),
    (None, "Is there a picture?", "No, there is no picture."),
]
CELL, BAR, LEFT, WIDTH = 11, 16, 14, 840  # pixels
DOT, EDGE = 5, 14  # of the mask, and of the tokens at its left and top
# A reader who chooses light or dark on the page may have chosen otherwise on the machine, so the picture has a ground
# of its own in both.
STYLE = """
  svg { font: 13px ui-sans-serif, system-ui, sans-serif }
  .ground { fill: #ffffff } text { fill: #1f2328 } .small { font-size: 11px; fill: #57606a }
  .head { font-weight: 600 }
  .image { fill: #4f7fd9 } .prompt { fill: #b3bdc9 } .answer { fill: #2f9e67 } .pad { fill: none; stroke: #c6ccd3 }
  .row { fill: none; stroke: #8c959f } .sees { fill: #6f63c9 } .bracket { fill: none; stroke: #1f2328 }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #16191f } text { fill: #e6edf3 } .small { fill: #9aa4b0 }
    .image { fill: #6d9bf0 } .prompt { fill: #566171 } .answer { fill: #3fb87c } .pad { stroke: #3a424d }
    .row { stroke: #6b7480 } .sees { fill: #9a90f0 } .bracket { stroke: #e6edf3 }
  }
"""


def main() -> None:
    PAGE.write_text(drawing(), encoding="utf-8")


def drawing() -> str:
    processor = micro_processor()
    rows = Dataset.from_list([row(str(number), *asked) for number, asked in enumerate(ASKED)])
    encoded, _ = encode_rows(rows, processor, MAX_LENGTH)
    settings = {"max_length": MAX_LENGTH, "rows_per_step": 1, "tokens_per_image": processor.num_image_tokens}
    laid = []
    for packed in PackedRows(rows, encoded, plan := plan_rows(encoded, **settings)):
        laid.append((packed["trees"], Layout()))
        for tree in packed["trees"]:
            laid[-1][1].add(tree, processor.image_token_id, processor.num_image_tokens)
    laid.sort(key=lambda one: -max(len(tree.ids) for tree in one[0]))

    parts, y = [], 26
    parts.append(text(LEFT, y, "Each conversation in a row of its own", "head"))
    tokens, longest = encoded["num_tokens"], max(encoded["num_tokens"])
    parts.append(text(LEFT, y + 18, f"{sum(tokens)} tokens, and {longest * len(tokens) - sum(tokens)} of padding"))
    y += 30
    for number, (picture, question, answer) in enumerate(ASKED):
        alone = Layout()
        one, its_ids = rows.select([number]), encoded.select([number])
        tree = PackedRows(one, its_ids, plan_rows(its_ids, **settings)).read_tree(0)
        alone.add(tree, processor.image_token_id, processor.num_image_tokens)
        parts += bar(alone, processor.image_token_id, y)
        parts += cells("pad", LEFT, y, alone.length, longest)
        words = f"{picture or 'no picture'}: {question} {answer}"
        parts.append(text(LEFT + longest * CELL + 12, y + 13, words, "small"))
        y += BAR + 8

    y += 30
    parts.append(
        text(LEFT, y, f"The same in rows of {MAX_LENGTH} tokens, conversations about a picture as a tree", "head")
    )
    total = sum(layout.length for _, layout in laid)
    parts.append(text(LEFT, y + 18, f"{total} tokens in {len(laid)} rows, sharing {plan.summary.sharing:.2f}x"))
    y += 52
    for trees, layout in laid:
        parts += tree_names(trees, layout, y - 6)
        parts += bar(layout, processor.image_token_id, y)
        parts.append(f'<rect class="row" x="{LEFT}" y="{y}" width="{MAX_LENGTH * CELL}" height="{BAR}"/>')
        y += BAR + 42

    y += 2
    parts.append(text(LEFT, y, "Who sees whom in the first row", "head"))
    parts.append(text(LEFT, y + 18, "A line is a token that looks, a column one that is looked at."))
    y += 34
    parts += mask(laid[0][1], processor.image_token_id, LEFT + EDGE, y + EDGE)
    parts += legend(LEFT + EDGE + laid[0][1].length * DOT + 40, y + EDGE + 20)
    height = y + EDGE + laid[0][1].length * DOT + 20
    ground = f'<rect class="ground" width="{WIDTH}" height="{height}" rx="6"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">'
    return "\n".join([head, f"<style>{STYLE}</style>", ground, *parts, "</svg>"]) + "\n"


def micro_processor() -> LlavaProcessor:
    """That of the quickstart's halves: nine tokens for a picture, a token for most words."""
    with tempfile.TemporaryDirectory() as folder:
        halves = ["--vision", f"{HALVES}/vision", "--language", f"{HALVES}/language"]
        build.main([*halves, "--system", "", "--out", f"{folder}/start"])
        return LlavaProcessor.from_pretrained(f"{folder}/start")


def row(name: str, picture: str | None, question: str, answer: str) -> dict:
    content = [{"type": "image", "text": None}] if picture else []
    content.append({"type": "text", "text": question})
    reply = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    return {
        "id": name,
        "images": [picture] if picture else [],
        "messages": [{"role": "user", "content": content}, reply],
    }


def bar(layout: Layout, image_token_id: int, y: int) -> Iterator[str]:
    """A cell for each token of a row: of a picture, supervised, or neither."""
    for place, kind in enumerate(kinds_of(layout, image_token_id)):
        yield from cells(kind, LEFT, y, place, place + 1)


def kinds_of(layout: Layout, image_token_id: int) -> np.ndarray:
    is_image = np.concatenate(layout.input_ids) == image_token_id
    return np.where(is_image, "image", np.where(supervised_places(layout), "answer", "prompt"))


def supervised_places(layout: Layout) -> np.ndarray:
    """Tokens that are learned: each is predicted from the one before it in its branch, or from the prefix's last."""
    found = np.zeros(layout.length, dtype=bool)
    for keep, targets in zip(layout.keep, layout.targets, strict=True):
        ids = np.concatenate(layout.input_ids)
        assert (ids[keep + 1] == targets).all()  # an answer never opens a branch: each begins with a question
        found[keep + 1] = True
    return found


def cells(kind: str, x: int, y: int, start: int, end: int) -> Iterator[str]:
    for place in range(start, end):
        yield f'<rect class="{kind}" x="{x + place * CELL}" y="{y}" width="{CELL - 1}" height="{BAR}"/>'


def tree_names(trees: list, layout: Layout, y: int) -> Iterator[str]:
    """Above each tree a bracket, and which picture it is about; below, where the shared start ends."""
    start = 0
    for tree in trees:
        end = next((s[1] for s in reversed(layout.segments) if tree_end(layout, start, s)), layout.length)
        picture = ASKED[int(tree.ids[0])][0] or "no picture"
        branches = f", {len(tree.ids)} conversations" if len(tree.ids) > 1 else ""
        left, right = LEFT + start * CELL, LEFT + end * CELL - 1
        yield f'<path class="bracket" d="M{left} {y}v-5H{right}v5"/>'
        yield text(left, y - 9, f"{picture}{branches}", "small")
        for segment in layout.segments:
            if start <= segment[0] < end and segment[0] > start:
                x = LEFT + segment[0] * CELL - 0.5
                yield f'<path class="bracket" d="M{x} {y + 4}v{BAR + 8}"/>'
        start = end


def tree_end(layout: Layout, start: int, segment: tuple[int, int, int, int]) -> bool:
    """Whether a segment belongs to the tree that starts there: it is its first, or sees its prefix."""
    return segment[0] == start or (segment[3] > segment[2] and segment[2] == start)


def mask(layout: Layout, image_token_id: int, x: int, y: int) -> Iterator[str]:
    """Runs of what each token sees: itself and those before it that end no earlier than it."""
    end = np.concatenate(layout.end)
    yield '<g shape-rendering="crispEdges">'
    for place, kind in enumerate(kinds_of(layout, image_token_id)):
        at = place * DOT
        yield f'<rect class="{kind}" x="{x + at}" y="{y - EDGE}" width="{DOT}" height="{EDGE - 4}"/>'
        yield f'<rect class="{kind}" x="{x - EDGE}" y="{y + at}" width="{EDGE - 4}" height="{DOT}"/>'
    for query in range(layout.length):
        seen = [key for key in range(query + 1) if query < end[key]]
        runs = np.split(seen, np.flatnonzero(np.diff(seen) > 1) + 1)
        for run in runs:
            left, width = x + run[0] * DOT, len(run) * DOT
            yield f'<rect class="sees" x="{left}" y="{y + query * DOT}" width="{width}" height="{DOT}"/>'
    side = layout.length * DOT
    yield f'<rect class="row" x="{x}" y="{y}" width="{side}" height="{side}"/></g>'


def legend(x: int, y: int) -> Iterator[str]:
    for number, (kind, words) in enumerate(
        [
            ("image", "tokens of a picture"),
            ("prompt", "the template's words and the question"),
            ("answer", "the answer and its stop: what is learned"),
            ("pad", "padding"),
            ("sees", "is seen"),
        ]
    ):
        yield f'<rect class="{kind}" x="{x}" y="{y + 24 * number - 12}" width="{BAR}" height="{BAR}"/>'
        yield text(x + 26, y + 24 * number + 1, words)


def text(x: float, y: float, words: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x}" y="{y}">{words}</text>'


if __name__ == "__main__":
    main()
