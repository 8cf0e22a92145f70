"""Has a checkpoint answer ScienceQA, in one pass or in two: first the reasons, then, from these, the letter.

Greedy, in batches, with the journal of `llava answer`: the same command goes on after a kill.
"""

import argparse
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data_generation.rows import messages_of
from data_generation.scienceqa import INPUTS, LETTER_ONLY, Problem, write_turn
from recipes.circumstances import PACKAGE
from recipes.generating.generate_flags import positive
from recipes.measuring.answer_journal import (
    Part,
    alone_at,
    begin,
    delete_journal,
    is_finished,
    read_journal,
    write_answers,
)
from recipes.measuring.scienceqa_problems import add_problem_flags, load_problems


CHUNK = 8  # batches between two entries in the journal
LETTER_TOKENS = 64  # of the second pass, as in the original
# Where reasons end: what `QCM-LEPA` is trained to write behind them, or the sentence of the other formats.
REASONS_END = re.compile(r"###|\bThe answer is [A-Z]\b")
MARK = "###\nANSWER:"  # as in the answers of `QCM-LEPA`


def add_answer(actions) -> None:
    parser = actions.add_parser("answer", help="answers of a checkpoint")
    add_problem_flags(parser)
    parser.add_argument("--model", required=True, metavar="DIR", help="checkpoint, or Hub id of one")
    parser.add_argument("--out", type=Path, required=True, metavar="JSONL", help="answers to write")
    parser.add_argument("--image-root", type=Path, help="folder of the pictures that go with problems.json")
    parser.add_argument("--format", choices=INPUTS, default="QCM", help="what is shown, by letters (%(default)s)")
    parser.add_argument("--letter-only", action="store_true", help="add the sentence that asks for the letter alone")
    parser.add_argument("--passes", type=int, choices=(1, 2), default=1, help="2: reasons, then letter (%(default)s)")
    parser.add_argument("--batch-size", type=positive, default=16, help="(%(default)s)")
    parser.add_argument(
        "--max_new_tokens", "--max-new-tokens", type=positive, default=1024, help="of an answer (%(default)s)"
    )
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    parser.set_defaults(run=answer_problems)


def answer_problems(args: argparse.Namespace) -> None:
    if args.passes == 2 and args.letter_only:
        raise ValueError("--letter-only asks for no reasons, and --passes 2 begins with them. Leave out one.")
    problems = load_problems(args, args.image_root)
    seen = next((problem for problem in problems if problem.image is not None), None)
    if seen is not None and args.data is None and args.image_root is None:
        raise ValueError(f"Problem `{seen.id}` has a picture. Say with --image-root where the pictures are.")
    questions = [question_of(problem, args) for problem in problems]
    with alone_at(args.out, is_main=True):
        write_missing(args, problems, questions)
    delete_journal(args.out)


