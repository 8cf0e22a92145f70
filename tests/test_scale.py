"""`llava generate --launcher`: shards through datatrove, killed and run again."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recipes import generate, scale
from recipes.training.train_data import load_rows
from tests.teaching import TeacherServer, draw_coco


ROOT = Path(__file__).parent.parent
HAS_DATATROVE = importlib.util.find_spec("datatrove") is not None
needs_datatrove = pytest.mark.skipif(not HAS_DATATROVE, reason="datatrove is not installed (extra `scale`)")


def arguments(folder: Path, url: str, pictures: int, *more: str) -> list[str]:
    flags = draw_coco(folder, pictures)
    return [*flags, "--model", "m", "--base-url", url, "--server", "ours", "--out", str(folder / "data"), *more]


@pytest.mark.parametrize(
    "flags, error",
    [
        (["--launcher", "local"], "needs --num-shards"),
        (["--launcher", "local", "--num-shards", "2", "--merge"], "needs --num-shards"),
        (["--launcher", "local", "--num-shards", "4", "--workers", "5"], "more than the 4 shards"),
        (["--launcher", "slurm", "--num-shards", "4"], "--partition and --time"),
    ],
)
def test_wrong_flags_are_said(tmp_path, flags, error):
    with pytest.raises(ValueError, match=error):
        generate.main(arguments(tmp_path, "http://x", 1, *flags))


@pytest.mark.skipif(HAS_DATATROVE, reason="datatrove is installed")
def test_without_datatrove_it_says_what_to_install(tmp_path):
    with pytest.raises(ValueError, match="pip install"):
        generate.main(arguments(tmp_path, "http://x", 1, "--launcher", "local", "--num-shards", "2"))


def test_an_error_of_a_shard_is_words_alone(tmp_path):
    # Others do not come through the pipe of a process pool.
    with TeacherServer(faults=[{"status": 401}]) as server, pytest.raises(RuntimeError, match="OPENAI_API_KEY"):
        args = generate.parser().parse_args(arguments(tmp_path, server.url, 4, "--num-shards", "2"))
        scale.ask_shard(None, 0, 2, args)


@needs_datatrove
@pytest.mark.slow
def test_killed_shards_are_finished_and_merged(tmp_path):
    kills, workers, concurrency = 2, 2, 8
    with TeacherServer(latency=0.2) as server:
        more = ["--launcher", "local", "--num-shards", "4", "--workers", str(workers)]
        more += ["--concurrency", str(concurrency)]
        command = [sys.executable, "-m", "recipes.cli", "generate", *arguments(tmp_path, server.url, 150, *more)]
        for wanted in (60, 200):
            process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
            until = time.monotonic() + 120
            while server.stats()["total"] < wanted:
                assert process.poll() is None and time.monotonic() < until
                time.sleep(0.02)
            os.killpg(process.pid, signal.SIGKILL)  # the launcher and all its workers
            process.wait()
        subprocess.run(command, cwd=ROOT, check=True, timeout=300)
        stats = server.stats()
        assert stats["total"] - 450 <= kills * workers * concurrency
        assert stats["most_in_flight"] <= workers * concurrency
        rows = load_rows(str(tmp_path / "data"))
        assert len(set(rows["id"])) == 450 == len(rows)
        subprocess.run(command, cwd=ROOT, check=True, timeout=300)
        assert server.stats()["total"] == stats["total"]
