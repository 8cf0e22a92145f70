"""A run of `llava judge`: what is asked for, asking, and what is written of the replies."""

import asyncio
import json
import os
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from data_generation.draining import drain_on_signals
from data_generation.estimate import Estimate, dollars
from data_generation.exchange import Reply, Request, Usage
from data_generation.failures import RunStopped
from data_generation.judge_files import read_objects
from data_generation.judging import (
    JudgePlan,
    Outcome,
    Verdict,
    Wanted,
    ask,
    load_judge_prompt,
    load_reference_prompt,
    outcome,
    read_answer,
    read_verdict,
    reference_request,
    scored,
)
from data_generation.ledger import Ledger
from data_generation.pipeline import Failures
from data_generation.rejections import Counts
from data_generation.relative_score import LEVEL, ORDERS, RESAMPLES, Figures, Scored, relative_scores
from data_generation.replacing import write_atomically
from data_generation.server import host_of
from data_generation.sizes import Sizes
from data_generation.teacher import Teacher
from recipes.circumstances import written_with
from recipes.generating.generate_flags import caps_of, fields_of, pace_of, prices_of
from recipes.generating.generate_run import OPENAI, watched
from recipes.measuring.judge_inputs import Inputs
from recipes.measuring.judge_page import Sample, page
from recipes.measuring.judge_table import describe


LEDGER, REVIEWS, RESULTS, REPORT = "ledger.sqlite", "reviews.jsonl", "results.json", "report.html"
MADE_BY = "llava judge --make-reference"
PER_KIND = 2  # questions of a kind that the page shows


class Work:
    """What is wanted of the server."""

    read: Callable[[Reply], Any]

    def __init__(self, args: Namespace, inputs: Inputs):
        self.args, self.inputs = args, inputs
        self.fields = fields_of(args)
        self.host = args.server or host_of(args.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI)

    def requests(self) -> Iterator[Request]:
        raise NotImplementedError

    def finish(self, ledger: Ledger, failures: Failures) -> None:
        raise NotImplementedError


class MakeReference(Work):
    """A text-only teacher answers the questions from their context."""

    read = staticmethod(read_answer)

    def __init__(self, args: Namespace, inputs: Inputs):
        super().__init__(args, inputs)
        self.system = load_reference_prompt(args.prompts)
        self._check_place()

    def _check_place(self) -> None:
        """Reference answers that somebody else made are not written over."""
        path = self.args.make_reference
        if not path.exists():
            return
        _, first = next(read_objects(path))
        metadata = first.get("metadata")
        if not isinstance(metadata, dict) or metadata.get("made_by") != MADE_BY:
            raise ValueError(f"`{path}` is there, and not made by --make-reference. Name another file.")

    def requests(self) -> Iterator[Request]:
        return (reference_request(self.system, question, self.fields) for question in self.inputs.questions)

    def finish(self, ledger: Ledger, failures: Failures) -> None:
        args, counts, lines = self.args, Counts(), []
        for question, request in zip(self.inputs.questions, self.requests(), strict=True):
            found = outcome(request, read_answer, args.attempts, ledger.find, self.host, failures)
            if found.rejection is not None:
                counts.reject(question.id, found.rejection)
                continue
            counts.keep()
            metadata = {"made_by": MADE_BY, "server": self.host, "request_key": found.reply.key}
            line = {"question_id": question.id, "prompt": question.text, "text": found.value}
            line |= {"category": question.kind, "model_id": found.reply.model or args.model, "metadata": metadata}
            lines.append(json.dumps(line))
        print(counts)
        if counts.num_rejected and not (args.allow_missing and counts.kept):
            raise ValueError(
                f"{counts.num_rejected:,} of {len(self.inputs.questions):,} questions got no reference answer, for "
                "the reasons above. Raise --attempts, take another model, or write the others with --allow-missing."
            )
        write_atomically(args.make_reference, "\n".join(lines) + "\n")
        print(f"{args.make_reference}: {counts.kept:,} reference answers")


