"""A file is written beside its place, under the name of its process, and takes its place when it is whole.

    .rows.parquet.partial-HOST-PID-x3k9q2

What a killed process leaves is known by that name, and removed by the next run that writes into the same folder.
"""

import logging
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO


log = logging.getLogger(__name__)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when all is written, and leaves nothing behind when it is not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_remains(path.parent.absolute())
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{partial_of(path).name}-")
    except OSError as error:
        error.filename = str(path)
        raise
    try:
        with open(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename in (None, temporary):
            error.filename = str(path)  # a full disk names no file
        raise


def write_atomically(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode(errors="replace"))  # a lone surrogate, which JSON can hold


def partial_of(path: Path) -> Path:
    """What this process writes before it is renamed to `path`."""
    return path.absolute().with_name(f".{path.name}.partial-{socket.gethostname()}-{os.getpid()}")


@cache
def remove_remains(folder: Path) -> None:
    """What processes of this machine that live no more have begun to write in `folder`; once, for it may be large."""
    pattern = re.compile(rf"\..+\.partial-{re.escape(socket.gethostname())}-(\d+)(-.*)?", re.DOTALL)
    try:
        found = [(pattern.fullmatch(one), folder / one) for one in os.listdir(folder)]
    except (FileNotFoundError, NotADirectoryError):
        return
    for match, remains in found:
        if match is None or _is_alive(int(match[1])):
            continue
        if remains.is_dir():
            shutil.rmtree(remains)
        else:
            remains.unlink(missing_ok=True)
        log.warning("Removed `%s`, which a run that was killed had left.", remains)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _umask() -> int:
    mask = os.umask(0)  # there is no way to read it without setting it
    os.umask(mask)
    return mask
