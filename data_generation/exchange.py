"""What goes to a teacher and what comes back: a request, its key, and a reply read from the server's bytes."""

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Usage:
    """Tokens of one attempt as the server counts them; `cached` and `written` are parts of `input`."""

    input: int = 0
    output: int = 0
    cached: int = 0
    written: int = 0

    @property
    def tokens(self) -> int:
        return self.input + self.output


@dataclass(frozen=True)
class Request:
    """One question to a server that speaks chat completions.

    `body` is the JSON that is sent, any field a server takes included. `sample` tells apart several answers wanted for
    one body. `tag` is stored beside the answer and is no part of the key.
    """

    body: dict[str, Any]
    sample: int = 0
    tag: str = ""

    def payload(self) -> bytes:
        # Sorted at the top only: below it the order can matter, as that of properties in a schema does. ASCII, because
        # half a surrogate pair in a caption has no UTF-8.
        return json.dumps({name: self.body[name] for name in sorted(self.body)}, separators=(",", ":")).encode()

    def key(self, host: str, payload: bytes | None = None) -> str:
        """32 hex digits of everything that decides the answer: the bytes sent, who answers, and which sample it is."""
        digest = hashlib.blake2b(self.payload() if payload is None else payload, digest_size=16)
        digest.update(f"\0{self.sample}\0{host}".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Reply:
    """An answer, or why there is none: then `error` is a short word, `detail` a line, and `text` is empty.

    `cached`: it was in the ledger, or another request with the same key had just been answered. Of the reasons to stop
    early only `length` (cut off) and `content_filter` are common to all servers.
    """

    key: str
    text: str = ""
    finish_reason: str = ""
    model: str = ""
    refusal: str = ""
    usage: Usage | None = None
    cached: bool = False
    error: str = ""
    detail: str = ""


def read_reply(key: str, raw: bytes, cached: bool = False) -> Reply:
    """Never raises: what cannot be used comes back with the error `unusable`, and with its usage if that is there."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        found = web_page(raw) or f"no JSON: {error}"
        return Reply(key, error="unusable", detail=f"the server's reply is {found}", cached=cached)
    if not isinstance(found, dict):
        return Reply(key, error="unusable", detail=f"the server's reply is a {type(found).__name__}", cached=cached)
    usage = _usage(found.get("usage"))
    choices = found.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    message = choice.get("message")
    if not isinstance(message, dict):
        detail = f"the server's reply has no choices: {str(found.get('error') or found)[:200]}"
        return Reply(key, error="unusable", detail=detail, usage=usage, cached=cached)
    return Reply(
        key,
        text=_text(message.get("content")),
        finish_reason=_text(choice.get("finish_reason")),
        model=_text(found.get("model")),
        refusal=_text(message.get("refusal")),
        usage=usage,
        cached=cached,
    )


def web_page(raw: bytes) -> str:
    """Words for a web page, as a proxy or a site sends it; empty for anything else."""
    text = raw[:20_000].decode(errors="replace")
    if not re.match(r"[\ufeff\s]*<(!doctype html|html|head|body)\b", text, re.IGNORECASE):
        return ""
    title = re.search(r"<title[^>]*>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
    return f"a web page, `{' '.join(title[1].split())[:80]}`" if title else "a web page"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _usage(found: Any) -> Usage | None:
    if not isinstance(found, dict):
        return None
    details = found.get("prompt_tokens_details")
    details = details if isinstance(details, dict) else {}
    usage = Usage(
        _count(found.get("prompt_tokens")),
        _count(found.get("completion_tokens")),
        _count(details.get("cached_tokens")),
        _count(details.get("cache_write_tokens")),
    )
    return usage if usage.tokens else None


def _count(value: Any) -> int:
    # A number beyond this is no count of tokens, and would spoil the totals.
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 10**9 else 0
