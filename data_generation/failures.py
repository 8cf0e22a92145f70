"""What a failed request means: end the run, let everybody wait, try this one again, or give it up."""

import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Literal

import httpx2
import openai

from data_generation.exchange import web_page
from data_generation.reply_size import ReplyTooLong


# By HTTP status. Other 4xx reject the one request; other 5xx are worth another try.
STOP = {401: "unauthorized", 402: "payment", 403: "forbidden", 404: "not_found"}
RETRY = {408, 409, 425}
MAYBE_BILLED = {408, 502, 504}  # a proxy gave up, the model behind it perhaps not
OUT_OF_MONEY = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}

ADVICE = {
    "unreachable": "Is its address right, and does it run?",
    "unauthorized": "The server does not accept the key. Is it in OPENAI_API_KEY, and is it for this server?",
    "payment": "The account cannot pay.",
    "forbidden": "The key may not do this.",
    "not_found": "Does the server have this model, and does its address end where `/chat/completions` begins?",
    "insufficient_quota": "The account's quota is used up.",
    "no_endpoint": "This is no OpenAI endpoint. Does its address end where `/chat/completions` begins, as "
    "http://localhost:8000/v1 does, and is no proxy in between?",
}


@dataclass(frozen=True)
class Failure:
    """`pause`: seconds the server asks for. `maybe_billed`: the model may have done the work all the same."""

    action: Literal["stop", "wait", "retry", "reject"]
    reason: str
    detail: str
    pause: float | None = None
    maybe_billed: bool = False


class RunStopped(ValueError):
    """Nothing more was sent, what was in flight has been waited for and stored. `reason` is a short word."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


def classify(error: Exception) -> Failure:
    """What to do after `error`, which came from one call of the SDK without retries of its own."""
    if isinstance(cause := _causes(error)[-1], ReplyTooLong):
        return Failure("retry", "too_long", str(cause), maybe_billed=True)
    if isinstance(error, openai.APIStatusError):
        return _by_status(error)
    if isinstance(error, TimeoutError | openai.APITimeoutError | openai.APIConnectionError):
        causes = list(_causes(error))
        # With aiohttp, a server that hangs up is a ConnectTimeout too.
        is_connecting = any(isinstance(cause, httpx2.ConnectTimeout) for cause in causes)
        if is_connecting and any(isinstance(cause, TimeoutError) for cause in causes[2:]):
            return Failure("retry", "unreachable", "no connection: nobody took it in time")
        if any(isinstance(cause, ConnectionRefusedError | socket.gaierror) for cause in causes):
            return Failure("retry", "unreachable", f"no connection: {_words(causes[-1])}")
        if isinstance(error, TimeoutError) or any("Timeout" in type(cause).__name__ for cause in causes[2:]):
            return Failure("retry", "timeout", "no answer before the deadline", maybe_billed=True)
        return Failure("retry", "connection", f"the connection broke: {_words(causes[-1])}", maybe_billed=True)
    return Failure("retry", "unusable", _words(error), maybe_billed=True)


def _by_status(error: openai.APIStatusError) -> Failure:
    status, code = error.status_code, error.code or error.type or ""
    detail = f"HTTP {status}: {web_page(str(error).encode()) or _words(error)}"
    if OUT_OF_MONEY & {error.code, error.type}:
        return Failure("stop", "insufficient_quota", detail)
    if status in STOP:
        return Failure("stop", STOP[status], detail)
    pause = retry_after(error.response.headers)
    if status == 429 or (status == 503 and pause is not None):
        return Failure("wait", "throttled", detail, pause=pause)
    if status in RETRY or status >= 500:
        return Failure("retry", f"http_{status}", detail, maybe_billed=status in MAYBE_BILLED)
    return Failure("reject", "content_filter" if "content_filter" in str(code) else f"http_{status}", detail)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds from `retry-after-ms` or `retry-after`, a number or a date; None if there is none above 0."""
    for name, per_second in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) / per_second
        except ValueError:
            try:
                seconds = parsedate_to_datetime(value).timestamp() - time.time()
            except ValueError:
                continue
        if 0 < seconds < float("inf"):
            return seconds
    return None


def _causes(error: BaseException) -> list[BaseException]:
    """`error` and what led to it, the first cause last."""
    found = [error]
    while (cause := found[-1].__cause__ or found[-1].__context__) is not None and cause not in found:
        found.append(cause)
    return found


def _words(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}…"


def scrub(text: str, secrets: tuple[str, ...]) -> str:
    """`text` without the keys, nor anything that looks like one: some servers quote the key they refuse."""
    for secret in secrets:
        text = text.replace(secret, "[key]")
    return re.sub(r"\b(sk|hf|gsk|xai|pplx)[-_][A-Za-z0-9*_-]{6,}", "[key]", text)


def scrub_bytes(raw: bytes, secrets: tuple[str, ...]) -> bytes:
    for secret in secrets:
        raw = raw.replace(secret.encode(), b"[key]")
    return raw
