"""Answers through the Batch API: half the price, within a day, and never a batch twice.

    batches = BatchTeacher(ledger, folder, base_url=..., pace=BatchPace(enqueued_tokens=2_000_000))
    summary = await batches.fill(requests)                              # hours; can be killed and run again
    for request, reply in stored_replies(ledger, requests, batches.host): ...

The batches go on at the server while nobody waits: run `fill` again to collect them.
"""

import asyncio
import functools
import itertools
import logging
import uuid
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import openai

from data_generation import shards
from data_generation.batch_files import read_answers, read_requests, request_line, write_lines
from data_generation.batch_transfer import import_answers
from data_generation.budget import Caps
from data_generation.exchange import Request, Usage, web_page
from data_generation.failures import ADVICE, RunStopped, classify, scrub
from data_generation.ledger import Ledger, Spent
from data_generation.server import host_of, open_client, secrets_of
from data_generation.shards import Shard, Tally
from data_generation.sizes import Sizes, most_output


ENDED = ("completed", "expired", "cancelled")
UNDONE = ("batch_expired", "batch_cancelled")
CHUNK = 500  # requests looked up at a time
LOOKS = 3  # times to look for what may be there and not yet be visible

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchPace:
    """The API takes 50,000 requests and 200 MB a batch; tokens enqueued at a time depend on the account. `rounds`: how
    often requests are handed in again that a batch left undone when it expired."""

    requests: int = 50_000
    size: int = 190_000_000  # bytes
    enqueued_tokens: int | None = None
    poll: float = 60.0  # seconds
    window: str = "24h"
    rounds: int = 3


