"""The teacher beside a bare SDK, against a local server with a fixed latency, alternating in one process.

    python -m benchmarks.generate_speed --out benchmarks/results
    python -m benchmarks.generate_speed --in-flight 256 --rounds 5
    python -m benchmarks.generate_speed --peers /tmp/distilabel/bin/python /tmp/curator/bin/python

The bare side is `asyncio.gather` over `client.chat.completions.create`, with the same HTTP client (aiohttp) and as
many tasks as requests in flight: no ledger, no limits, no retries. The `post` side is bare too and makes the SDK's
cheaper call that ours makes, `client.post` of ready bytes for bytes, which spares types on the way out and in: beside
it stands what the ledger and the limits cost. Ours commits every answer to a ledger on disk with `synchronous=FULL`
before it comes out. Counted is the steady state, from the first full wave of answers to the last, on both sides.
`--peers` are the pythons of environments with distilabel or curator (see `generate_peers.py`); they get the same
requests from the same server, in a process of their own, after the rounds. The server is a process of its own, in
Python, and shares the machine: where both cores are busy the CPU time for a request is the figure to trust.
"""

import argparse
import asyncio
import json
import logging
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.bars import draw_bars
from benchmarks.forward import circumstances
from data_generation.exchange import Request
from data_generation.ledger import Ledger
from data_generation.limits import Pace
from data_generation.server import open_client
from data_generation.teacher import Teacher
from tests.openai_server import FakeServer


SIDES = ("sdk", "post", "ours")
BARE = {"sdk": "the bare SDK's `create`", "post": "the bare SDK's `post` of bytes"}
GOAL = 0.9  # of the bare SDK's requests/s, at this many in flight
GOAL_AT = 256
SYSTEM = "Scenes are described by captions and boxes; you write what a person could ask about them. " * 44  # 4 KB


def body(number: int) -> dict[str, Any]:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"q{number}"}]
    return {"model": "m", "messages": messages, "max_completion_tokens": 600, "temperature": 0.7}


@dataclass
class Meter:
    """Wall and CPU time from answer number `first` to the last one."""

    first: int
    count: int = 0
    times: list[tuple[float, float]] = field(default_factory=list)

    def answered(self) -> None:
        self.count += 1
        if self.count >= self.first:
            now = time.perf_counter(), time.process_time()
            self.times[1:] = [now]  # the first one and the last one

    def figures(self) -> tuple[float, float]:
        (wall, cpu), (last_wall, last_cpu) = self.times
        answers = self.count - self.first
        return answers / (last_wall - wall), 1000 * (last_cpu - cpu) / answers


async def ask_sdk(url: str, count: int, in_flight: int, meter: Meter) -> None:
    async with open_client(url, "none", in_flight) as client:
        numbers = iter(range(count))

        async def ask_on() -> None:
            for number in numbers:
                reply = await client.chat.completions.create(**body(number))
                check(reply.choices[0].message.content, number)
                meter.answered()

        await asyncio.gather(*(ask_on() for _ in range(in_flight)))


async def ask_post(url: str, count: int, in_flight: int, meter: Meter) -> None:
    async with open_client(url, "none", in_flight) as client:
        numbers = iter(range(count))

        async def ask_on() -> None:
            for number in numbers:
                content = Request(body(number)).payload()
                reply = await client.post("/chat/completions", cast_to=httpx2.Response, content=content)
                check(json.loads(reply.content)["choices"][0]["message"]["content"], number)
                meter.answered()

        await asyncio.gather(*(ask_on() for _ in range(in_flight)))


async def ask_ours(url: str, count: int, in_flight: int, meter: Meter) -> None:
    with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder) / "ledger.sqlite") as ledger:
        async with Teacher(ledger, base_url=url, api_key="none", pace=Pace(concurrency=in_flight)) as teacher:
            requests = (Request(body(number), tag=str(number)) for number in range(count))
            async for request, reply in teacher.ask(requests):
                check(reply.text, int(request.tag))
                meter.answered()
        if ledger.count() != count:
            raise ValueError(f"{ledger.count()} answers in the ledger, wanted {count}")


ASK = {"sdk": ask_sdk, "post": ask_post, "ours": ask_ours}


def check(text: str | None, number: int) -> None:
    if not (text or "").startswith(f"answer to q{number} "):
        raise ValueError(f"a wrong answer to q{number}: {text!r:.80}")