class Scores(Work):
    """A judge compares each candidate's answers with the reference's."""

    read = staticmethod(read_verdict)

    def __init__(self, args: Namespace, inputs: Inputs):
        super().__init__(args, inputs)
        orders = ORDERS if args.orders == "both" else ORDERS[:1]
        prompt = load_judge_prompt(args.prompts)
        self.plan = JudgePlan(prompt, self.fields, inputs.questions, inputs.candidates, orders, args.repeats)

    def requests(self) -> Iterator[Request]:
        return self.plan.requests()

    def finish(self, ledger: Ledger, failures: Failures) -> None:
        args, candidates = self.args, self.inputs.candidates
        usable: dict[str, list[Scored]] = {name: [] for name in candidates}
        lost: dict[str, list[tuple[str, str, int]]] = {name: [] for name in candidates}
        counts = {name: Counts() for name in candidates}
        again: Counter[str] = Counter()
        models: set[str] = set()
        reviews, samples = [], Samples(self)
        outcomes = self.plan.outcomes(ledger.find, self.host, args.attempts, failures)
        for wanted, found in watched(outcomes, "reading replies"):
            name = wanted.candidate
            again[name] += max(0, found.attempts - 1)
            models |= {found.reply.model} if found.reply is not None and found.reply.model else set()
            if found.value is None:
                counts[name].reject(f"{wanted.question.id} {wanted.order}", found.rejection)
                lost[name].append((wanted.question.id, wanted.question.kind, wanted.repeat))
            else:
                counts[name].keep()
                usable[name].append(scored(wanted, found.value))
            reviews.append(json.dumps(review(wanted, found)))
            samples.add(wanted, found)
        write_atomically(args.out / REVIEWS, "\n".join(reviews) + "\n")
        number = len(self.plan.orders)
        scores = {name: relative_scores(found, number, args.seed, lost[name]) for name, found in usable.items()}
        if not any(scores.values()):
            lines = "\n".join(f"{name}: {found}" for name, found in counts.items())
            raise ValueError(f"Nothing could be judged. {args.out / REVIEWS} has the reasons. {lines}")
        results = self.results(scores, counts, again, sorted(models), ledger)
        write_atomically(args.out / REPORT, page(results, counts, samples.found))
        write_atomically(args.out / RESULTS, json.dumps(results, indent=1) + "\n")
        print("\n".join(describe(results["candidates"])))
        for name, found in counts.items():
            if found.num_rejected:
                print(f"replies about {name}: {found}")
        print(f"Look at {args.out / REPORT}.")

    def results(
        self,
        scores: dict[str, dict[str, Figures]],
        counts: dict[str, Counts],
        again: Counter[str],
        models: list[str],
        ledger: Ledger,
    ) -> dict[str, Any]:
        """Every figure there is; docs/judge.md says what each means."""
        args, inputs, caps = self.args, self.inputs, caps_of(self.args)
        spent = ledger.spent
        return {
            "judge": {
                "model": args.model,
                "answered_as": models,
                "server": self.host,
                "prompt": self.plan.prompt.version,
                "temperature": self.fields.get("temperature"),
                "orders": list(self.plan.orders),
                "repeats": args.repeats,
                "attempts": args.attempts,
            },
            "questions": {
                "from": str(args.questions or args.data),
                "context": str(args.context or args.data),
                "reference": str(args.reference or args.data),
                "number": len(inputs.questions),
                "kinds": dict(inputs.kinds),
                "without_reference": inputs.without_reference,
            },
            "interval": {"level": LEVEL, "resamples": RESAMPLES, "seed": args.seed},
            "candidates": {
                name: {
                    "file": str(inputs.files[name]),
                    "missing": inputs.missing[name],
                    "replies": {
                        "usable": counts[name].kept,
                        "unusable": dict(sorted(counts[name].rejected.items())),
                        "asked_again": again[name],
                    },
                    "scores": {kind: asdict(figures) for kind, figures in found.items()},
                }
                for name, found in scores.items()
            },
            "spent": {
                "requests": spent.requests,
                "input_tokens": spent.input,
                "output_tokens": spent.output,
                "dollars": caps.cost(spent) if caps.prices or spent.cost else None,
            },
            "written_with": written_with(),
        }


