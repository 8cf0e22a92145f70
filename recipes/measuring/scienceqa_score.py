"""Scores a file of answers to ScienceQA: the table of the paper, and what became of every problem."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_generation.replacing import write_atomically
from data_generation.rows import check_out
from data_generation.scienceqa import LETTERS, Problem
from data_generation.scienceqa_scores import (
    Choice,
    check_ids,
    choices_of,
    count_right,
    format_table,
    read_predictions,
    some,
)
from recipes.measuring.scienceqa_problems import add_problem_flags, load_problems


LISTED = 10  # unreadable answers on the screen


def add_score(actions) -> None:
    parser = actions.add_parser("score", help="a file of answers to the paper's table")
    add_problem_flags(parser)
    parser.add_argument(
        "--predictions", type=Path, required=True, metavar="FILE", help="JSONL, or the original's JSON"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="JSON", help="every figure, and every problem")
    parser.add_argument("--allow-missing", action="store_true", help="score what is answered, and count the rest")
    parser.set_defaults(run=score)


def score(args: argparse.Namespace) -> None:
    read = (args.predictions, args.problems, args.split_file, args.data)
    check_out(args.out, *(Path(name) for name in read if name is not None))
    problems = load_problems(args)
    answers, problems, missing = read_answers(args.predictions, problems, args.allow_missing)
    chosen = choices_of(problems, answers)
    print(format_table([("correct %", count_right(problems, chosen))]))
    print("\n".join(describe(problems, chosen, answers, missing)))
    facts = {"split": args.split, "predictions": str(args.predictions), "missing": missing}
    write_json(args.out, facts | result_of(problems, chosen))
    print(f"{args.out}: every figure, and what became of each problem")


def read_answers(
    path: Path, problems: list[Problem], allow_missing: bool
) -> tuple[dict[str, str], list[Problem], list[str]]:
    """The answers of a file, the problems that it answers, and the ids of the others."""
    answers = read_predictions(path)
    missing = check_ids(answers, problems, allow_missing, str(path))
    return answers, [problem for problem in problems if problem.id in answers], missing


def forms_of(chosen: Mapping[str, Choice]) -> dict[str, int]:
    """How many answers have each form, the frequent ones first."""
    forms = [choice.form for choice in chosen.values()]
    return {form: forms.count(form) for form in sorted(set(forms), key=lambda form: (-forms.count(form), form))}


def unreadable(chosen: Mapping[str, Choice]) -> list[str]:
    return [name for name, choice in chosen.items() if choice.letter is None]


def describe(
    problems: list[Problem], chosen: Mapping[str, Choice], answers: Mapping[str, str], missing: list[str]
) -> list[str]:
    """What the table does not say."""
    lines = ["answers by form: " + ", ".join(f"{form} {number:,}" for form, number in forms_of(chosen).items())]
    lost = unreadable(chosen)
    lines.append(f"without an option, and counted wrong: {len(lost):,} of {len(problems):,}")
    for name in lost[:LISTED]:
        end = " ".join(answers[name].split())[-80:].encode(errors="backslashreplace").decode()
        lines.append(f"- `{name}`, {chosen[name].form}: ...{end!r}" if end else f"- `{name}`: no words")
    lines += ["- ..."] if len(lost) > LISTED else []
    if missing:
        lines.append(f"not answered, and left out: {len(missing):,}: {some(missing)}")
    return lines


def result_of(problems: list[Problem], chosen: Mapping[str, Choice]) -> dict[str, Any]:
    return {
        "scores": {name: tally.as_json() for name, tally in count_right(problems, chosen).items()},
        "forms": forms_of(chosen),
        "unreadable": unreadable(chosen),
        "problems": {
            problem.id: {
                "letter": chosen[problem.id].letter,
                "form": chosen[problem.id].form,
                "answer": LETTERS[problem.answer],
                "right": chosen[problem.id].letter == LETTERS[problem.answer],
            }
            for problem in problems
        },
    }


def write_json(path: Path, content: Any) -> None:
    write_atomically(path, json.dumps(content, indent=1) + "\n")
