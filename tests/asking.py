"""Short ways to ask the fake server, in this process or in one that can be killed."""

import argparse
import asyncio
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_generation.budget import Caps, Prices
from data_generation.draining import drain_on_signals
from data_generation.exchange import Reply, Request
from data_generation.failures import RunStopped
from data_generation.ledger import Ledger
from data_generation.limits import Pace
from data_generation.teacher import Teacher


KEY = "sk-test-0123456789abcdef"
SYSTEM = "You answer. " * 20


def question(number: int | str, **fields: Any) -> Request:
    text = number if isinstance(number, str) else f"q{number}"
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
    return Request({"model": "m", "messages": messages, "max_completion_tokens": 50, **fields}, tag=text)


def questions(count: int, **fields: Any) -> Iterable[Request]:
    return (question(number, **fields) for number in range(count))


def asked(request: Request) -> str:
    return request.body["messages"][-1]["content"]


def ask(
    url: str, path: Path, requests: Iterable[Request], pace: Pace | None = None, caps: Caps | None = None, **more: Any
) -> tuple[dict[str, Reply], RunStopped | None]:
    """Replies by question, and what stopped the run if anything did."""

    async def run() -> tuple[dict[str, Reply], RunStopped | None]:
        replies: dict[str, Reply] = {}
        with Ledger(path) as ledger:
            async with Teacher(
                ledger, base_url=url, api_key=KEY, pace=pace or Pace(concurrency=8), caps=caps, **more
            ) as teacher:
                try:
                    async for request, reply in teacher.ask(requests):
                        replies[asked(request)] = reply
                except RunStopped as stopped:
                    return replies, stopped
        return replies, None

    return asyncio.run(run())


async def client(url: str, path: str, count: int, concurrency: int, max_cost: float | None) -> dict[str, Any]:
    """What a process of its own does: asks, checks every answer, drains when told to."""
    found: dict[str, Any] = {"replies": 0, "wrong": 0, "cached": 0, "stopped": ""}
    caps = Caps() if max_cost is None else Caps(max_cost=max_cost, prices=Prices(1000.0, 1000.0))
    pace = Pace(concurrency=concurrency, deadline=20)
    with Ledger(path) as ledger:
        async with Teacher(ledger, base_url=url, api_key=KEY, pace=pace, caps=caps) as teacher:
            with drain_on_signals(teacher):
                try:
                    async for request, reply in teacher.ask(questions(count)):
                        found["replies"] += 1
                        found["cached"] += reply.cached
                        found["wrong"] += not reply.text.startswith(f"answer to {asked(request)}")
                except RunStopped as stopped:
                    found["stopped"] = stopped.reason
            return found | {"interrupted": teacher.interrupted, "asked": ledger.spent.requests}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("path")
    parser.add_argument("count", type=int)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--max-cost", type=float)
    arguments = parser.parse_args()
    result = asyncio.run(
        client(arguments.url, arguments.path, arguments.count, arguments.concurrency, arguments.max_cost)
    )
    sys.stdout.write(json.dumps(result))
