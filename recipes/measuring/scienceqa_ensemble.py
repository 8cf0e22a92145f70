"""Joins our answers to ScienceQA with those of a model that reads the words alone, in the two ways of the paper."""

import argparse
import asyncio
import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from data_generation.draining import drain_on_signals
from data_generation.exchange import Request
from data_generation.failures import RunStopped
from data_generation.ledger import Ledger
from data_generation.replacing import write_atomically
from data_generation.scienceqa import Problem
from data_generation.scienceqa_ensemble import (
    Replies,
    ask_all,
    complemented,
    differing,
    either_right,
    first_request,
    judged,
    load_prompts,
    second_request,
)
from data_generation.scienceqa_scores import Choice, choices_of, count_right, format_table, some
from data_generation.teacher import Teacher
from recipes.generating.generate_flags import (
    add_limit_flags,
    caps_of,
    fields_of,
    json_object,
    not_negative,
    pace_of,
    positive,
)
from recipes.measuring.scienceqa_problems import add_problem_flags, load_problems
from recipes.measuring.scienceqa_score import forms_of, read_answers, result_of, unreadable, write_json


KEPT = "Nothing that was answered is lost: the same command goes on from here."


def add_ensemble(actions) -> None:
    parser = actions.add_parser("ensemble", help="join our answers with those of a text-only model")
    parser.add_argument("scheme", choices=("complement", "judge"), help="ours where it has none; or it decides")
    add_problem_flags(parser)
    parser.add_argument("--predictions", type=Path, required=True, metavar="FILE", help="our answers, as for `score`")
    parser.add_argument("--baseline", type=Path, metavar="FILE", help="the text model's answers, if there are any yet")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="answers, figures, and the ledger")
    parser.add_argument("--allow-missing", action="store_true", help="leave out problems that a file does not answer")
    model = parser.add_argument_group("the text-only model")
    model.add_argument("--model", help="its name at the server")
    model.add_argument("--base-url", metavar="URL", help="any server that speaks the OpenAI API (OpenAI's)")
    model.add_argument("--server", metavar="NAME", help="name for the server where its address changes between runs")
    model.add_argument("--temperature", type=not_negative, default=0.0, help="(%(default)s)")
    model.add_argument("--max-output", type=positive, default=1024, help="tokens of an answer (%(default)s)")
    model.add_argument("--extra", type=json_object, default={}, metavar="JSON", help="more fields of every request")
    model.add_argument(
        "--prompts", type=Path, metavar="DIR", help="your own copy of data_generation/prompts/scienceqa"
    )
    add_limit_flags(parser.add_argument_group("how fast, and for how much"))
    parser.set_defaults(run=ensemble, service_tier=None, num_shards=1, workers=None)


def ensemble(args: argparse.Namespace) -> None:
    asks = args.baseline is None or args.scheme == "judge"
    if asks and not args.model:
        raise ValueError(
            "--model has to name the text-only model to ask. Only `complement` with --baseline asks none."
        )
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out `{args.out}` is a file. Name a folder.")
    whole = load_problems(args)
    ours_text, problems, missing = read_answers(args.predictions, whole, args.allow_missing)
    prompts = load_prompts(args.prompts)
    with ExitStack() as stack:
        ledger = stack.enter_context(Ledger(args.out / "ledger.sqlite")) if asks else None
        if args.baseline is not None:
            theirs_text, answered, _ = read_answers(args.baseline, whole, args.allow_missing)
            problems = [problem for problem in answered if problem.id in ours_text]
            missing = [problem.id for problem in whole if problem.id not in ours_text or problem.id not in theirs_text]
            if not problems:
                raise ValueError(f"`{args.predictions}` and `{args.baseline}` answer no problem together.")
        else:
            requests = [first_request(problem, prompts, fields_of(args)) for problem in problems]
            theirs_text = ask(args, ledger, requests, "baseline", prompts.version)
        ours, theirs = choices_of(problems, ours_text), choices_of(problems, theirs_text)
        apart = differing(problems, ours, theirs)
        second: dict[str, Choice] = {}
        if args.scheme == "judge":
            requests = [
                second_request(one, ours_text[one.id], theirs_text[one.id], prompts, fields_of(args)) for one in apart
            ]
            second = choices_of(apart, ask(args, ledger, requests, "second", prompts.version))
            final = judged(ours, theirs, second)
        else:
            final = complemented(ours, theirs)
    tell(args, problems, {"ours": ours, "text-only": theirs, args.scheme: final}, apart, second, missing)
    write_answers(args, problems, ours, theirs, second, final)


