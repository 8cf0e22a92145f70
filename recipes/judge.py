"""The paper's relative score: a judge that reads captions and boxes compares answers with a reference's.

    llava judge --questions qa90_questions.jsonl --context caps_boxes_coco2014_val_80.jsonl \
        --reference qa90_gpt4_answer.jsonl --answers llava-7b.jsonl llava-13b.jsonl --model gpt-4o --out runs/judge
    llava judge --data data/held-out --context scenes.jsonl --answers answers.jsonl --model m \
        --base-url http://localhost:8000/v1 --out runs/judge
    llava judge --summarize reviews/*.jsonl

Every reply is stored before anything is done with it: the same command again asks for what is missing only. The key
is OPENAI_API_KEY. See docs/judge.md.
"""

import argparse
import logging
from contextlib import ExitStack
from pathlib import Path

from data_generation.judging import MOST_ATTEMPTS
from data_generation.ledger import Ledger
from recipes.generate import look_at
from recipes.generating.generate_flags import add_limit_flags, json_object, not_negative, positive
from recipes.measuring.judge_inputs import gather
from recipes.measuring.judge_run import LEDGER, MakeReference, Scores, ask_all, dry_run, show_prompt
from recipes.measuring.judge_summary import summarize


ORDERS = ("both", "one")


def parser() -> argparse.ArgumentParser:
    description = "Have a judge compare answers with a reference's: the relative score. See docs/judge.md."
    parser = argparse.ArgumentParser(prog="llava judge", description=description, allow_abbrev=False)
    what = parser.add_argument_group("what is judged")
    what.add_argument("--questions", type=Path, metavar="JSONL", help="question_id, image, text, category")
    what.add_argument("--data", type=Path, help="or a data set of ours; its answers are the reference")
    what.add_argument("--context", type=Path, metavar="JSONL", help="image, captions, instances or boxes")
    what.add_argument("--reference", type=Path, metavar="JSONL", help="answers to compare with: question_id, text")
    what.add_argument("--answers", type=Path, nargs="+", metavar="JSONL", help="of each candidate: question_id, text")
    what.add_argument("--allow-missing", action="store_true", help="score the rest where answers are missing")
    what.add_argument("--limit", type=positive, help="to try it: the first so many questions")
    what.add_argument("--out", type=Path, metavar="DIR", help="results, reviews, report and ledger")

    judge = parser.add_argument_group("who judges")
    judge.add_argument("--model", help="its name at the server")
    judge.add_argument("--base-url", metavar="URL", help="any server that speaks the OpenAI API (OpenAI's)")
    judge.add_argument("--server", metavar="NAME", help="name for the server where its address changes between runs")
    judge.add_argument("--orders", choices=ORDERS, default="both", help="one: the reference first (%(default)s)")
    judge.add_argument("--repeats", type=positive, default=1, help="how often all is judged (%(default)s)")
    judge.add_argument("--attempts", type=positive, default=3, help="replies until one can be used (%(default)s)")
    judge.add_argument("--temperature", type=not_negative, default=0.0, help="(%(default)s)")
    judge.add_argument("--max-output", type=positive, default=1024, help="tokens of a reply (%(default)s)")
    judge.add_argument("--service-tier", help="such as flex: half the price at OpenAI, and slower")
    judge.add_argument("--extra", type=json_object, default={}, metavar="JSON", help="more fields of every request")
    judge.add_argument("--prompts", type=Path, metavar="DIR", help="prompts of your own")
    add_limit_flags(parser.add_argument_group("how fast, and for how much"))
    parser.set_defaults(num_shards=1, workers=None)  # what the limits could be shared by

    other = parser.add_argument_group("other things to do")
    other.add_argument("--make-reference", type=Path, metavar="JSONL", help="have --model answer the questions")
    quiet = other.add_mutually_exclusive_group()
    quiet.add_argument("--show-prompt", action="store_true", help="print what would be sent first")
    quiet.add_argument("--dry-run", action="store_true", help="print requests, tokens, money and hours")
    quiet.add_argument("--summarize", type=Path, nargs="+", metavar="JSONL", help="the table of reviews, asks nobody")
    other.add_argument("--legacy-scores", action="store_true", help="--summarize as the original did it")
    other.add_argument("--seed", type=int, default=0, help="of the intervals' resampling (%(default)s)")
    return parser


def check_flags(args: argparse.Namespace) -> None:
    if args.legacy_scores and not args.summarize:
        raise ValueError("--legacy-scores goes with --summarize.")
    inputs = ("questions", "data", "context", "reference", "answers", "model", "out", "make_reference")
    given = [name for name in inputs if getattr(args, name) is not None]
    if args.summarize:
        if given:
            raise ValueError(f"--summarize reads reviews and asks nobody. Leave out {', '.join(map(flag, given))}.")
        return
    wanted = ["out", "model"] + (["answers"] if args.make_reference is None else [])
    if missing := [name for name in wanted if name not in given]:
        raise ValueError(f"{', '.join(map(flag, missing))} missing. `llava judge --help` says what they are.")
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out `{args.out}` is a file. Name a folder, new or of an earlier run.")
    if (args.questions is None) == (args.data is None):
        raise ValueError("Give --questions or --data, one of them.")
    if args.questions is not None and args.context is None:
        raise ValueError("--questions needs --context: a judge cannot see the pictures.")
    if args.make_reference is not None and (args.reference is not None or args.answers is not None):
        raise ValueError("--make-reference writes reference answers. Judge in a second run, with --reference.")
    if args.questions is not None and args.reference is None and args.make_reference is None:
        raise ValueError("--questions needs --reference, or first a run with --make-reference.")
    if args.attempts > MOST_ATTEMPTS:
        raise ValueError(f"--attempts {args.attempts}; wanted {MOST_ATTEMPTS} at most.")


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def judge(args: argparse.Namespace) -> None:
    check_flags(args)
    if args.summarize:
        return summarize(args.summarize, args.legacy_scores, args.seed)
    inputs = gather(args)
    work = MakeReference(args, inputs) if args.make_reference is not None else Scores(args, inputs)
    if args.show_prompt:
        return show_prompt(work)
    path = args.out / LEDGER
    with ExitStack() as stack:
        if args.dry_run:
            return dry_run(work, stack.enter_context(look_at(path, stack)) if path.is_file() else None)
        ledger = stack.enter_context(Ledger(path))
        work.finish(ledger, ask_all(work, ledger))


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("data_generation").setLevel(logging.INFO)
    judge(args)


if __name__ == "__main__":
    main()