class BatchTeacher:
    """`caps.prices` are those of batches. `folder` holds the files until their answers are in the ledger."""

    def __init__(
        self,
        ledger: Ledger,
        folder: str | Path,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        server: str | None = None,
        pace: BatchPace | None = None,
        caps: Caps | None = None,
    ):
        self.ledger, self.folder = ledger, Path(folder)
        self.pace, self.caps = pace or BatchPace(), caps or Caps()
        self.client = open_client(base_url, api_key)  # never retries by itself: a lost answer would make two batches
        self.host = server or host_of(str(self.client.base_url))
        self.interrupted = False
        self._stopping = asyncio.Event()
        self._secrets = secrets_of(self.client)
        self._sizes = Sizes()
        self._not_before: dict[str, float] = {}  # shards that the server had no room for
        self._tally = Tally()
        self._unseen: dict[str, int] = {}  # how often a shard's file was not found

    async def __aenter__(self) -> "BatchTeacher":
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.client.close()

    def stop(self) -> None:
        """Ends `fill` after the step it is at. The batches go on at the server."""
        self._stopping.set()

    abort = stop

    async def fill(self, requests: Iterable[Request]) -> Tally:
        """Brings the answers to all requests into the ledger, as far as the server gives any."""
        self._stopping.clear()
        self._tally = summary = Tally()
        before = {shard.name for shard in shards.load(self.ledger) if shard.state == "deleted"}
        await self._build(requests, summary)
        while live := [shard for shard in shards.load(self.ledger) if shard.state != "deleted"]:
            moved = False
            for shard in live:
                if self._stopping.is_set():
                    break
                moved = await self._step(shard, live) or moved
            if not moved and not self._stopping.is_set():
                await self._sleep(self.pace.poll)
            if self._stopping.is_set():
                summary.is_complete = False
                break
        for shard in shards.load(self.ledger):
            if shard.name not in before:
                summary.answered += shard.answered
                for reason, (number, examples) in shard.failed.items():
                    summary.add(reason, number, examples)
        return summary

    # -- files of requests --

    async def _build(self, requests: Iterable[Request], summary: Tally) -> None:
        lines: list[bytes] = []
        kept: dict[str, Request] = {}
        size = 0
        source = iter(requests)
        while chunk := list(itertools.islice(source, CHUNK)):
            keys = [request.key(self.host) for request in chunk]
            known, tags = await self.ledger.get(keys), await shards.waiting(self.ledger, keys)
            for request, key, stored, tag in zip(chunk, keys, known, tags, strict=True):
                if stored is not None or tag is not None or key in kept:
                    summary.cached += stored is not None
                    continue
                line = request_line(request, key)
                lines.append(line)
                kept[key] = request
                size += len(line)
                if len(lines) >= self.pace.requests or size > self.pace.size:
                    await self._add_shard(lines, kept)
                    lines, kept, size = [], {}, 0
        if lines:
            await self._add_shard(lines, kept)

    async def _add_shard(self, lines: list[bytes], kept: dict[str, Request], old: Shard | None = None) -> None:
        tokens, worst_input, worst_output = 0, 0, 0
        for request in kept.values():
            if self.caps.need_worst_case and most_output(request.body) is None:
                raise ValueError("a cap on cost or tokens needs max_completion_tokens in every request")
            payload = request.payload()
            worst = self._sizes.worst(request.body, payload)
            tokens += self._sizes.estimate(request.body, payload).tokens
            worst_input, worst_output = worst_input + worst.input, worst_output + worst.output
        name = f"{len(shards.load(self.ledger)):05d}-{uuid.uuid4().hex[:8]}"
        sha256 = write_lines(lines, self.folder / f"{name}.jsonl")
        shard = Shard(name, sha256, len(lines), tokens, worst_input, worst_output)
        shard.round = 1 if old is None else old.round + 1
        await shards.save_new(self.ledger, shard, {key: request.tag for key, request in kept.items()}, old)

    # -- one step of one shard; True if it moved --

    async def _step(self, shard: Shard, live: list[Shard]) -> bool:
        steps: dict[str, Callable[[Shard, list[Shard]], Awaitable[bool]]] = {
            "built": self._upload,
            "uploaded": self._create,
            "created": self._poll,
            "done": self._import,
            "imported": self._delete,
        }
        was = shard.state
        moved = await steps[was](shard, live)
        if shard.state != was:
            log.info("batch %s: %s, %d requests", shard.name, shard.state, shard.count)
        return moved

    async def _upload(self, shard: Shard, live: list[Shard]) -> bool:
        name = f"{shard.name}.jsonl"
        if shard.tried == "upload":
            async for file in self.client.files.list(purpose="batch"):
                if file.filename == name and file.bytes == self._path(shard).stat().st_size:
                    return await self._moved(shard, "uploaded", input_file=file.id)
        await self._set(shard, tried="upload")
        content = (name, self._path(shard).read_bytes(), "application/jsonl")
        file = await self._call(lambda: self.client.files.create(file=content, purpose="batch"))
        return file is not None and await self._moved(shard, "uploaded", input_file=file.id)

    async def _create(self, shard: Shard, live: list[Shard]) -> bool:
        if self._not_before.get(shard.name, 0) > asyncio.get_running_loop().time() or not self._has_room(shard, live):
            return False
        if shard.tried == "create":
            # Sent once, answer unknown. It may show up late, so look more than once.
            for look in range(LOOKS):
                if look:
                    await self._sleep(self.pace.poll)
                if self._stopping.is_set():
                    return False
                async for batch in self.client.batches.list(limit=100):
                    if batch.input_file_id == shard.input_file and batch.status != "failed":
                        return await self._moved(shard, "created", batch=batch.id)
        await self._set(shard, tried="create")
        about = {"shard": shard.name, "sha256": shard.sha256}
        try:
            batch = await self._call(
                lambda: self.client.batches.create(
                    input_file_id=shard.input_file,
                    endpoint="/v1/chat/completions",
                    completion_window=self.pace.window,  # type: ignore[arg-type]
                    metadata=about,
                )
            )
        except RunStopped as stopped:
            # A file that was just uploaded is not visible everywhere at once.
            self._unseen[shard.name] = unseen = self._unseen.get(shard.name, 0) + 1
            if stopped.reason not in ("not_found", "http_400") or unseen > LOOKS:
                raise
            await self._sleep(self.pace.poll)
            return False
        return batch is not None and await self._moved(shard, "created", batch=batch.id)

    def _has_room(self, shard: Shard, live: list[Shard]) -> bool:
        """Whether the account and the budget can take it now. With nothing under way to wait for, the run ends."""
        running = [other for other in live if other.state in ("created", "done") and other is not shard]
        held = sum((other.worst(self._worst_cost(other)) for other in running), Spent())
        wanted = shard.worst(self._worst_cost(shard))
        if passed := self.caps.passed(self.ledger.spent + held + wanted):
            if not running:
                raise RunStopped("budget", f"{passed}: batch {shard.name} of {shard.count} requests is not handed in.")
            return False
        limit = self.pace.enqueued_tokens
        return limit is None or not running or sum(other.tokens for other in running) + shard.tokens <= limit

    def _worst_cost(self, shard: Shard) -> float | None:
        prices = self.caps.prices
        return None if prices is None else prices.worst(Usage(shard.worst_input, shard.worst_output))

    async def _poll(self, shard: Shard, live: list[Shard]) -> bool:
        batch = await self._call(lambda: self.client.batches.retrieve(shard.batch))
        if batch is None:
            return False
        if batch.status in ENDED:
            outputs = [name for name in (batch.output_file_id, batch.error_file_id) if name]
            return await self._moved(shard, "done", outputs=outputs, status=batch.status)
        if batch.status != "failed":
            return False
        errors = (batch.errors.data if batch.errors else None) or []
        if any(error.code == "token_limit_exceeded" for error in errors):
            log.info("batch %s: no room for its tokens now; handed in again later", shard.name)
            self._not_before[shard.name] = asyncio.get_running_loop().time() + self.pace.poll
            return await self._moved(shard, "uploaded", batch="")
        words = scrub("; ".join(f"{error.code}: {error.message}" for error in errors[:3]), self._secrets)
        raise RunStopped("batch_failed", f"{self.host} refused batch {shard.name} ({self._path(shard)}): {words}")

    async def _import(self, shard: Shard, live: list[Shard]) -> bool:
        """What was answered is in the ledger; what was left undone goes into a batch of its own."""
        paths = []
        for number, name in enumerate(shard.outputs):
            content = await self._call(functools.partial(self.client.files.content, name))
            if content is None:
                return False
            if page := web_page(content.content):  # its files are deleted once they are here, so not before that
                log.info("%s: sent %s for the file %s; trying again", self.host, page, name)
                await self._sleep(self.pace.poll)
                return False
            paths.append(self.folder / f"{shard.name}.{number}.answers.jsonl")
            write_lines([content.content], paths[-1])
        tally = await import_answers(self.ledger, paths, self.caps, self._secrets)
        undone: set[str] = set()
        if shard.round < self.pace.rounds:
            undone = {line.key for path in paths for line in read_answers(path) if line.error in UNDONE}
            for reason in UNDONE:
                tally.failed.pop(reason, None)
        self._tally.reasons |= {key: reason for key, reason in tally.reasons.items() if key not in undone}
        shard.state, shard.answered, shard.failed = "imported", tally.answered + tally.cached, tally.failed
        if undone:
            requests = {key: request for key, request in read_requests(self._path(shard)) if key in undone}
            tags = await shards.waiting(self.ledger, list(requests))
            kept = {key: replace(requests[key], tag=tag or "") for key, tag in zip(requests, tags, strict=True)}
            await self._add_shard([request_line(request, key) for key, request in kept.items()], kept, shard)
        else:
            await shards.save(self.ledger, shard)
        return True

    async def _delete(self, shard: Shard, live: list[Shard]) -> bool:
        for name in (shard.input_file, *shard.outputs):
            try:
                await self.client.files.delete(name)
            except openai.APIError as error:
                log.info("batch %s: file %s stays at the server: %s", shard.name, name, type(error).__name__)
        for path in (self._path(shard), *self.folder.glob(f"{shard.name}.*.answers.jsonl")):
            path.unlink(missing_ok=True)
        shard.state = "deleted"
        await shards.release(self.ledger, shard)
        return True

    # -- small things --

    def _path(self, shard: Shard) -> Path:
        return self.folder / f"{shard.name}.jsonl"

    async def _moved(self, shard: Shard, state: str, **fields: Any) -> bool:
        await self._set(shard, state=state, tried="", **fields)
        return True

    async def _set(self, shard: Shard, **fields: Any) -> None:
        for name, value in fields.items():
            setattr(shard, name, value)
        await shards.save(self.ledger, shard)

    async def _call(self, send: Callable[[], Awaitable[Any]]) -> Any:
        """None where it is worth another step later, after a wait. Ends the run where it is not."""
        try:
            found = await send()
            if isinstance(found, str):  # what the SDK makes of anything but JSON
                page = web_page(found.encode()) or f"{found[:80]!r}"
                raise RunStopped("no_endpoint", f"{self.host}: it sent {page}. {ADVICE['no_endpoint']}")
            return found
        except openai.OpenAIError as error:
            failure = classify(error)
            detail = scrub(failure.detail, self._secrets)
            if failure.action in ("stop", "reject"):
                raise RunStopped(
                    failure.reason, f"{self.host}: {detail}. {ADVICE.get(failure.reason, '')}".strip()
                ) from None
            log.info("%s: %s; trying again", self.host, detail)
            await self._sleep(failure.pause or self.pace.poll)
            return None

    async def _sleep(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return