def ask(args: argparse.Namespace, ledger: Ledger, requests: list[Request], name: str, version: str) -> dict[str, str]:
    """The words of every reply; they also become a file of answers."""
    replies = asyncio.run(ask_over_network(args, ledger, requests))
    if replies is None:
        print(KEPT)
        raise KeyboardInterrupt
    lines = (
        {
            "question_id": request.tag,
            "prompt": request.body["messages"][-1]["content"],
            "text": replies.texts[request.tag],
            "model_id": args.model,
            "metadata": {"prompt_version": version},
        }
        for request in requests
    )
    write_lines(args.out / f"{name}.jsonl", lines)
    for reason, number in replies.lost.most_common():
        example, detail = replies.examples[reason]
        print(f"{name}: {number:,} {reason}, the first is `{example}`: {detail}")
    return replies.texts


async def ask_over_network(args: argparse.Namespace, ledger: Ledger, requests: list[Request]) -> Replies | None:
    """None if somebody interrupted."""
    async with Teacher(
        ledger, base_url=args.base_url, server=args.server, pace=pace_of(args), caps=caps_of(args), show_progress=True
    ) as teacher:
        with drain_on_signals(teacher):
            try:
                replies = await ask_all(teacher, requests)
            except RunStopped as error:
                end = "" if str(error).endswith((".", "?")) else "."
                raise RunStopped(error.reason, f"{error}{end} {KEPT}") from None
        return None if teacher.interrupted else replies


def tell(
    args: argparse.Namespace,
    problems: list[Problem],
    answers: dict[str, dict[str, Choice]],
    apart: list[Problem],
    second: Mapping[str, Choice],
    missing: list[str],
) -> None:
    ours, theirs, final = answers.values()
    bound = either_right(problems, ours, theirs)
    print(format_table([(name, count_right(problems, chosen)) for name, chosen in answers.items()]))
    print(f"upper bound, one of the two is right: {bound.accuracy:.2f} % ({bound.right:,} of {bound.problems:,})")
    print("without an option: " + ", ".join(f"{name} {len(unreadable(one)):,}" for name, one in answers.items()))
    print(f"the two differ on {len(apart):,}", end="")
    print(f"; asked again, it named an option for {len(second) - len(unreadable(second)):,}" if second else "")
    if missing:
        print(f"not answered, and left out: {len(missing):,}: {some(missing)}")
    result = {
        "scheme": args.scheme,
        "split": args.split,
        "predictions": str(args.predictions),
        "baseline": None if args.baseline is None else str(args.baseline),
        "model": args.model,
        "missing": missing,
        "differ": [problem.id for problem in apart],
        "second": {"asked": len(second), "forms": forms_of(second)},
        "upper_bound": bound.as_json(),
        "answers": {name: result_of(problems, chosen) for name, chosen in answers.items()},
    }
    write_json(args.out / f"{args.scheme}.json", result)


def write_answers(
    args: argparse.Namespace,
    problems: list[Problem],
    ours: Mapping[str, Choice],
    theirs: Mapping[str, Choice],
    second: Mapping[str, Choice],
    final: Mapping[str, Choice],
) -> None:
    """The joint answers, as `llava scienceqa score` reads them."""
    lines: list[dict[str, Any]] = []
    for problem in problems:
        again = second.get(problem.id)
        lines.append(
            {
                "question_id": problem.id,
                "text": final[problem.id].letter or "",
                "model_id": f"{args.scheme} of {args.predictions} and {args.model or args.baseline}",
                "metadata": {
                    "ours": ours[problem.id].letter,
                    "text_only": theirs[problem.id].letter,
                    "second": None if again is None else again.letter,
                },
            }
        )
    path = args.out / f"{args.scheme}.jsonl"
    write_lines(path, lines)
    print(f"{path}: the joint answers; {path.with_suffix('.json')}: every figure")


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    write_atomically(path, "".join(json.dumps(line) + "\n" for line in lines))
