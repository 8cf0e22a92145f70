"""Two answers to a question, the reference's and a candidate's, shown to a judge that reads what is known of the
picture, and the two scores read from its reply.

    plan = JudgePlan(load_judge_prompt(), {"model": "m", "temperature": 0, ...}, questions, candidates, ORDERS, 1)
    await ask(teacher, plan.requests(), read_verdict, attempts, failures)       # replies go into the ledger
    for judged in plan.outcomes(find, host, attempts, failures): ...            # and what they say comes out of it

The prompts are text files in `prompts/judge/`: `system.txt` and `task.txt` for the judge, `reference.txt` for a
teacher that writes reference answers.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from .checks import CUT, check_reply
from .exchange import Reply, Request, read_reply
from .judge_files import Question
from .pipeline import Failures
from .prompting import OURS, read_words
from .rejections import Rejected
from .relative_score import Order, Scored
from .teacher import Teacher


FOLDER = OURS / "judge"
LOWEST, HIGHEST = 1.0, 10.0
MOST_ATTEMPTS = 16  # of one reply; the samples of a repeat are numbered within it

# Alone on the first line, with the marks that models put around what they think important. A slash would be a
# fraction, and three numbers are no pair.
NUMBER = r"([0-9]{1,4}(?:\.[0-9]{1,4})?)"
SCORES = re.compile(rf"[*_`\s]*{NUMBER}(?:\s*,\s*|\s+){NUMBER}[*_`\s]*")
THOUGHTS = re.compile(r"\s*<think>.*?</think>", re.DOTALL)
# A line of an answer that looks like one of ours would end the answer, or begin another.
HEADING = re.compile(r"^([ \t]*)\[((?:end of )?assistant [12]|context|question|task)\]([ \t]*)$", re.I | re.M)

T = TypeVar("T")
Find = Callable[[Sequence[str]], list[bytes | None]]


@dataclass(frozen=True)
class JudgePrompt:
    system: str
    task: str

    @property
    def version(self) -> str:
        return hashlib.blake2b(json.dumps([self.system, self.task]).encode(), digest_size=6).hexdigest()

    def messages(self, question: Question, first: str, second: str) -> list[dict[str, str]]:
        answers = "\n\n".join(
            f"[Assistant {number}]\n{_harmless(text)}\n[End of Assistant {number}]"
            for number, text in ((1, first), (2, second))
        )
        return [
            {"role": "system", "content": self.system},
            {"role": "user", "content": f"{_asked(question)}\n\n{answers}\n\n[Task]\n{self.task}"},
        ]


def load_judge_prompt(folder: Path | None = None) -> JudgePrompt:
    """Ours, or that of a folder with the same files."""
    home = folder or FOLDER
    return JudgePrompt(read_words(home / "system.txt"), read_words(home / "task.txt"))


def load_reference_prompt(folder: Path | None = None) -> str:
    return read_words((folder or FOLDER) / "reference.txt")


def _asked(question: Question) -> str:
    return f"[Context]\n{_harmless(question.context)}\n\n[Question]\n{_harmless(question.text)}"


def _harmless(text: str) -> str:
    return HEADING.sub(r"\1(\2)\3", text.replace("\r\n", "\n").replace("\r", "\n").strip())


def reference_request(system: str, question: Question, fields: Mapping[str, Any]) -> Request:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": _asked(question)}]
    return Request({**fields, "messages": messages}, tag=question.id)


def read_answer(reply: Reply) -> str:
    """A reference answer, or `Rejected`."""
    _check_refusal(reply)
    return check_reply(THOUGHTS.sub("", reply.text, count=1), reply.finish_reason or None)


@dataclass(frozen=True)
class Verdict:
    """Scores of the answers by their places, and what the judge says of them."""

    first: float
    second: float
    reason: str


def read_verdict(reply: Reply) -> Verdict:
    """The verdict, or `Rejected`: only two numbers from 1 to 10, alone on the first line, will do."""
    _check_refusal(reply)
    if reply.finish_reason == "content_filter":
        raise Rejected("filtered", "the server's content filter stopped the reply.")
    text = THOUGHTS.sub("", reply.text, count=1).strip()
    line, line_end, rest = text.partition("\n")
    if not line:
        raise Rejected("empty-reply", "the reply has no words.")
    if reply.finish_reason in CUT and not line_end:  # it may be a 1 where a 10 was to come
        raise Rejected("truncated", "the reply was cut at the limit of tokens. Raise --max-output.")
    match = SCORES.fullmatch(line)
    if match is None:
        raise Rejected("no-scores", f"the first line is {line[:80]!r}, wanted two numbers and nothing else.")
    first, second = map(float, match.groups())
    if not all(LOWEST <= score <= HIGHEST for score in (first, second)):
        raise Rejected("score-out-of-range", f"the first line is {line[:80]!r}, wanted numbers from 1 to 10.")
    return Verdict(first, second, rest.strip().encode(errors="replace").decode())


def _check_refusal(reply: Reply) -> None:
    if reply.refusal:
        raise Rejected("refusal", f"the reply is a refusal: {reply.refusal[:80]!r}.")


@dataclass(frozen=True)
class Wanted:
    """One reply of the judge that is wanted."""

    question: Question
    candidate: str
    order: Order
    repeat: int


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What came of a request: `value`, or the `rejection` of its last reply. `attempts`: replies there are."""

    value: T | None
    rejection: Rejected | None
    reply: Reply | None
    attempts: int


