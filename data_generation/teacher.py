"""Asks a server that speaks chat completions, many requests at once: nothing lost, nothing bought twice.

    with Ledger("out/ledger.sqlite") as ledger:
        async with Teacher(ledger, base_url="http://localhost:8000/v1", pace=Pace(concurrency=128)) as teacher:
            with drain_on_signals(teacher):
                async for request, reply in teacher.ask(requests):
                    ...
            if teacher.interrupted: ...

At a kill, at most the requests in flight are paid for twice.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from dataclasses import replace

from data_generation.asking import Asker, Job, this_task
from data_generation.budget import Caps
from data_generation.exchange import Reply, Request, read_reply
from data_generation.ledger import Ledger
from data_generation.limits import Pace
from data_generation.progress import Progress
from data_generation.server import host_of, open_client


CHUNK = 64  # requests taken from the source, and looked up, at a time


class Teacher:
    """A server, a ledger, and the limits between them. `server` names who answers, for the keys, where the address
    changes from run to run; without it that is the address.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        server: str | None = None,
        pace: Pace | None = None,
        caps: Caps | None = None,
        show_progress: bool = False,
    ):
        self.ledger = ledger
        self.pace = pace or Pace()
        self.caps = caps or Caps()
        self.client = open_client(base_url, api_key, self.pace.concurrency, self.pace.deadline)
        self.host = server or host_of(str(self.client.base_url))
        self.interrupted = False
        self.progress = Progress(None, False)
        self._show_progress = show_progress
        self._asker = Asker(self.client, self.host, ledger, self.pace, self.caps)
        self._again: deque[Request] = deque()
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task] = []
        self._ending: asyncio.Task | None = None
        self._errors: list[BaseException] = []
        self._out: asyncio.Queue[tuple[Request, Reply] | None] = asyncio.Queue()
        self._is_asking = False

    async def __aenter__(self) -> "Teacher":
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._drain()  # a loop that was left by `break` or an error is closed later than this
        await self._asker.budget.close()
        await self.client.close()

    def again(self, request: Request) -> None:
        """Adds a request to the run in progress, as another try after a reply that cannot be used."""
        self._again.append(request)
        self.progress.add()
        self._wake.set()

    def stop(self) -> None:
        """Takes no more requests; what is in flight is waited for and stored, and `ask` ends."""
        self._asker.stop()

    def abort(self) -> None:
        """Gives up what is in flight too. It may have been billed, and is counted so."""
        self._asker.stop()
        for task in self._tasks:
            task.cancel()

    async def ask(
        self, requests: Iterable[Request] | AsyncIterable[Request], total: int | None = None
    ) -> AsyncIterator[tuple[Request, Reply]]:
        """Every request with its reply, in the order of the replies; what the ledger has needs no request.

        `requests` is read as needed, in another thread if it is a plain iterable. Raises RunStopped at the end if the
        run could not be finished; all that was answered has come out before.
        """
        if self._is_asking:
            raise ValueError("this teacher is being asked already; one `ask` at a time")
        self._is_asking = True
        self._asker.is_stopping, self._asker.stopped = False, None
        self._again.clear()
        self.progress = Progress(total, self._show_progress, self.caps.max_cost)
        self._out = asyncio.Queue(4 * CHUNK + self.pace.concurrency)
        self._open = 0  # requests taken and not yet handled by whoever reads the replies
        self._flying: dict[str, Job] = {}
        todo: asyncio.Queue[Job] = asyncio.Queue(CHUNK)
        self._tasks = [asyncio.create_task(self._answer(todo)) for _ in range(self.pace.concurrency)]
        self._tasks.append(asyncio.create_task(self._read(_chunks(requests), todo)))
        self._ending = asyncio.create_task(self._end())
        try:
            while (found := await self._out.get()) is not None:
                self.progress.count(found[1], self._asker, self._cost())
                yield found
                self._open -= 1
                if self._open == 0:
                    self._wake.set()
            if self._errors:
                raise self._errors[0]
        finally:
            await self._drain()
            await self._asker.budget.close()
            self.progress.close(self._cost())
            self._is_asking = False
        if self._asker.stopped is not None:
            raise self._asker.stopped

    def _cost(self) -> float | None:
        return None if self.caps.prices is None else self.caps.cost(self.ledger.spent)

    async def _end(self) -> None:
        """After the last task nothing more can come. An error in one of them ends the run for all."""
        pending = set(self._tasks)
        self._errors = []
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_EXCEPTION)
            failed = [task.exception() for task in done if not task.cancelled()]
            self._errors += [error for error in failed if error is not None]
            if self._errors:
                self._asker.stop()
        await self._out.put(None)

    async def _drain(self) -> None:
        """Stops, and lets what is in flight be stored where nobody reads on."""
        if self._ending is None:
            return
        self._asker.stop()
        while not self._ending.done():
            while not self._out.empty():
                self._out.get_nowait()
            await asyncio.wait([self._ending], timeout=0.05)

    async def _read(self, chunks: AsyncIterator[list[Request]], todo: asyncio.Queue) -> None:
        """Reads requests, finds what the ledger has, and hands on the rest; ends when nobody can want more."""
        self._asker.idle.add(this_task())
        while True:
            chunk = [self._again.popleft() for _ in range(min(CHUNK, len(self._again)))]
            chunk = chunk or await anext(chunks, [])
            if chunk:
                self._open += len(chunk)
                await self._look_up(chunk, todo)
            elif self._again:  # they came while the source was read to its end, and nobody will wake us for them
                continue
            elif self._open == 0:
                break
            else:
                self._wake.clear()
                await self._wake.wait()
        self._asker.stop()  # all the others wait for a job that will not come

    async def _look_up(self, chunk: list[Request], todo: asyncio.Queue) -> None:
        new: list[Job] = []
        for request in chunk:
            payload = request.payload()
            key = request.key(self.host, payload)
            if key in self._flying:
                self._flying[key].requests.append(request)
            else:
                self._flying[key] = job = Job(key, payload, [request])
                new.append(job)
        for job, raw in zip(new, await self.ledger.get([job.key for job in new]), strict=True):
            if raw is None:
                await todo.put(job)
            else:
                await self._hand_out(job, read_reply(job.key, raw, cached=True))

    async def _answer(self, todo: asyncio.Queue) -> None:
        task, idle = this_task(), self._asker.idle
        while not self._asker.is_stopping:
            idle.add(task)
            job = await todo.get()
            idle.discard(task)
            reply = await self._asker.answer(job)
            if reply is not None:
                await self._hand_out(job, reply)

    async def _hand_out(self, job: Job, reply: Reply) -> None:
        del self._flying[job.key]
        for number, request in enumerate(job.requests):
            await self._out.put((request, reply if number == 0 else replace(reply, cached=not reply.error)))


async def _chunks(requests: Iterable[Request] | AsyncIterable[Request]) -> AsyncIterator[list[Request]]:
    """A plain iterable is read in another thread, CHUNK at a time, for it may open files."""
    if isinstance(requests, AsyncIterable):
        async for request in requests:
            yield [request]
        return
    source = iter(requests)
    while chunk := await asyncio.to_thread(lambda: list(itertools.islice(source, CHUNK))):
        yield chunk


def stored_replies(ledger: Ledger, requests: Iterable[Request], host: str) -> Iterator[tuple[Request, Reply | None]]:
    """The replies that the ledger has, None where it has none, without a request. `host` as in `Teacher.host`."""
    requests = iter(requests)
    while chunk := list(itertools.islice(requests, CHUNK)):
        keys = [request.key(host) for request in chunk]
        for request, key, raw in zip(chunk, keys, ledger.find(keys), strict=True):
            yield request, None if raw is None else read_reply(key, raw, cached=True)
