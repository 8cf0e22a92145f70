"""One request, from its turn to its answer: slot, rates, budget, pause; send; commit; only then look at it."""

import asyncio
import logging
import random
import time
from dataclasses import dataclass
from typing import Literal

import httpx2
import openai

from data_generation.budget import Budget, BudgetReached, Caps
from data_generation.exchange import Reply, Request, Usage, read_reply, web_page
from data_generation.failures import ADVICE, Failure, RunStopped, classify, scrub, scrub_bytes
from data_generation.ledger import Attempt, Ledger
from data_generation.limits import Bucket, Pace, Pause, Slots
from data_generation.server import secrets_of
from data_generation.sizes import Sizes, most_output


FIRST_WAIT = 5.0  # seconds that nobody need be at the address before the first answer; then the run ends
HOPELESS = 16  # requests given up in a row, beside twice those in flight: then the run ends

log = logging.getLogger(__name__)


@dataclass
class Job:
    """All requests with one key, to be asked once."""

    key: str
    payload: bytes
    requests: list[Request]


class Asker:
    """What the requests in flight share. It ends the run for all of them when one meets what stops every other."""

    def __init__(self, client: openai.AsyncOpenAI, host: str, ledger: Ledger, pace: Pace, caps: Caps):
        self.budget = Budget(caps, ledger)
        self.is_stopping = False
        self.stopped: RunStopped | None = None
        self.idle: set[asyncio.Task] = set()  # have nothing in flight; only these may be cancelled
        self.answered = self.answered_tokens = 0
        self._client, self._host, self._ledger, self._pace, self._caps = client, host, ledger, pace, caps
        self._secrets = secrets_of(client)
        self._sizes = Sizes()
        self._slots = Slots(pace.concurrency)
        self._pause = Pause()
        self._requests = Bucket(pace.rpm) if pace.rpm else None
        self._tokens = Bucket(pace.tpm) if pace.tpm else None
        self._given_up = 0  # in a row

    def stop(self) -> None:
        """Sends no more. What is in flight goes on."""
        self.is_stopping = True
        for task in list(self.idle):
            task.cancel()

    def _end(self, reason: str, message: str) -> None:
        if self.stopped is None:
            self.stopped = RunStopped(reason, f"{self._host}: {message}")
            self.stop()

    async def answer(self, job: Job) -> Reply | None:
        """None if the run ends before there is an answer."""
        tries, began = 0, time.monotonic()
        while not self.is_stopping:
            outcome = await self._attempt(job)
            if isinstance(outcome, Reply):
                self._given_up = 0
                return outcome
            detail = scrub(outcome.detail, self._secrets)
            if outcome.action == "stop":
                self._end(outcome.reason, f"{detail.rstrip('.')}. {ADVICE.get(outcome.reason, '')}".strip())
            elif (
                outcome.action == "reject"
                or (outcome.action == "retry" and tries + 1 >= self._pace.attempts)
                or (self._slots.is_probing and outcome.reason == "unreachable" and _is_over(began))
            ):
                self._give_up(outcome.reason, detail)
                return Reply(job.key, error=outcome.reason, detail=detail)
            elif outcome.action == "retry" and not self.is_stopping:
                tries += 1
                self.idle.add(task := this_task())
                await asyncio.sleep(min(30.0, 0.5 * 2.0 ** (tries - 1)) * random.uniform(0.75, 1.25))
                self.idle.discard(task)
        return None

    def _give_up(self, reason: str, detail: str) -> None:
        self._given_up += 1
        if self._slots.is_probing:
            self._end("unreachable", f"no answer to the first request: {detail}. {ADVICE['unreachable']}")
        elif self._given_up >= HOPELESS + 2 * self._pace.concurrency:
            self._end(
                "hopeless", f"{self._given_up} requests in a row without one answer, the last: {reason}, {detail}"
            )

    async def _attempt(self, job: Job) -> Reply | Failure:
        body = job.requests[0].body
        worst, estimate = self._sizes.worst(body, job.payload), self._sizes.estimate(body, job.payload)
        if self._caps.need_worst_case and most_output(body) is None:
            raise ValueError(
                "a request without max_completion_tokens has no worst case, and a cap on cost or tokens cannot be "
                "kept. Give it one, or cap the number of requests."
            )
        self.idle.add(task := this_task())
        try:
            async with self._slots:
                await (
                    self._pause.over()
                )  # here too, or all would draw on the rates now and be sent in one instant later
                if self._requests is not None:
                    await self._requests.take(1)
                if self._tokens is not None:
                    await self._tokens.take(estimate.tokens)
                reservation = await self.budget.reserve(worst)
                try:
                    await self._pause.over()
                    self.idle.discard(task)
                    return await self._send(job, worst, estimate)
                except OSError:  # the ledger's: what was answered may be paid for, and could not be written down
                    self.budget.lose(reservation)
                    raise
                finally:
                    self.budget.release(reservation)
        except BudgetReached as error:
            return Failure("stop", "budget", str(error))
        finally:
            self.idle.discard(task)

    async def _send(self, job: Job, worst: Usage, estimate: Usage) -> Reply | Failure:
        sent_at = time.monotonic()
        try:
            async with asyncio.timeout(self._pace.deadline):  # of all of it; the SDK's is between two reads
                response = await self._client.post("/chat/completions", cast_to=httpx2.Response, content=job.payload)
        except asyncio.CancelledError:
            await asyncio.shield(self._record(job, "unknown", worst, maybe=True))
            raise
        except Exception as error:
            failure = classify(error)
            if failure.maybe_billed:
                await self._record(job, "unknown", worst, maybe=True)
            self._after_failure(failure, sent_at)
            return failure
        raw = scrub_bytes(response.content, self._secrets)
        reply = read_reply(job.key, raw)
        if self.answered == 0 and (page := web_page(raw)):  # later it may be a proxy that hides an answer
            return Failure("stop", "no_endpoint", f"it sent {page}")
        billed = reply.usage or worst
        await self._record(job, "unusable" if reply.error else "answer", billed, raw, maybe=reply.usage is None)
        if reply.usage is not None:
            self._sizes.learn(job.requests[0].body, job.payload, reply.usage)
            if self._tokens is not None:
                self._tokens.refund(estimate.tokens - reply.usage.tokens)
        self.answered += 1
        self.answered_tokens += billed.tokens
        self._slots.open()
        self._slots.widen()
        self._pause.answered(sent_at)
        return Failure("retry", reply.error, reply.detail) if reply.error else reply

    async def _record(
        self,
        job: Job,
        outcome: Literal["answer", "unusable", "unknown"],
        usage: Usage,
        raw: bytes = b"",
        maybe: bool = False,
    ) -> None:
        cost = self.budget.price(usage, worst=maybe)
        await self._ledger.put(Attempt(job.key, outcome, usage, raw, job.requests[0].tag, cost, maybe))

    def _after_failure(self, failure: Failure, sent_at: float) -> None:
        if failure.action != "stop" and failure.reason not in ("unreachable", "connection"):
            self._slots.open()
        if failure.action != "wait":
            return
        if self._pause.hit(sent_at, failure.pause):
            self._slots.narrow()
            log.info("%s asks for a pause; all wait %.1f s", self._host, max(0.0, self._pause.left()))
        waits = max(self._pause.left(), self._pause.lasts())
        if waits > self._pace.patience:
            detail = scrub(failure.detail, self._secrets)
            self._end("throttled", f"{detail}. It lets us wait {waits:,.0f} s. Start again later; nothing is lost.")


def _is_over(began: float) -> bool:
    return time.monotonic() - began > FIRST_WAIT


def this_task() -> asyncio.Task:
    task = asyncio.current_task()
    assert task is not None
    return task
