"""How long a reply may be: a server that never ends one is told from a model with much to say."""

import json
from collections.abc import AsyncIterator
from typing import cast

import httpx2

from data_generation.sizes import UNBOUNDED, most_output


LEAST = 4 << 20  # bytes; what a web page, an error or a short answer with all its fields may be
PER_TOKEN = 4096  # twenty alternatives of a token with their bytes, as `top_logprobs` gives them


class ReplyTooLong(Exception):
    """A body that went on beyond what the tokens asked for can take."""


class Bounded(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, most: int):
        self._stream, self._most = stream, most

    async def __aiter__(self) -> AsyncIterator[bytes]:
        read = 0
        async for chunk in self._stream:
            read += len(chunk)
            if read > self._most:
                raise ReplyTooLong(f"the reply has more than {self._most:,} bytes, which its tokens cannot take")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


async def bound_reply(response: httpx2.Response) -> None:
    """A hook of the client: before the body is read. Files of a batch may be as long as they are."""
    if response.request.url.path.endswith("/chat/completions"):
        most = LEAST + PER_TOKEN * (most_output(json.loads(response.request.content)) or UNBOUNDED)
        response.stream = Bounded(cast(httpx2.AsyncByteStream, response.stream), most)
