"""The connection to a server that speaks the OpenAI API."""

import os
import string
from urllib.parse import urlsplit

import httpx2
import openai

from data_generation.reply_size import bound_reply


CONNECT = 10.0  # seconds for a connection, which is three tries of TCP
VISIBLE = frozenset(string.ascii_letters + string.digits + string.punctuation)


def open_client(
    base_url: str | None, api_key: str | None, concurrency: int = 8, deadline: float = 300.0
) -> openai.AsyncOpenAI:
    """A client that leaves retries to us and has a connection for every request in flight.

    Without `api_key` the key is OPENAI_API_KEY; a server of one's own needs none.
    """
    limits = httpx2.Limits(max_connections=concurrency + 8, max_keepalive_connections=concurrency + 8)
    timeout = openai.Timeout(deadline, connect=min(CONNECT, deadline))
    hooks = {"response": [bound_reply]}
    try:
        http_client = openai.DefaultAioHttpClient(limits=limits, timeout=timeout, event_hooks=hooks)
    except RuntimeError:  # aiohttp is not installed: httpx2 does the same with more work for each request
        http_client = openai.DefaultAsyncHttpxClient(limits=limits, timeout=timeout, event_hooks=hooks)
    if api_key is None and not os.environ.get("OPENAI_API_KEY"):
        if base_url is None and not os.environ.get("OPENAI_BASE_URL"):
            raise ValueError("no key: put it in OPENAI_API_KEY, or name a server of your own with --base-url")
        api_key = "EMPTY"
    if "@" in urlsplit(base_url or os.environ.get("OPENAI_BASE_URL") or "").netloc:
        raise ValueError(
            "the server's address has a name or password in it, which cannot be sent beside a key. Put the key alone "
            "in OPENAI_API_KEY, and leave out what stands before the @"
        )
    check_key(api_key or os.environ["OPENAI_API_KEY"])
    return openai.AsyncOpenAI(
        api_key=api_key, base_url=base_url, timeout=timeout, max_retries=0, http_client=http_client
    )


def host_of(base_url: str) -> str:
    """The address without scheme and password: what a request's key calls the host."""
    parts = urlsplit(base_url)
    try:
        port = f":{parts.port}" if parts.port else ""
    except ValueError as error:
        raise ValueError(f"the server's address has an odd port: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        # Not quoted: there may be a password in it.
        raise ValueError("the server's address has to be like http://localhost:8000/v1, with http:// or https://")
    return f"{parts.hostname}{port}{parts.path}".rstrip("/")


def check_key(key: str) -> None:
    """What no header can hold is said here, without saying the key."""
    if not set(key) <= VISIBLE:
        raise ValueError(
            "the key has blanks, line breaks or letters beyond ASCII in it. Was more than the key copied into "
            "OPENAI_API_KEY?"
        )


def secrets_of(client: openai.AsyncOpenAI) -> tuple[str, ...]:
    """What must never be written down. Shorter ones, as EMPTY, are no secret and could be words of an answer."""
    return tuple(value for value in (client.api_key,) if len(value) >= 8)