def measure_peer(python: str, url: str, in_flight: int, waves: int) -> dict[str, Any]:
    """One run of whichever peer is installed there; in words where it fails, for that is a result too."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as system:
        system.write(SYSTEM)
        system.flush()
        script = Path(__file__).with_name("generate_peers.py")
        command = [python, str(script), "--url", url, "--in-flight", str(in_flight), "--waves", str(waves)]
        done = subprocess.run([*command, "--system", system.name], capture_output=True, text=True)
    if done.returncode:
        found = {"peer": python, "error": (done.stderr.strip().splitlines() or ["no word"])[-1]}
    else:
        found = json.loads(done.stdout.splitlines()[-1])
    print(f"  {in_flight} in flight: {found}", flush=True)
    return found


def measure(url: str, in_flight: int, waves: int, rounds: int) -> dict[str, Any]:
    found: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    for number in range(rounds):
        for side in SIDES if number % 2 == 0 else SIDES[::-1]:
            # The first wave connects; ours begins with one request alone, which is in that wave.
            meter = Meter(2 * in_flight)
            asyncio.run(ASK[side](url, (waves + 2) * in_flight, in_flight, meter))
            found[side].append(meter.figures())
        words = [f"{side} {found[side][-1][0]:.0f} req/s, {found[side][-1][1]:.2f} ms" for side in SIDES]
        print(f"  {in_flight} in flight, round {number + 1}: " + "; ".join(words), flush=True)
    medians = {side: [statistics.median(column) for column in zip(*found[side], strict=True)] for side in SIDES}
    return {
        "in_flight": in_flight,
        "requests_per_s": {side: [speed for speed, _ in found[side]] for side in SIDES},
        "cpu_ms_per_request": {side: [cpu for _, cpu in found[side]] for side in SIDES},
        "speed_ratio": {side: ratio(found, side, 0) for side in BARE},
        "cpu_ratio": {side: ratio(found, side, 1) for side in BARE},
        "medians": medians,
        "goal": GOAL if in_flight == GOAL_AT else None,
    }


def ratio(found: dict[str, list[tuple[float, float]]], bare: str, which: int) -> float:
    """Ours over the bare side, the median of the rounds."""
    return statistics.median(a[which] / b[which] for a, b in zip(found["ours"], found[bare], strict=True))


def table(results: list[dict[str, Any]]) -> str:
    head = ["in flight", *(f"{side} req/s" for side in SIDES), "ours/sdk", "goal", "ours/post"]
    head += [*(f"{side} ms CPU" for side in SIDES), "ours/sdk", "ours/post"]
    lines = [head, ["---"] * len(head)]
    for one in results:
        line = [str(one["in_flight"]), *(f"{one['medians'][side][0]:.0f}" for side in SIDES)]
        line += [f"{one['speed_ratio']['sdk']:.2f}", f"{one['goal'] or ''}", f"{one['speed_ratio']['post']:.2f}"]
        line += [f"{one['medians'][side][1]:.2f}" for side in SIDES]
        lines.append(line + [f"{one['cpu_ratio'][side]:.2f}" for side in BARE])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def peer_table(results: list[dict[str, Any]]) -> str:
    lines = ["| in flight | peer | req/s | ours/peer | ms CPU |", "|---|---|---|---|---|"]
    for one in results:
        for peer in one["peers"]:
            if "error" in peer:
                figures = [peer["error"], "", ""]
            else:
                speed = peer["requests_per_s"]
                ratio_of = one["medians"]["ours"][0] / speed
                figures = [f"{speed:.0f}", f"{ratio_of:.2f}", f"{peer['cpu_ms_per_request']:.2f}"]
            lines.append("| " + " | ".join([str(one["in_flight"]), peer["peer"], *figures]) + " |")
    return "\n".join(lines)


def plot(results: list[dict[str, Any]], facts: dict[str, Any], path: Path) -> None:
    charts = []
    for name, key in (("Requests/s", "speed_ratio"), ("CPU time for a request", "cpu_ratio")):
        for side, words in BARE.items():
            goal = key == "speed_ratio" and side == "sdk"
            bars = [
                (f"{one['in_flight']} in flight", one[key][side], one["goal"] if goal else None) for one in results
            ]
            charts.append((f"{name} with the durable ledger, of {words}", bars))
    where = f"{facts['hardware']}, latency {facts['arguments']['latency']} s, {facts['date'][:10]}"
    draw_bars(charts, where, path, one="as the bare side")


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[64, 256, 900])
    parser.add_argument("--latency", type=float, default=2.0, help="seconds from a request to its answer")
    parser.add_argument("--waves", type=int, default=5, help="answers counted, in times those in flight")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", nargs="+", default=[], metavar="PYTHON", help="of environments with a peer")
    parser.add_argument("--out", type=Path, help="a folder for the JSON and the plot")
    arguments = parser.parse_args(words)

    logging.getLogger("httpx2").setLevel(logging.WARNING)
    facts = circumstances(argparse.Namespace(device="cpu", **vars(arguments)))
    facts["versions"] |= {name: version(name) for name in ("openai", "aiohttp", "httpx2")}
    print(json.dumps(facts))
    with FakeServer(latency=arguments.latency, words=400) as server:
        results = []
        for number in arguments.in_flight:
            found = measure(server.url, number, arguments.waves, arguments.rounds)
            found["peers"] = [measure_peer(python, server.url, number, arguments.waves) for python in arguments.peers]
            results.append(found)
    print(table(results))
    if arguments.peers:
        print(peer_table(results))
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        written = json.dumps(facts | {"results": results}, indent=2)
        (arguments.out / "generate_speed.json").write_text(written + "\n", encoding="utf-8")
        plot(results, facts, arguments.out / "generate_speed.png")


if __name__ == "__main__":
    main()
