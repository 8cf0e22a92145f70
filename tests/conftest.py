"""What every test stands on: no network, one thread, and deprecations that fail.

Tiny models, tokenizers and pictures are in tests/tiny.py. A fixture that two files use stands in a module beside them
and is imported as itself (`from tests.originals import base as base`): pytest finds it by its name alone.
"""

import logging
import os
import signal
from pathlib import Path


# Before anything imports transformers or datasets, which read these once. HF_HUB_OFFLINE=0 on the command line wins.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Threads that a test starts, and processes, do not go by `torch.set_num_threads` below.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch


# An assert in a module that test files share tells what it compared, as one in a test file does.
pytest.register_assert_rewrite(
    *(f"tests.{file.stem}" for file in Path(__file__).parent.glob("*.py") if file.stem not in ("__init__", "conftest"))
)

# A script's background jobs ignore Ctrl-C, and so would all that a test starts, and be waited for without end.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# More threads make tiny models slower, and sums depend on how many there are.
torch.set_num_threads(1)


class DeprecationAlarm(logging.Handler):
    """Turns a log record about a deprecation into a failure where it was written.

    transformers announces about half of its deprecations through `logger.warning_once`, which no warning filter sees.
    """

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "deprecated" in message.lower():
            # `pytest.fail` raises a BaseException: an `except Exception` on the way up cannot swallow it. Raising also
            # keeps `warning_once` from remembering the message, so every test that makes the call fails.
            pytest.fail(f"`{record.name}` logged a deprecation: {message}")


for library in ("transformers", "trl", "datasets"):
    logging.getLogger(library).addHandler(DeprecationAlarm())
