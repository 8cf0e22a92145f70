"""From annotated images to rows: what is asked of the teacher, and what becomes of its answers.

    plan = Plan({kind: load_prompt(kind) for kind in kinds}, {"model": "m", "max_completion_tokens": 2048})
    await ask(teacher, plan, plan.tasks(images, counts))                              # answers go into the ledger
    rows = write(outcomes(plan, plan.tasks(images, counts), find, host), ...)         # and rows come out of it

The two halves meet in the ledger alone, so the data set can be made again from it, with another parser too, and which
of two rows alike is kept does not depend on the order of the answers. An answer that cannot be used is asked for
again with the same words: a request that quoted it would depend on the parser, and what was paid for it would be lost
with every change of that.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from .exchange import Reply, Request, read_reply
from .parsing import Kind, Turns, parse
from .pictures import check_picture
from .prompting import Prompt
from .rejections import Counts, Rejected
from .selection import Part, Selection
from .sources import AnnotatedImage
from .teacher import Teacher


Failures = dict[str, Rejected]  # by the request's key


@dataclass(frozen=True)
class Task:
    """One row to be written."""

    image: AnnotatedImage
    kind: Kind

    @property
    def id(self) -> str:
        return f"{self.image.id}_{self.kind}"


@dataclass(frozen=True)
class Plan:
    """What decides the requests.

    Args:
        prompts: of each kind to be written.
        fields: of every request beside its messages: `model`, `max_completion_tokens`, ...
        attempts: answers to one request, until one can be used.
        check_pictures: looks at the header of every picture; False where nobody knows where they are.
    """

    prompts: Mapping[Kind, Prompt]
    fields: Mapping[str, Any]
    selection: Selection = field(default_factory=Selection)
    part: Part = field(default_factory=Part)
    seed: int = 0
    attempts: int = 3
    check_pictures: bool = True

    def tasks(self, images: Iterable[AnnotatedImage], counts: Counts) -> Iterator[Task]:
        """In the order of the images; what cannot be asked about is counted."""
        for image in islice(images, self.selection.first):
            if not self.part.has(image.id):
                continue
            found: list[Task] = []
            for kind, prompt in self.prompts.items():
                if not self.selection.takes(kind, image.id):
                    continue
                try:
                    prompt.context(image)
                    if not found and self.check_pictures:
                        check_picture(image.image)
                except Rejected as rejection:
                    counts.reject(f"{image.id}_{kind}", rejection)
                    continue
                found.append(Task(image, kind))
                counts.keep()
            yield from found

    def request(self, task: Task) -> Request:
        prompt = self.prompts[task.kind]
        body = {**self.fields, "messages": prompt.messages(task.image)}
        if prompt.response_format is not None:
            body["response_format"] = prompt.response_format
        return Request(body, tag=task.id)

    def judge(self, row_id: str, reply: Reply) -> Turns:
        """The turns of an answer, or `Rejected`."""
        if reply.refusal:
            raise Rejected("refusal", f"the reply is a refusal: {reply.refusal[:80]!r}.")
        image_id, _, kind = row_id.rpartition("_")
        prompt = next(prompt for name, prompt in self.prompts.items() if name == kind)
        question = prompt.question(image_id, self.seed)
        return parse(prompt.kind, reply.text, reply.finish_reason or None, prompt.form, question)


async def ask(
    teacher: Teacher, plan: Plan, tasks: Iterable[Task], failures: Failures, total: int | None = None
) -> None:
    """Has every task answered and stored, again where the answer cannot be used.

    Raises RunStopped like `Teacher.ask`. Requests that failed for good are in `failures` then too.
    """
    async for request, reply in teacher.ask(map(plan.request, tasks), total):
        if reply.error:
            failures[reply.key] = Rejected(f"failed-{reply.error.replace('_', '-')}", reply.detail)
            continue
        try:
            plan.judge(request.tag, reply)
        except Rejected:  # counted where the data set is written
            teacher.progress.rejected += 1
            if request.sample + 1 < plan.attempts:
                teacher.again(replace(request, sample=request.sample + 1))


@dataclass(frozen=True)
class Outcome:
    """What a task came to: `turns`, or the `rejection` of its last answer. `rejected`: each refused answer."""

    task: Task
    turns: Turns = field(default_factory=list)
    key: str = ""
    reply: Reply | None = None
    rejection: Rejected | None = None
    rejected: tuple[tuple[Rejected, Reply], ...] = ()


def outcomes(
    plan: Plan,
    tasks: Iterable[Task],
    find: Callable[[str, Sequence[str]], list[bytes | None]],
    host: str,
    failures: Failures | None = None,
) -> Iterator[Outcome]:
    """What the ledger has for each task, judged, in the order of the tasks; asks nobody.

    Args:
        find: the stored answers for an image id and keys.
        host: who answers, as in `Teacher.host`.
    """
    for task in tasks:
        request = plan.request(task)
        payload = request.payload()
        keys = [replace(request, sample=sample).key(host, payload) for sample in range(plan.attempts)]
        rejected: list[tuple[Rejected, Reply]] = []
        for key, raw in zip(keys, find(task.image.id, keys), strict=True):
            if raw is None:
                continue
            reply = read_reply(key, raw, cached=True)
            try:
                yield Outcome(task, plan.judge(task.id, reply), key, reply, rejected=tuple(rejected))
                break
            except Rejected as rejection:
                rejected.append((rejection, reply))
        else:
            missing = Rejected("no-answer", "the ledger has none. Run the same command again to ask for it.")
            failed = next((failures[key] for key in keys if failures and key in failures), missing)
            last = rejected[-1][0] if rejected else failed
            yield Outcome(task, rejection=last, rejected=tuple(rejected))


def unanswered(
    plan: Plan,
    tasks: Iterable[Task],
    find: Callable[[str, Sequence[str]], list[bytes | None]],
    host: str,
    attempt: int | None = None,
) -> Iterator[Request]:
    """The next request of each task that has no answer that can be used, for transports that cannot ask at once.

    Args:
        attempt: only requests that are this attempt, counted from 0; None for all.
    """
    for outcome in outcomes(plan, tasks, find, host):
        sample = len(outcome.rejected)
        if not outcome.turns and sample < plan.attempts and attempt in (None, sample):
            yield replace(plan.request(outcome.task), sample=sample)
