"""What SIGINT and SIGTERM do to a run: what is in flight is paid for, so it is waited for."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Iterator
from typing import Protocol


log = logging.getLogger(__name__)


class Drainable(Protocol):
    interrupted: bool

    def stop(self) -> None: ...

    def abort(self) -> None: ...


@contextlib.contextmanager
def drain_on_signals(teacher: Drainable) -> Iterator[None]:
    """The first SIGINT or SIGTERM lets what is in flight finish and sets `teacher.interrupted`; a second does not."""
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if teacher.interrupted:
            teacher.abort()
        else:
            log.warning("interrupted: waiting for what is in flight. Once more gives it up, paid or not.")
            teacher.interrupted = True
            teacher.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
