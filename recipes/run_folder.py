"""A run has its folder to itself, and a full disk is told in a sentence."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from safetensors import SafetensorError


LOCK = ".running"
FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def alone_in(folder: Path, is_main: bool, setting: str = "output_dir") -> Iterator[None]:
    """Keeps a second run out, for as long as the main process lives: the kernel takes a lock back from a killed one.
    `setting` is what the user names the folder by.

    Not `flock`, which the workers of a dataloader would inherit, and hold on to where their parent was killed.
    """
    if not is_main:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / LOCK, folder, setting):
        yield


@contextmanager
def alone_writing(out: Path) -> Iterator[None]:
    """As `alone_in`, for a file, or for a folder that is not there before it is whole."""
    out = out.absolute()
    above = next(parent for parent in out.parents if parent.exists())
    if not above.is_dir():
        raise ValueError(f"`{out}` cannot be written, because `{above}` is a file. Choose another place.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with _locked(out.with_name(f".{out.name}{LOCK}"), out, "--out"):
        yield


@contextmanager
def _locked(lock: Path, place: Path, setting: str) -> Iterator[None]:
    file = _lock(lock, place, setting)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        file.close()


def _lock(lock: Path, place: Path, setting: str) -> IO[str]:
    while True:
        file = open(lock, "a+", encoding="utf-8")  # noqa: SIM115
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            who = file.read()
            file.close()
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ValueError(
                    f"Another run writes into `{place}` ({who}). Wait until it has ended, stop it, or give another "
                    f"`{setting}`."
                ) from error
            raise ValueError(f"`{place}` cannot be locked: {error}. Give an `{setting}` on another disk.") from error
        try:
            is_there = os.path.samestat(os.fstat(file.fileno()), os.stat(lock))
        except FileNotFoundError:
            is_there = False
        if is_there:
            try:
                os.ftruncate(file.fileno(), 0)
                os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
            except OSError as error:
                lock.unlink()
                file.close()
                error.filename = str(place)  # a full disk names no file
                raise
            return file
        file.close()  # a run that ended took its file away between our opening and locking it


GO_ON = (
    "Make space and start the same command again: it goes on from the last complete checkpoint. `save_total_limit` "
    "keeps fewer of them."
)


@contextmanager
def told_when_full(folder: Path, advice: str = GO_ON) -> Iterator[None]:
    """safetensors and torch name neither the file nor, in torch's case, the reason."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _is_full(error):
            raise
        written = [file for file in folder.rglob("*") if file.is_file()] if folder.is_dir() else []
        last = max(written, key=lambda file: file.stat().st_mtime_ns, default=folder)
        raise ValueError(
            f"No space is left on the disk of `{folder}`; the last file that was begun is `{last}`. {advice}"
        ) from error


def _is_full(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    if isinstance(error.__context__, OSError) and error.__context__.errno in FULL:
        return True  # torch's writer fails a second time while it closes the file
    return any(f"os error {number}" in str(error) for number in FULL) or "PytorchStreamWriter failed" in str(error)
