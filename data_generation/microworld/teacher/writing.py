"""Conversations, detailed descriptions and reasoning about one picture, in the form that a prompt asks for."""

import random
from collections.abc import Sequence
from typing import Any, get_args

from ...parsing import Form, Kind, Turns, render
from ..questions import Question, all_questions, ask
from ..scene import Thing
from ..wordings import LOOK_UPS, REASONING
from .photographs import write_about
from .reading import Context, read_context, read_things
from .refusals import Unanswerable


NUM_TURNS = (6, 7)
# How a system message says what is wanted, where neither a schema nor an example shows it.
ASKED_IN_WORDS: tuple[tuple[str, Kind], ...] = (
    ("conversation", "conversation"),
    ("step by step", "reasoning"),
    ("describe", "detail"),
    ("description", "detail"),
)


def write_reply(messages: Sequence[dict[str, str]], response_format: Any, rng: random.Random) -> str:
    """The reply to a prompt of `data_generation/prompting.py`, or one like it."""
    kind, form = wanted(messages, response_format)
    return render(kind, write_turns(kind, read_context(messages[-1]["content"]), rng), form)


def wanted(messages: Sequence[dict[str, str]], response_format: Any) -> tuple[Kind, Form]:
    """By the schema, else by the form of the examples, else by the words of the system message."""
    schema = response_format.get("json_schema") if isinstance(response_format, dict) else None
    if schema:
        name = schema.get("name") if isinstance(schema, dict) else None
        for kind in get_args(Kind):
            if kind == name:
                return kind, "json"
        raise Unanswerable(f"A schema called {name!r} is not known. Known are {', '.join(get_args(Kind))}.")
    replies = [message["content"] for message in messages if message["role"] == "assistant"]
    if replies:
        number = max(reply.lower().count("question:") for reply in replies)
        return ("detail" if number == 0 else "reasoning" if number == 1 else "conversation"), "text"
    system = " ".join(message["content"] for message in messages if message["role"] in ("system", "developer")).lower()
    for words, kind in ASKED_IN_WORDS:
        if words in system:
            return kind, "text"
    raise Unanswerable(
        "Neither a schema, nor an example, nor the system message says what to write. This teacher writes "
        "conversations, detailed descriptions and reasoning by prompts as in `data_generation/prompts`, and judges "
        "two answers."
    )


def write_turns(kind: Kind, context: Context, rng: random.Random) -> Turns:
    things = read_things(context)
    if things is None:
        return write_about(kind, context, rng)
    if kind == "detail":
        return [_turn(_some(things, ("detail",), rng))]
    if kind == "reasoning":
        return [_turn(_some(things, REASONING, rng))]
    return [_turn(question) for question in conversation(things, rng.randint(*NUM_TURNS), rng)]


def conversation(things: Sequence[Thing], number: int, rng: random.Random) -> list[Question]:
    """Different questions, mostly of different kinds; the last needs thought, and a summary may open it."""
    kinds: list[str] = []
    while len(kinds) < 3 * number:
        kinds += rng.sample(LOOK_UPS, len(LOOK_UPS))
    if rng.random() < 0.15:
        kinds.insert(0, "brief")
    found: dict[str, Question] = {}
    for kind in kinds:
        question = ask(things, kind, rng) if len(found) < number - 1 else None
        if question is not None:
            found.setdefault(question.text, question)
    last = _some(things, REASONING, rng)
    return [*found.values(), last]


def _some(things: Sequence[Thing], kinds: Sequence[str], rng: random.Random) -> Question:
    """A question of the kinds, each as likely where there is one."""
    for kind in rng.sample(kinds, len(kinds)):
        if question := ask(things, kind, rng):
            return question
    return rng.choice([question for question in all_questions(things) if question.kind in kinds])


def _turn(question: Question) -> tuple[str, str]:
    return question.text, question.answer
