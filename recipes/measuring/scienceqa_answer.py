"""Has a checkpoint answer ScienceQA, in one pass or in two: first the reasons, then, from these, the letter.

Greedy, in batches. What is answered goes into a journal beside the file of answers, and the same command goes on from
there.
"""

import argparse
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_generation.replacing import replacing
from data_generation.rows import messages_of
from data_generation.scienceqa import INPUTS, LETTER_ONLY, Problem, write_turn
from recipes.generating.generate_flags import positive
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
    parser.add_argument("--max-new-tokens", type=positive, default=1024, help="of an answer (%(default)s)")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    parser.set_defaults(run=answer_problems)


def answer_problems(args: argparse.Namespace) -> None:
    if args.passes == 2 and args.letter_only:
        raise ValueError("--letter-only asks for no reasons, and --passes 2 begins with them. Leave out one.")
    if args.out.exists():
        raise ValueError(f"--out `{args.out}` is there already. Delete it, or name another file.")
    problems = load_problems(args, args.image_root)
    seen = next((problem for problem in problems if problem.image is not None), None)
    if seen is not None and args.data is None and args.image_root is None:
        raise ValueError(f"Problem `{seen.id}` has a picture. Say with --image-root where the pictures are.")
    questions = {problem.id: question_of(problem, args) for problem in problems}
    with closing(Journal(args.out, describe(args, questions))) as journal:
        left = [problem for problem in problems if problem.id not in journal.lines]
        left.sort(key=lambda problem: len(questions[problem.id]), reverse=True)  # alike lengths in a batch
        if journal.lines:
            print(f"{len(journal.lines):,} of {len(problems):,} are answered already")
        if left:
            for done in answered(args, left, questions):
                journal.add(done)
        with replacing(args.out) as file:
            for problem in problems:
                file.write((json.dumps(journal.lines[problem.id]) + "\n").encode())
        journal.path.unlink()
        print(f"{args.out}: {len(problems):,} answers")


def question_of(problem: Problem, args: argparse.Namespace) -> str:
    question = write_turn(problem, f"{args.format}-A")[0]
    return f"{question}\n{LETTER_ONLY}" if args.letter_only else question


def answered(
    args: argparse.Namespace, problems: list[Problem], questions: dict[str, str]
) -> Iterator[list[dict[str, Any]]]:
    """Lines of the file of answers, some batches at a time."""
    import torch
    from tqdm import tqdm

    from recipes.measuring.answer_local import load
    from recipes.measuring.answering import answer

    model, processor = load(args.model, args.dtype)
    model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    with tqdm(total=len(problems), desc="answering", unit="", disable=None) as bar:
        for first in range(0, len(problems), CHUNK * args.batch_size):
            some = problems[first : first + CHUNK * args.batch_size]
            chats = [messages_of([(questions[one.id], "")], int(one.image is not None))[:1] for one in some]
            pictures = [[] if one.image is None else [picture_of(one, args.image_root)] for one in some]
            said = answer(model, processor, chats, pictures, args.batch_size, args.max_new_tokens)
            passes = [[text] for text in said]
            if args.passes == 2:
                reasons = [reasons_of(text) for text in said]
                begun = [chat + [begin(text)] for chat, text in zip(chats, reasons, strict=True)]
                unfinished = Unfinished(processor)
                letters = answer(model, unfinished, begun, pictures, args.batch_size, LETTER_TOKENS)
                passes = [[text, letter] for text, letter in zip(said, letters, strict=True)]
                said = [join(text, letter) for text, letter in zip(reasons, letters, strict=True)]
            yield [
                {
                    "question_id": problem.id,
                    "prompt": ("<image>\n" if problem.image is not None else "") + questions[problem.id],
                    "text": text,
                    "model_id": args.model,
                    "metadata": {"format": args.format, "passes": texts},
                }
                for problem, text, texts in zip(some, said, passes, strict=True)
            ]
            bar.update(len(some))


def picture_of(problem: Problem, root: Path | None) -> Any:
    return problem.image if isinstance(problem.image, bytes) else str(Path(root or "", str(problem.image)))


# -- two passes --


def reasons_of(text: str) -> str:
    return REASONS_END.split(text)[0].strip()


def begin(reasons: str) -> dict[str, Any]:
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


# -- the journal --


def describe(args: argparse.Namespace, questions: dict[str, str]) -> dict[str, Any]:
    """What decides the answers."""
    weights = sorted(Path(args.model).glob("*.safetensors")) if Path(args.model).is_dir() else []
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in weights]
    return {
        "model": args.model,
        "weights": hashlib.blake2b(json.dumps(stats).encode(), digest_size=8).hexdigest(),
        "questions": hashlib.blake2b(json.dumps(questions).encode(), digest_size=8).hexdigest(),
        "image_root": str(args.image_root),
        "passes": args.passes,
        "max_new_tokens": args.max_new_tokens,
        "dtype": args.dtype,
    }


class Journal:
    """The lines that are answered, on disk as they come, behind one line that says of what run."""

    def __init__(self, out: Path, run: dict[str, Any]):
        self.path = out.with_name(f"{out.name}.journal")
        self.lines: dict[str, dict[str, Any]] = {}
        out.parent.mkdir(parents=True, exist_ok=True)
        self.file = self.path.open("ab")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel takes it back from a killed run
        except BlockingIOError as error:
            raise ValueError(
                f"Another run writes into `{self.path}`. Wait until it has ended, stop it, or give another --out."
            ) from error
        raw = self.path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]  # a kill may have cut the last line
        self.file.truncate(len(whole))
        if not whole:
            self._write(json.dumps(run) + "\n")
            return
        try:
            before, *lines = [json.loads(line) for line in whole.splitlines()]
            self.lines = {line["question_id"]: line for line in lines}
            differ = [name for name, value in run.items() if before.get(name) != value]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"`{self.path}` is no journal of answers. Delete it, or name another --out.") from error
        if differ:
            raise ValueError(
                f"`{self.path}` holds answers of another run: {', '.join(differ)} differ. Delete it to begin anew, or "
                "name another --out."
            )

    def close(self) -> None:
        self.file.close()

    def add(self, lines: list[dict[str, Any]]) -> None:
        self._write("".join(json.dumps(line) + "\n" for line in lines))
        self.lines |= {line["question_id"]: line for line in lines}

    def _write(self, text: str) -> None:
        self.file.write(text.encode())
        self.file.flush()
        os.fsync(self.file.fileno())
