"""Has a model answer questions about pictures, many at once: a checkpoint, or any model that is served.

    llava answer --model checkpoints/stage2 --data test.parquet --out answers.jsonl
    llava answer --model checkpoints/stage2 --questions questions.jsonl --image-root images --out answers.jsonl
    accelerate launch -m recipes.answer --model checkpoints/stage2 --data test.parquet --out answers.jsonl
    llava answer --backend openai --model gpt-4o-mini --questions questions.jsonl --out answers.jsonl

Started again after a kill, the same command goes on and asks nothing twice. See docs/evaluate.md.
"""

import argparse
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.circumstances import PACKAGE
from recipes.generating.generate_flags import add_limit_flags, json_object, positive


if TYPE_CHECKING:
    from recipes.measuring.questions import Question


def parser() -> argparse.ArgumentParser:
    from recipes.measuring.generation_flags import add_generation_flags

    parser = argparse.ArgumentParser(
        prog="llava answer",
        description="Have a model answer questions about pictures. See docs/evaluate.md.",
        allow_abbrev=False,
    )
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--data", help="conversations, of which every question is asked: files, a folder or a Hub id")
    asked.add_argument("--questions", type=Path, metavar="JSONL", help="question_id, text and image on each line")
    parser.add_argument("--image-root", metavar="DIR", help="folder that paths of pictures start from")
    parser.add_argument("--out", type=Path, required=True, metavar="JSONL", help="an answer for each question")
    parser.add_argument(
        "--model", required=True, help="folder of a checkpoint or adapter, Hub id, or a name at the server"
    )
    parser.add_argument("--batch-size", type=positive, default=16, help="questions at once (%(default)s)")
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "float16"],
        default="auto",
        help="auto: as the weights are stored",
    )
    parser.add_argument("--seed", type=int, default=0, help="of answers that are drawn (%(default)s)")

    served = parser.add_argument_group("a served model")
    served.add_argument("--backend", choices=("local", "openai"), default="local", help="(%(default)s)")
    served.add_argument("--base-url", metavar="URL", help="any server that speaks the OpenAI API (OpenAI's)")
    served.add_argument("--extra", type=json_object, default={}, metavar="JSON", help="more fields of every request")
    add_limit_flags(served)
    parser.set_defaults(num_shards=1, workers=None)
    add_generation_flags(parser)
    return parser


def answer(args: argparse.Namespace) -> None:
    if args.backend == "openai":
        from recipes.measuring.answer_served import answer_served

        return answer_served(args, lambda: read(args), lambda *found: lines_of(args.model, *found))
    if args.base_url or args.extra:
        raise ValueError("--base-url and --extra go with --backend openai. Add it, or leave them out.")
    from recipes.measuring.answer_local import answer_locally

    return answer_locally(args, lambda: read(args), lambda *found: lines_of(args.model, *found))


def read(args: argparse.Namespace) -> "list[Question]":
    from recipes.measuring.questions import read_data, read_questions

    return read_data(args.data, args.image_root) if args.data else read_questions(args.questions, args.image_root)


def lines_of(
    model: str, questions: "list[Question]", answers: dict[int, dict[str, Any]], run: dict[str, Any]
) -> list[dict[str, Any]]:
    """The output, in the order of the questions."""
    facts = run | {"version": version(PACKAGE)}
    return [
        {
            "question_id": question.id,
            "prompt": question.prompt,
            "text": answers[number]["text"],
            "model_id": model,
            "metadata": facts
            | {
                "images": [picture.name for picture in question.pictures],
                "finish_reason": answers[number]["finish_reason"],
            },
        }
        for number, question in enumerate(questions)
    ]


def main(argv: list[str] | None = None) -> None:
    from recipes.measuring.generation_flags import parse_all

    answer(parse_all(parser(), argv))


if __name__ == "__main__":
    main()
