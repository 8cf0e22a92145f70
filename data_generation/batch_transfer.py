"""Requests out to a file and answers in from one: for the Batch API, and for vLLM's `run_batch` on one's own machines.

python -m vllm.entrypoints.openai.run_batch -i requests.jsonl -o answers.jsonl --model ...
"""

import asyncio
from collections.abc import Iterable, Iterator
from pathlib import Path

from data_generation.batch_files import Line, read_answers, request_line, write_lines
from data_generation.budget import Caps
from data_generation.exchange import Request, Usage, read_reply
from data_generation.failures import scrub, scrub_bytes
from data_generation.ledger import Attempt, Ledger
from data_generation.shards import Tally, waiting


GROUP = 500  # answers that share a commit


def export_requests(ledger: Ledger, requests: Iterable[Request], host: str, path: Path) -> tuple[int, int]:
    """Writes what the ledger has no answer for, each request once. How many were written, how many were answered.

    `host` names who will answer, as the model's name does for a server of one's own; it is part of every key.
    """
    written: set[str] = set()
    answered = 0

    def lines() -> Iterator[bytes]:
        nonlocal answered
        for request in requests:
            key = request.key(host)
            if ledger.find([key]) != [None]:
                answered += 1
            elif key not in written:
                written.add(key)
                yield request_line(request, key)

    write_lines(lines(), path)
    return len(written), answered


async def import_answers(
    ledger: Ledger, paths: Iterable[Path], caps: Caps | None = None, secrets: tuple[str, ...] = ()
) -> Tally:
    """Brings the answers of output files into the ledger. Doing it twice changes nothing."""
    tally = Tally()
    for path in paths:
        lines: list[Line] = []
        for line in read_answers(path):
            lines.append(line)
            if len(lines) == GROUP:
                await _store(ledger, lines, caps or Caps(), secrets, tally)
                lines = []
        await _store(ledger, lines, caps or Caps(), secrets, tally)
    return tally


async def _store(ledger: Ledger, lines: list[Line], caps: Caps, secrets: tuple[str, ...], tally: Tally) -> None:
    tags = await waiting(ledger, [line.key for line in lines])
    stored = []
    for line, tag in zip(lines, tags, strict=True):
        if line.error:
            tally.fail(line.error, line.key, scrub(line.detail, secrets), tag)
            continue
        raw = scrub_bytes(line.body, secrets)
        reply = read_reply(line.key, raw)
        usage = reply.usage or Usage()
        cost = caps.prices and caps.prices.cost(usage)
        if reply.error:
            tally.fail(reply.error, line.key, reply.detail, tag)
        else:
            tally.answered += 1
            tally.models[reply.model] += 1
        outcome = "unusable" if reply.error else "answer"
        stored.append(ledger.put(Attempt(line.key, outcome, usage, raw, tag or "", cost)))  # type: ignore[arg-type]
    known = (await asyncio.gather(*stored)).count(False)
    tally.answered, tally.cached = tally.answered - known, tally.cached + known