@dataclass(frozen=True)
class JudgePlan:
    """What is asked. `candidates`: answers by question id, by the candidate's name; a question that one of them lacks
    is not asked for it."""

    prompt: JudgePrompt
    fields: Mapping[str, Any]
    questions: Sequence[Question]
    candidates: Mapping[str, Mapping[str, str]]
    orders: Sequence[Order]
    repeats: int

    def wanted(self) -> Iterator[Wanted]:
        """All of a question together, so that an early end leaves few questions half judged."""
        for question in self.questions:
            for name, answers in self.candidates.items():
                if question.id in answers:
                    for repeat in range(self.repeats):
                        for order in self.orders:
                            yield Wanted(question, name, order, repeat)

    def request(self, wanted: Wanted) -> Request:
        answers = [wanted.question.reference, self.candidates[wanted.candidate][wanted.question.id]]
        if wanted.order == "candidate-first":
            answers.reverse()
        tag = f"{wanted.question.id} {wanted.candidate} {wanted.order} {wanted.repeat}"
        body = {**self.fields, "messages": self.prompt.messages(wanted.question, *answers)}
        return Request(body, sample=wanted.repeat * MOST_ATTEMPTS, tag=tag)

    def requests(self) -> Iterator[Request]:
        return map(self.request, self.wanted())

    def outcomes(
        self, find: Find, host: str, attempts: int, failures: Failures
    ) -> Iterator[tuple[Wanted, Outcome[Verdict]]]:
        for wanted in self.wanted():
            yield wanted, outcome(self.request(wanted), read_verdict, attempts, find, host, failures)


def scored(wanted: Wanted, verdict: Verdict) -> Scored:
    scores = (verdict.first, verdict.second)
    reference, candidate = scores if wanted.order == "reference-first" else scores[::-1]
    return Scored(wanted.question.id, wanted.question.kind, wanted.repeat, wanted.order, reference, candidate)


async def ask(
    teacher: Teacher,
    requests: Iterable[Request],
    read: Callable[[Reply], Any],
    attempts: int,
    failures: Failures,
    total: int | None = None,
) -> None:
    """Has every request answered and stored, again where `read` rejects the reply. Raises RunStopped as `Teacher.ask`;
    requests that failed for good are in `failures`.
    """
    async for request, reply in teacher.ask(requests, total):
        if reply.error:
            failures[reply.key] = Rejected(f"failed-{reply.error.replace('_', '-')}", reply.detail)
            continue
        try:
            read(reply)
        except Rejected:  # counted where the results are written
            teacher.progress.rejected += 1
            if request.sample % MOST_ATTEMPTS + 1 < attempts:
                teacher.again(replace(request, sample=request.sample + 1))


def outcome(
    request: Request, read: Callable[[Reply], T], attempts: int, find: Find, host: str, failures: Failures
) -> Outcome[T]:
    """What the ledger has for a request; asks nobody."""
    payload = request.payload()
    keys = [replace(request, sample=request.sample + attempt).key(host, payload) for attempt in range(attempts)]
    replies = [read_reply(key, raw, cached=True) for key, raw in zip(keys, find(keys), strict=True) if raw is not None]
    rejection = next((failures[key] for key in keys if key in failures), None)
    for number, reply in enumerate(replies, 1):
        try:
            return Outcome(read(reply), None, reply, number)
        except Rejected as rejected:
            rejection = rejected
    missing = Rejected("no-answer", "the ledger has none. Run the same command again to ask for it.")
    return Outcome(None, rejection or missing, replies[-1] if replies else None, len(replies))