def review(wanted: Wanted, found: Outcome[Verdict]) -> dict[str, Any]:
    """A line of the reviews."""
    one = None if found.value is None else scored(wanted, found.value)
    reply, rejection = found.reply, found.rejection
    return {
        "question_id": wanted.question.id,
        "kind": wanted.question.kind,
        "candidate": wanted.candidate,
        "repeat": wanted.repeat,
        "order": wanted.order,
        "reference_score": one and one.reference,
        "candidate_score": one and one.candidate,
        "reason": found.value.reason if found.value else "",
        "rejected": rejection.reason if rejection else "",
        "detail": rejection.detail if rejection else "",
        "judge": reply.model if reply else "",
        "attempts": found.attempts,
        "request_key": reply.key if reply else "",
    }


class Samples:
    """A few questions of each kind, with all that was said of them."""

    def __init__(self, work: Scores):
        self.found: dict[str, Sample] = {}
        self._candidates = work.inputs.candidates
        taken: Counter[str] = Counter()
        for question in work.inputs.questions:
            if taken[question.kind] < PER_KIND:
                taken[question.kind] += 1
                self.found[question.id] = Sample(question)

    def add(self, wanted: Wanted, found: Outcome[Verdict]) -> None:
        if wanted.question.id in self.found and wanted.repeat == 0:  # the others are in the reviews
            answer = self._candidates[wanted.candidate][wanted.question.id]
            self.found[wanted.question.id].add(wanted, answer, found)


def show_prompt(work: Work) -> None:
    request = next(work.requests())
    print({name: value for name, value in request.body.items() if name != "messages"}, "\n")
    for message in request.body["messages"]:
        print(f"--- {message['role']}\n{message['content']}\n")


def dry_run(work: Work, ledger: Ledger | None) -> None:
    args, found, sizes = work.args, Estimate(), Sizes()
    seen: set[str] = set()
    for request in work.requests():
        payload = request.payload()
        key = request.key(work.host, payload)
        if key in seen:
            continue
        seen.add(key)
        if ledger is not None and ledger.find([key]) != [None]:
            found.answered += 1
            continue
        usage = sizes.estimate(request.body, payload)
        found.requests["reply"] += 1
        found.input += usage.input
        found.output += usage.output
    prices = prices_of(args)
    hours = found.hours(args.rpm, args.tpm)
    lines = [f"requests: {found.requests.total():,}, and {found.answered:,} answered already, which cost nothing"]
    lines += [f"input tokens: {found.input:,}", f"output tokens: {found.output:,} at most"]
    lines.append(
        "money: give --price-input and --price-output, in dollars per million tokens"
        if prices is None
        else f"money: {dollars(prices.cost(Usage(found.input, found.output)))} at most"
    )
    lines.append(
        "hours: give --rpm or --tpm, the limits of your account" if hours is None else f"hours: {hours:,.1f} at least"
    )
    print("\n".join([*lines, "replies that cannot be used are asked for again, which is not in these figures"]))


def ask_all(work: Work, ledger: Ledger) -> Failures:
    failures: Failures = {}
    try:
        is_interrupted = asyncio.run(_ask(work, ledger, failures))
    except RunStopped as error:
        end = "" if str(error).endswith((".", "?")) else "."
        raise RunStopped(error.reason, f"{error}{end} {_what_now(ledger)}") from None
    if is_interrupted:
        print(_what_now(ledger))
        raise KeyboardInterrupt
    return failures


async def _ask(work: Work, ledger: Ledger, failures: Failures) -> bool:
    """True if somebody interrupted."""
    args = work.args
    total = sum(1 for _ in work.requests())
    async with Teacher(
        ledger, base_url=args.base_url, server=args.server, pace=pace_of(args), caps=caps_of(args), show_progress=True
    ) as teacher:
        with drain_on_signals(teacher):
            await ask(teacher, work.requests(), work.read, args.attempts, failures, total)
        return teacher.interrupted


def _what_now(ledger: Ledger) -> str:
    return f"{ledger.count():,} replies are stored, and the same command goes on from here."
