"""A chat completion: what the server answers to a request's body, decided by its seed and by the body."""

import hashlib
import json
import random
from collections.abc import Iterator
from typing import Any

from ..words import split_words
from .judging import judge, parts_of
from .refusals import Unanswerable
from .writing import write_reply


MODEL = "microworld"
CREATED = 1767225600  # answers are the same whenever they are asked for
MOST_CHOICES = 16


def complete(body: Any, seed: int = 0) -> dict[str, Any]:
    """The body of a 200; `Unanswerable` for what gets another."""
    messages = read_messages(body)
    number = body.get("n") or 1
    if not isinstance(number, int) or not 1 <= number <= MOST_CHOICES:
        raise Unanswerable(f"`n` is {number!r}, wanted 1 to {MOST_CHOICES}.")
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise Unanswerable(f"A limit of {limit!r} tokens, wanted a number from 1 upward.")
    response_format = body.get("response_format")
    facts = [seed, body.get("seed"), messages, response_format]
    digest = hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()
    parts = parts_of(messages[-1]["content"])
    choices, written = [], 0
    for index in range(number):
        rng = random.Random(f"{digest} {index}")
        text = judge(parts) if parts else write_reply(messages, response_format, rng)
        text, count, finish_reason = cut(text, limit)
        written += count
        message = {"role": "assistant", "content": text, "refusal": None}
        choices.append({"index": index, "message": message, "logprobs": None, "finish_reason": finish_reason})
    read = sum(count_tokens(message["content"]) + 4 for message in messages) + 2
    return {
        "id": f"chatcmpl-{digest[:24]}",
        "object": "chat.completion",
        "created": CREATED,
        "model": MODEL,
        "choices": choices,
        "usage": {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


def chunks(completion: dict[str, Any], with_usage: bool) -> Iterator[dict[str, Any]]:
    """The same answer as a stream has it: some words at a time."""
    head = {name: completion[name] for name in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    for choice in completion["choices"]:
        text, index = choice["message"]["content"], choice["index"]
        yield head | {"choices": [_delta(index, {"role": "assistant", "content": ""})]}
        for start in range(0, len(text), 24):
            yield head | {"choices": [_delta(index, {"content": text[start : start + 24]})]}
        yield head | {"choices": [_delta(index, {}, choice["finish_reason"])]}
    if with_usage:
        yield head | {"choices": [], "usage": completion["usage"]}


def _delta(index: int, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": finish_reason}


def read_messages(body: Any) -> list[dict[str, str]]:
    """Roles and texts."""
    if not isinstance(body, dict):
        raise Unanswerable(f"The request is a {type(body).__name__}, wanted a JSON object.")
    if body.get("model") != MODEL:
        raise Unanswerable(f"There is no model {body.get('model')!r} here. Ask for `{MODEL}`.", 404, "model_not_found")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise Unanswerable("`messages` is no list of messages, each with `role` and `content`.")
    found = [{"role": str(message.get("role")), "content": _text(message.get("content"))} for message in messages]
    if found[-1]["role"] != "user":
        raise Unanswerable(f"The last message is of the role `{found[-1]['role']}`, wanted `user`.")
    return found


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
        raise Unanswerable("A message has content that is not text. This teacher reads text alone, no pictures.")
    return "\n".join(part["text"] for part in parts)


def count_tokens(text: str) -> int:
    """Words and marks: there is no tokenizer here."""
    return len(split_words(text))


def cut(text: str, limit: int | None) -> tuple[str, int, str]:
    """The text within the limit, its tokens, and why it ends."""
    count = count_tokens(text)
    if limit is None or count <= limit:
        return text, count, "stop"
    end = 0
    for word in split_words(text)[:limit]:
        end = text.index(word, end) + len(word)
    return text[:end], limit, "length"