def write_missing(args: argparse.Namespace, problems: list[Problem], questions: list[str]) -> None:
    from recipes.measuring.answer_local import fingerprint, load

    model, processor = load(args.model, args.dtype)
    asked = [(problem.id, question) for problem, question in zip(problems, questions, strict=True)]
    run = {
        "questions": hashlib.blake2b(json.dumps(asked).encode(), digest_size=8).hexdigest(),
        "checkpoint": fingerprint(args.model, model),
        "image_root": str(args.image_root),
        "format": args.format,
        "num_passes": args.passes,
        "max_new_tokens": args.max_new_tokens,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    if is_finished(args.out, run):
        print(f"{args.out}: its {len(problems):,} answers are there already")
        return
    done = read_journal(args.out)
    begin(args.out, run, stored=bool(done))
    if done:
        print(f"{len(done):,} of {len(problems):,} are answered already")
    left = [number for number in range(len(problems)) if number not in done]
    left.sort(key=lambda number: len(questions[number]), reverse=True)  # alike lengths in a batch
    with closing(Part(args.out, 0)) as journal:
        for entries in answered(args, model, processor, problems, questions, left):
            journal.add(entries)
    done = read_journal(args.out)
    facts = run | {"version": version(PACKAGE)}
    write_answers(
        args.out,
        (
            {
                "question_id": problem.id,
                "prompt": ("<image>\n" if problem.image is not None else "") + question,
                "text": done[number]["text"],
                "model_id": args.model,
                "metadata": facts | {"passes": done[number]["passes"]},
            }
            for number, (problem, question) in enumerate(zip(problems, questions, strict=True))
        ),
    )
    print(f"{args.out}: {len(problems):,} answers")


def question_of(problem: Problem, args: argparse.Namespace) -> str:
    question = write_turn(problem, f"{args.format}-A")[0]
    return f"{question}\n{LETTER_ONLY}" if args.letter_only else question


def answered(
    args: argparse.Namespace, model, processor, problems: list[Problem], questions: list[str], left: list[int]
) -> Iterator[list[dict[str, Any]]]:
    """Entries of the journal, some batches at a time."""
    import torch
    from tqdm import tqdm

    from recipes.measuring.answering import answer

    model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    with tqdm(total=len(left), desc="answering", unit="", disable=None) as bar:
        for first in range(0, len(left), CHUNK * args.batch_size):
            numbers = left[first : first + CHUNK * args.batch_size]
            some = [problems[number] for number in numbers]
            chats = [
                messages_of([(questions[number], "")], int(one.image is not None))[:1]
                for number, one in zip(numbers, some, strict=True)
            ]
            pictures = [[] if one.image is None else [picture_of(one, args.image_root)] for one in some]
            said = answer(model, processor, chats, pictures, args.batch_size, args.max_new_tokens)
            passes = [[text] for text in said]
            if args.passes == 2:
                reasons = [reasons_of(text) for text in said]
                begun = [chat + [unfinished(text)] for chat, text in zip(chats, reasons, strict=True)]
                letters = answer(model, Unfinished(processor), begun, pictures, args.batch_size, LETTER_TOKENS)
                passes = [[text, letter] for text, letter in zip(said, letters, strict=True)]
                said = [join(text, letter) for text, letter in zip(reasons, letters, strict=True)]
            yield [
                {"number": number, "text": text, "passes": texts}
                for number, text, texts in zip(numbers, said, passes, strict=True)
            ]
            bar.update(len(some))


def picture_of(problem: Problem, root: Path | None) -> Any:
    return problem.image if isinstance(problem.image, bytes) else str(Path(root or "", str(problem.image)))


# -- two passes --


def reasons_of(text: str) -> str:
    return REASONS_END.split(text)[0].strip()


def unfinished(reasons: str) -> dict[str, Any]:
    """The answer that the second pass is to finish."""
    text = f"{reasons}\n{MARK}" if reasons else MARK
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def join(reasons: str, letter: str) -> str:
    """One answer of both passes. Of the second the first line counts: what follows is no letter."""
    return f"{reasons}\nThe answer is {letter.strip().partition(chr(10))[0]}".strip()


class Unfinished:
    """A processor whose conversations stop in the middle of the last answer, for the model to go on."""

    def __init__(self, processor):
        self._processor = processor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def encode_text(self, messages: list[dict], name: str = "conversation"):
        text = messages[-1]["content"][0]["text"]
        longer = {"role": "assistant", "content": [{"type": "text", "text": f"{text} A"}]}
        encoded, other = (
            self._processor.encode_text(chat, name=name) for chat in (messages, [*messages[:-1], longer])
        )
        # What ends an answer is what stays the same behind other words.
        ends = [a == b for a, b in zip(reversed(encoded.input_ids), reversed(other.input_ids), strict=False)]
        num_behind = ends.index(False)
        ids = encoded.input_ids[: len(encoded.input_ids) - num_behind]
        if not self._processor.tokenizer.decode(ids).rstrip().endswith(MARK):
            raise ValueError(
                f"{name}: with this checkpoint's chat template and tokenizer an answer cannot be stopped behind "
                f"{MARK!r}, which the second pass goes on from. Answer in one pass."
            )
        return replace(encoded, input_ids=ids, labels=encoded.labels[: len(ids)])
