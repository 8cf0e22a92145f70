"""What the micro language model reads: scenes told in words, and what is asked about them.

    <s>USER:  {scene}\\n                     the prefix
    {question} ASSISTANT: {answer}</s>      a branch, of several; each sees the prefix and itself

It is what `llava build --template vicuna_v1 --system ""` writes, with the scene in the place of a picture. Rows have
one length and are filled with branches, so that little of a batch is padding.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import torch
from transformers import PreTrainedTokenizerFast

from data_generation.microworld.questions import ask
from data_generation.microworld.scene import CELLS, COLOURS, HELD_OUT, SHAPES, Thing, make_scene
from data_generation.microworld.words import NUMBERS, captions, named, plural, telling
from data_generation.prompting import load_questions

from .vocabulary import cell_word


LENGTH = 192  # of a row: a prefix of 20 to 90 tokens and five to twelve branches
DRILLS = 10  # look-ups in a branch of them
PATIENCE = 4  # branches that may be too long for the rest of a row before it is left
UNLEARNED = -100


@dataclass(frozen=True, slots=True)
class Branch:
    """Pieces of text, each with whether it is to be learned."""

    kind: str
    pieces: tuple[tuple[str, bool], ...]


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a row is drawn from. `plain`: how often a scene without equal shapes and colours is insisted on."""

    most: int  # objects
    plain: float
    chained: float  # share of rows that are one conversation of several turns
    kinds: dict[str, float]
    forms: dict[str, float]
    passed: float = 0.9  # share of the answers to `CORE` with which the next lesson comes
    longest: float = math.inf  # steps after which it comes anyway
    told: float = 0.0  # share of scenes with an object whose colour and shape no picture shows


@dataclass(slots=True)
class Row:
    """A prefix and its branches, each with its labels. `answers`: kind, start and end in the row."""

    prefix: list[int]
    is_chained: bool = False
    length: int = 0
    branches: list[tuple[list[int], list[int]]] = field(default_factory=list)
    answers: list[tuple[str, int, int]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.prefix) + self.length


@dataclass(frozen=True, slots=True)
class Batch:
    """(rows, length) each; `answers` are row, kind, start and end of each."""

    input_ids: torch.Tensor
    labels: torch.Tensor
    end: torch.Tensor
    position_ids: torch.Tensor
    answers: list[tuple[int, str, int, int]]


def tell(things: Sequence[Thing], form: str, rng: random.Random) -> str:
    """A scene in words, with all its facts. `cells` is the form nearest to a picture: nine words, a cell each."""
    if form == "cells":
        looks = {thing.cell: (thing.size, thing.colour, thing.shape) for thing in things}
        return " ".join(cell_word(cell, looks.get(cell)) for cell in range(len(CELLS)))
    if form == "list":
        return " ".join(f"{named(thing)} {CELLS[thing.cell]};" for thing in things)
    if form == "shuffled":
        parts = [[thing.size, thing.colour, thing.shape, CELLS[thing.cell]] for thing in things]
        rng.shuffle(parts)
        return " ".join(f"{' '.join(rng.sample(part, len(part)))};" for part in parts)
    return " ".join(telling(things, rng) if form == "told" else captions(things, rng))


def question_branch(things: Sequence[Thing], kind: str, rng: random.Random) -> Branch | None:
    if kind == "caption":
        return answered(kind, rng.choice(questions_of("brief")), rng.choice(captions(things, rng)))
    question = ask(things, kind, rng)
    if question is None:
        return None
    # Stage 2 asks for details in these words too.
    text = rng.choice(questions_of("detailed")) if kind == "detail" and rng.random() < 0.5 else question.text
    return answered(kind, text, question.answer)


@cache
def questions_of(which: Literal["brief", "detailed"]) -> tuple[str, ...]:
    return load_questions(which)


def answered(kind: str, question: str, answer: str) -> Branch:
    # The space belongs to the answer: its first token carries it.
    return Branch(kind, ((f"{question} ASSISTANT:", False), (f" {answer}</s>", True)))


def drill(things: Sequence[Thing], rng: random.Random, with_numbers: bool) -> Branch:
    """Look-ups without sentences, the value after its key: `colour square red; where red top; how circles two;`"""
    found: dict[str, str] = {}
    for _ in range(3 * DRILLS):
        key, value = _counted(things, rng) if with_numbers and rng.random() < 0.6 else _looked_up(things, rng)
        if len(found) < DRILLS:
            found[key] = value
    pieces = []
    for key, value in found.items():
        pieces += [(f" {key}", False), (f" {value}", True), (";", False)]
    return Branch("drill", tuple(pieces))


def retelling(things: Sequence[Thing], rng: random.Random) -> Branch:
    """The scene again as a list, in another order, its words forwards or backwards: a look-up in nearly every word."""
    parts = [[thing.size, thing.colour, thing.shape, CELLS[thing.cell]] for thing in things]
    step = rng.choice((1, -1))
    told = [f" {' '.join(part[::step])};" for part in rng.sample(parts, len(parts))]
    return Branch("retelling", ((" again", False), ("".join(told), True)))


