"""`llava answer --backend openai`: any served model, asked through the teacher's client and its ledger."""

import argparse
import asyncio
import base64
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from data_generation.draining import drain_on_signals
from data_generation.exchange import Reply, Request
from data_generation.ledger import Ledger
from data_generation.server import host_of
from data_generation.teacher import Teacher
from recipes.generating.generate_flags import caps_of, pace_of
from recipes.generating.generate_run import OPENAI
from recipes.measuring.answer_journal import LEDGER, alone_at, begin, is_finished, journal_of, write_answers
from recipes.measuring.generation_flags import MAX_NEW_TOKENS, given_fields
from recipes.measuring.questions import Picture, Question, hash_of


# What the API calls the fields of GenerationConfig that it has.
FIELDS = {"max_new_tokens": "max_completion_tokens", "temperature": "temperature", "top_p": "top_p"}
FIELDS |= {"stop_strings": "stop"}
SENT_AS_THEY_ARE = {"JPEG": "jpeg", "PNG": "png", "WEBP": "webp", "GIF": "gif"}


def answer_served(
    args: argparse.Namespace,
    read: Callable[[], list[Question]],
    lines_of: Callable[[list[Question], dict[int, dict], dict], list[dict]],
) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("--backend openai asks many questions at once from one process. Start it without accelerate.")
    fields = fields_of(args)
    questions = read()
    host = host_of(args.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI)
    run = {"questions": hash_of(questions), "server": host, "generation": fields}
    with alone_at(args.out, is_main=True):
        if is_finished(args.out, run):
            print(f"{args.out}: its {len(questions):,} answers are there already")
            return
        started = time.monotonic()
        with Ledger(journal_of(args.out) / LEDGER) as ledger:
            begin(args.out, run, stored=ledger.count() > 0)
            replies, interrupted = asyncio.run(ask(args, ledger, questions, fields))
        if interrupted:
            print(f"{len(replies):,} of {len(questions):,} answers are stored; the same command goes on from here.")
            raise KeyboardInterrupt
        answers = {number: entry(reply) for number, reply in replies.items() if is_answer(reply)}
        if len(answers) < len(questions):
            raise ValueError(failures(questions, replies))
        write_answers(args.out, lines_of(questions, answers, run))
        print(summary(args.out, replies, answers, time.monotonic() - started))


def fields_of(args: argparse.Namespace) -> dict[str, Any]:
    """What every request says beside its messages; greedy unless told. A null in --extra takes a field out."""
    given = given_fields(args)
    is_sampling = given.pop("do_sample", given.get("temperature", 0) != 0)
    if odd := [name for name in given if name not in FIELDS]:
        raise ValueError(
            f"The OpenAI API has no `--{odd[0]}`, only {', '.join(f'`--{name}`' for name in FIELDS)}. Leave it out, "
            "or give the server's name for it in --extra."
        )
    fields: dict[str, Any] = {"model": args.model, "max_completion_tokens": MAX_NEW_TOKENS}
    fields |= {"seed": args.seed} if is_sampling else {"temperature": 0}
    fields |= {FIELDS[name]: value for name, value in given.items()}
    if reserved := {"messages", "model", "stream", "n"} & set(args.extra):
        raise ValueError(f"--extra may not hold {', '.join(sorted(reserved))}.")
    return {name: value for name, value in (fields | args.extra).items() if value is not None}


async def ask(
    args: argparse.Namespace, ledger: Ledger, questions: list[Question], fields: dict[str, Any]
) -> tuple[dict[int, Reply], bool]:
    """Replies by number of the question, and whether somebody interrupted."""
    replies: dict[int, Reply] = {}

    def requests() -> Iterator[Request]:
        for number, question in enumerate(questions):
            yield Request({**fields, "messages": messages_of(question)}, tag=str(number))

    async with Teacher(
        ledger, base_url=args.base_url, pace=pace_of(args), caps=caps_of(args), show_progress=True
    ) as teacher:
        with drain_on_signals(teacher):
            async for request, reply in teacher.ask(requests(), len(questions)):
                replies[int(request.tag)] = reply
        return replies, teacher.interrupted


def messages_of(question: Question) -> list[dict[str, Any]]:
    """As the API has them: a picture's place holds the picture, and a turn of words alone is a string."""
    pictures = iter(question.pictures)
    found = []
    for message in question.chat:
        parts: list[dict[str, Any]] = []
        for part in message["content"]:
            if part["type"] == "image":
                parts.append({"type": "image_url", "image_url": {"url": data_url(next(pictures))}})
            else:
                parts.append({"type": "text", "text": part["text"]})
        is_words = [part["type"] for part in parts] == ["text"]
        found.append({"role": message["role"], "content": parts[0]["text"] if is_words else parts})
    return found


def data_url(picture: Picture) -> str:
    """The file as it is where servers know its format, else as PNG; what is no complete picture is an error."""
    source = picture.encoded()
    upright = picture.opened()
    data = source["bytes"] if isinstance(source, dict) else None
    if data is None and os.path.isfile(picture.source):
        data = Path(picture.source).read_bytes()
    kind = None
    if data is not None:
        with Image.open(BytesIO(data)) as image:
            kind = SENT_AS_THEY_ARE.get(image.format or "")
    if data is None or kind is None:
        file = BytesIO()
        upright.save(file, "PNG")
        data, kind = file.getvalue(), "png"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def is_answer(reply: Reply) -> bool:
    """A server that withholds an answer has given one, an empty one; another failure is none."""
    return not reply.error or reply.error == "content_filter"


def entry(reply: Reply) -> dict[str, Any]:
    if reply.error or reply.refusal:
        return {"text": reply.refusal.strip(), "finish_reason": reply.error or "refusal"}
    return {"text": reply.text.strip(), "finish_reason": reply.finish_reason or "stop"}


def failures(questions: list[Question], replies: dict[int, Reply]) -> str:
    failed = {number: reply for number, reply in replies.items() if not is_answer(reply)}
    counts = Counter(reply.error for reply in failed.values())
    words = ", ".join(f"{count:,} x {reason}" for reason, count in counts.most_common())
    number, reply = next(iter(failed.items()))
    return (
        f"{len(failed):,} of {len(questions):,} questions have no answer ({words}). The first is `"
        f"{questions[number].id}`: {reply.detail.rstrip('.')}. The others are stored; the same command asks for these "
        "again."
    )


def summary(out: Path, replies: dict[int, Reply], answers: dict[int, dict], seconds: float) -> str:
    before = sum(reply.cached for reply in replies.values())
    reasons = Counter(one["finish_reason"] for one in answers.values())
    others = "".join(f", {n:,} {name}" for name, n in reasons.most_common() if name not in ("stop", "length"))
    there = f" ({before:,} were there)" if before else ""
    speed = f", {(len(answers) - before) / seconds:,.1f} answers/s" if len(answers) > before else ""
    return f"{out}: {len(answers):,} answers{there}, {reasons['length']:,} cut{others}, {seconds:,.1f} s{speed}"
