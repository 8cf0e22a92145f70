"""The teacher's reply, turned into questions and answers or refused with a reason.

    turns = parse("conversation", text, finish_reason="stop")      # [(question, answer), ...] or Rejected
    text = render("conversation", turns)                           # and back

As text, a conversation or reasoning is blocks of

    Question:
    What is on the table?
    ===
    Answer:
    A cup and two spoons.

with a line of `===` between them; a detailed description is the answer alone. As JSON it is the schema of
`prompting.response_format`. What may be in a good answer is in `checks.py`, likeness to earlier ones in
`duplicates.py`.
"""

import json
import re
from typing import Any, Literal

from .checks import check_reply, check_turns
from .rejections import Rejected


Kind = Literal["conversation", "detail", "reasoning"]
Form = Literal["text", "json"]
Turns = list[tuple[str, str]]

# A heading alone on its line, or with the text behind it; models like to make it bold or number it.
HEADING = re.compile(r"[#*_ \t]*(question|answer)(?:[ \t]*\d+)?[ \t]*:[*_ \t]*(.*)", re.IGNORECASE)
SEPARATOR = re.compile(r"[ \t]*={3,}[ \t]*")
FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*?)\n?```", re.DOTALL | re.IGNORECASE)


def parse(
    kind: Kind,
    text: str | None,
    finish_reason: str | None = "stop",
    form: Form = "text",
    question: str | None = None,
) -> Turns:
    """The turns of a reply, checked; `Rejected` where something is wrong with it.

    Args:
        finish_reason: as the server gave it; None where it gives none.
        question: what a detailed description answers; not for other kinds.
    """
    if (question is None) == (kind == "detail"):
        raise ValueError("A detailed description needs `question`, and only that: its reply is the answer alone.")
    text = check_reply(text, finish_reason)
    turns = _read_json(text, question) if form == "json" else _read_text(text, question)
    check_turns(kind, turns)
    return turns


def render(kind: Kind, turns: Turns, form: Form = "text") -> str:
    """The reply that `parse` reads as these turns; a `ValueError` where text cannot say them."""
    if form == "json":
        pairs = [{"question": question, "answer": answer} for question, answer in turns]
        reply = {"answer": pairs[0]["answer"]} if kind == "detail" else {"turns": pairs}
        return json.dumps(reply, ensure_ascii=False)
    blocks = []
    for heading, body in (pair for turn in turns for pair in zip(("Question", "Answer"), turn, strict=True)):
        if kind == "detail" and heading == "Question":
            continue
        odd = [line for line in body.split("\n") if HEADING.fullmatch(line) or SEPARATOR.fullmatch(line)]
        if odd or body != body.strip() or "\r" in body:
            raise ValueError(f"A turn cannot be written as text: {(odd or [body])[0]!r} would be read otherwise.")
        blocks.append(body if kind == "detail" else f"{heading}:\n{body}")
    return "\n===\n".join(blocks)


def _read_text(text: str, question: str | None) -> Turns:
    if question is not None:
        odd = [line for line in text.split("\n") if HEADING.fullmatch(line) or SEPARATOR.fullmatch(line)]
        if odd:
            raise Rejected("bad-structure", f"a description with the line {odd[0][:80]!r}, wanted its text alone.")
        return [(question, text)]
    blocks: list[tuple[str, list[str]]] = []
    for line in text.split("\n"):
        heading = HEADING.fullmatch(line)
        if heading:
            blocks.append((heading[1].lower(), [heading[2]]))
        elif blocks:
            blocks[-1][1].append(line)
        elif line.strip() and not SEPARATOR.fullmatch(line):
            raise Rejected("bad-structure", f"the reply begins with {line[:80]!r}, wanted `Question:`.")
    turns: Turns = []
    for number, (heading_word, lines) in enumerate(blocks):
        wanted = ("question", "answer")[number % 2]
        if heading_word != wanted:
            raise Rejected("not-alternating", f"block {number + 1} is headed `{heading_word}`, wanted `{wanted}`.")
        while lines and (not lines[-1].strip() or SEPARATOR.fullmatch(lines[-1])):
            lines.pop()
        if any(SEPARATOR.fullmatch(line) for line in lines):
            raise Rejected("bad-structure", f"block {number + 1} goes on after a line of `===`, wanted a heading.")
        body = "\n".join(lines).strip()
        if wanted == "question":
            turns.append((body, ""))
        else:
            turns[-1] = (turns[-1][0], body)
    if not turns:
        raise Rejected("bad-structure", f"no block in {text[:80]!r}, wanted `Question:` and `Answer:`.")
    if len(blocks) % 2:
        raise Rejected("not-alternating", "the reply ends with a question, wanted its answer.")
    return turns


def _read_json(text: str, question: str | None) -> Turns:
    fenced = FENCE.fullmatch(text)
    try:
        reply = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError) as error:
        raise Rejected("bad-json", f"{error}; the reply begins with {text[:80]!r}.") from error
    if question is not None:
        return [(question, _string(reply, "answer"))]
    turns = reply.get("turns") if isinstance(reply, dict) else None
    if not isinstance(turns, list) or not turns:
        raise Rejected("bad-json", f"no list of `turns` in {text[:80]!r}.")
    return [(_string(turn, "question"), _string(turn, "answer")) for turn in turns]


def _string(entry: Any, key: str) -> str:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, str):
        raise Rejected("bad-json", f"`{key}` is {str(value)[:80]!r}, wanted a string.")
    return value.replace("\r\n", "\n").strip()