def _looked_up(things: Sequence[Thing], rng: random.Random) -> tuple[str, str]:
    facts = [
        {"shape": thing.shape, "colour": thing.colour, "size": thing.size, "where": CELLS[thing.cell]}
        for thing in things
    ]
    chosen = rng.choice(facts)
    by = rng.choice(("shape", "colour", "where"))
    if sum(fact[by] == chosen[by] for fact in facts) > 1:
        by = "where"
    wanted = rng.choice([name for name in chosen if name != by])
    return f"{wanted} {chosen[by]}", chosen[wanted]


def _counted(things: Sequence[Thing], rng: random.Random) -> tuple[str, str]:
    shapes, colours = [thing.shape for thing in things], [thing.colour for thing in things]
    if rng.random() < 0.5:
        there = rng.random() < 0.75
        if rng.random() < 0.5:
            shape = rng.choice(shapes if there else SHAPES)
            return f"how {plural(shape)}", NUMBERS[shapes.count(shape)]
        colour = rng.choice(colours if there else COLOURS)
        return f"how {colour}", NUMBERS[colours.count(colour)]
    pair = rng.choice(colours), rng.choice(shapes)
    # Where there is no held-out pair, nor is it said of one that it is not there: it would be never.
    if rng.random() < 0.3 or (pair in HELD_OUT and not any(thing.pair in HELD_OUT for thing in things)):
        pair = rng.choice(things).pair
    return f"is {pair[0]} {pair[1]}", "yes" if pair in [thing.pair for thing in things] else "no"


def scene_for(lesson: Lesson, rng: random.Random) -> tuple[Thing, ...]:
    insisted = rng.random() < lesson.plain
    while True:
        split = "told" if lesson.told and rng.random() < lesson.told else "train"
        things = make_scene(split, rng.randrange(10**9)).things
        if len(things) > lesson.most:
            continue
        shapes, colours = {thing.shape for thing in things}, {thing.colour for thing in things}
        if not insisted or len(shapes) == len(colours) == len(things):
            return things


def draw_row(lesson: Lesson, weights: dict[str, float], tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> Row:
    things = scene_for(lesson, rng)
    form = rng.choices(list(lesson.forms), list(lesson.forms.values()))[0]
    row = start_row(tell(things, form, rng), tokenizer)
    row.is_chained = rng.random() < lesson.chained
    kinds, chances = list(weights), list(weights.values())
    refused, seen = 0, set()
    while refused < PATIENCE:
        kind = rng.choices(kinds, chances)[0]
        if kind in ("drill", "retelling"):
            # Nothing that ends in `</s>`, so no turn of a conversation.
            if row.is_chained:
                continue
            branch = retelling(things, rng) if kind == "retelling" else drill(things, rng, "count" in weights)
        else:
            branch = question_branch(things, kind, rng)
        if branch is None:
            continue
        if branch.pieces in seen or not add(row, branch, tokenizer):
            refused += 1
        seen.add(branch.pieces)
    return row


def start_row(scene: str, tokenizer: PreTrainedTokenizerFast) -> Row:
    # Two spaces, since the template's own is a token where a picture follows it: so it is met here too.
    return Row(encode(f"<s>USER:  {scene}\n", tokenizer))


def add(row: Row, branch: Branch, tokenizer: PreTrainedTokenizerFast, room: int = LENGTH) -> bool:
    """Whether there was room for it."""
    pieces = list(branch.pieces)
    if row.is_chained and row.branches:
        pieces[0] = (f"USER: {pieces[0][0]}", False)
    ids: list[int] = []
    labels: list[int] = []
    answers = []
    for text, is_learned in pieces:
        piece = encode(text, tokenizer)
        if is_learned:
            answers.append((branch.kind, len(row) + len(ids), len(row) + len(ids) + len(piece)))
        ids += piece
        labels += piece if is_learned else [UNLEARNED] * len(piece)
    if len(row) + len(ids) > room:
        return False
    row.branches.append((ids, labels))
    row.answers += answers
    row.length += len(ids)
    return True


def collate(rows: list[Row], tokenizer: PreTrainedTokenizerFast) -> Batch:
    longest = max(len(row) for row in rows)
    columns: list[list[list[int]]] = [[], [], [], []]
    for row in rows:
        rest = range(len(row), longest)
        prefix = len(row.prefix)
        ids, labels = list(row.prefix), [UNLEARNED] * prefix
        ends, positions = [len(row)] * prefix, list(range(prefix))
        for branch, learned in row.branches:
            first = len(ids) if row.is_chained else prefix
            ids += branch
            labels += learned
            ends += [len(row) if row.is_chained else len(ids)] * len(branch)
            positions += range(first, first + len(branch))
        # What pads sees itself, or its softmax would be over nothing.
        padded = (
            ids + [tokenizer.pad_token_id] * len(rest),
            labels + [UNLEARNED] * len(rest),
            ends + [place + 1 for place in rest],
            positions + [0] * len(rest),
        )
        for column, values in zip(columns, padded, strict=True):
            column.append(values)
    answers = [(number, *answer) for number, row in enumerate(rows) for answer in row.answers]
    return Batch(*(torch.tensor(column) for column in columns), answers)


def encode(text: str, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    return tokenizer.backend_tokenizer.encode(text).ids
