"""Both ways of the paper to join a model that sees with one that reads: ScienceQA answers made better by a text model.

`complement`: the text model's option where it names one, else ours. `judge`: where the two name different options, the
text model is shown both answers and asked again. It never sees the picture.

    prompts = load_prompts()
    theirs = await ask_all(teacher, [first_request(problem, prompts, fields) for problem in problems])
    second = await ask_all(teacher, [second_request(problem, ...) for problem in differing(problems, ours, theirs)])
    final = judged(ours, theirs, second)
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .exchange import Reply, Request
from .prompting import OURS, read_words
from .rejections import Rejected
from .scienceqa import LETTERS, Problem, write_turn
from .scienceqa_scores import Choice, Tally, read_letter
from .sources import check_unicode
from .teacher import Teacher


FOLDER = OURS / "scienceqa"
SHOTS = ("000", "001")  # two, as the paper's text-only baseline has
ASKED = "QCM-A"  # how a question is written, in the examples too
NOTHING_SAID = "(no answer)"


@dataclass(frozen=True)
class Prompts:
    """The fixed part of both requests. `shots` are questions and replies; `second` is the system message of the
    request that shows two answers."""

    first: str
    shots: tuple[tuple[str, str], ...]
    second: str

    @property
    def version(self) -> str:
        return hashlib.blake2b(json.dumps(self.__dict__).encode(), digest_size=6).hexdigest()


def load_prompts(folder: Path | None = None) -> Prompts:
    """Ours, or those of a folder that holds all of the files."""
    home = FOLDER if folder is None else folder
    shots = tuple(
        (read_words(home / f"{shot}_question.txt"), read_words(home / f"{shot}_reply.txt")) for shot in SHOTS
    )
    for shot, (_, reply) in zip(SHOTS, shots, strict=True):
        if read_letter(reply, 5).form != "sentence":
            raise ValueError(f"`{home / f'{shot}_reply.txt'}` has no `The answer is B.`, or several. Add it once.")
    return Prompts(read_words(home / "baseline_system.txt"), shots, read_words(home / "second_system.txt"))


def first_request(problem: Problem, prompts: Prompts, fields: Mapping[str, Any]) -> Request:
    """What the text model is asked before anything is compared."""
    messages = [{"role": "system", "content": prompts.first}]
    for question, reply in prompts.shots:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    messages.append({"role": "user", "content": write_turn(problem, ASKED)[0]})
    return Request({**fields, "messages": messages}, tag=problem.id)


def second_request(problem: Problem, ours: str, theirs: str, prompts: Prompts, fields: Mapping[str, Any]) -> Request:
    """The same question, with two answers whose order is by the problem's id, so that neither is always the first."""
    ours_first = hashlib.blake2b(problem.id.encode(), digest_size=1).digest()[0] % 2 == 0
    answers = (ours, theirs) if ours_first else (theirs, ours)
    shown = [text.strip() or NOTHING_SAID for text in answers]
    words = f"{write_turn(problem, ASKED)[0]}\n\nFirst answer:\n{shown[0]}\n\nSecond answer:\n{shown[1]}"
    try:
        check_unicode(words)
    except Rejected as rejection:
        raise ValueError(
            f"The answer to problem `{problem.id}` cannot be shown: {rejection.detail} Repair it."
        ) from rejection
    messages = [{"role": "system", "content": prompts.second}, {"role": "user", "content": words}]
    return Request({**fields, "messages": messages}, tag=problem.id)


@dataclass
class Replies:
    """What came back: words by problem, empty where there are none, and why so."""

    texts: dict[str, str]
    lost: Counter[str]
    examples: dict[str, tuple[str, str]]  # of each reason: the first problem, and its detail


async def ask_all(teacher: Teacher, requests: Sequence[Request]) -> Replies:
    """Every request's words. A request that is refused for good has none; it is counted, never left out in silence."""
    replies = Replies({}, Counter(), {})
    async for request, reply in teacher.ask(requests, len(requests)):
        reason, detail = _why_none(reply)
        replies.texts[request.tag] = "" if reason else reply.text
        if not reason and reply.finish_reason == "length":
            reason, detail = "cut-off", "the answer reached its highest number of tokens; raise --max-output."
        if reason:
            replies.lost[reason] += 1
            replies.examples.setdefault(reason, (request.tag, detail))
    return replies


def _why_none(reply: Reply) -> tuple[str, str]:
    if reply.error:
        return f"failed-{reply.error.replace('_', '-')}", reply.detail
    if reply.refusal:
        return "refusal", reply.refusal[:200]
    return ("", "") if reply.text.strip() else ("empty", "the answer has no words.")


# -- from answers to a final one --


def differing(problems: Iterable[Problem], ours: Mapping[str, Choice], theirs: Mapping[str, Choice]) -> list[Problem]:
    """Where the two do not name the same option; one of them may name none."""
    return [problem for problem in problems if ours[problem.id].letter != theirs[problem.id].letter]


def complemented(ours: Mapping[str, Choice], theirs: Mapping[str, Choice]) -> dict[str, Choice]:
    return {name: theirs[name] if theirs[name].letter else choice for name, choice in ours.items()}


def judged(
    ours: Mapping[str, Choice], theirs: Mapping[str, Choice], second: Mapping[str, Choice]
) -> dict[str, Choice]:
    """Where it was asked again and names an option, that one; else ours, or theirs where we name none."""
    final = {}
    for name, choice in ours.items():
        said = [one for one in (second.get(name), choice, theirs[name]) if one is not None and one.letter]
        final[name] = said[0] if said else choice
    return final


def either_right(problems: Sequence[Problem], ours: Mapping[str, Choice], theirs: Mapping[str, Choice]) -> Tally:
    """The bound that no way to choose between the two can pass."""
    right = [LETTERS[one.answer] in (ours[one.id].letter, theirs[one.id].letter) for one in problems]
    return Tally(len(problems), sum(right))
