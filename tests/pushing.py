"""Commands and scripts against a `HubServer`, in processes of their own that live as long as a test file.

One process with our commands, one that cannot import this project: each imports transformers once.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import training
from tests.hub_server import HubServer


ROOT = Path(__file__).parent.parent
WRITER, READER, NOBODY = "writer", "reader", "nobody-of-this-name"
SERVE = """
import contextlib, faulthandler, io, json, os, sys, time, traceback
BLOCKED = json.loads(sys.argv[1])
for name in BLOCKED:
    sys.modules[name] = None
time.sleep = lambda seconds: None  # between the attempts of huggingface_hub
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
for line in sys.stdin:
    asked = json.loads(line)
    os.environ |= asked["environment"]
    os.chdir(asked["cwd"])
    out, err, code = io.StringIO(), io.StringIO(), 0
    faulthandler.dump_traceback_later(400, exit=True, file=sys.__stderr__)  # one that hangs says where
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if "command" in asked:
                from recipes import cli
                code = cli.main(asked["command"])
            else:
                exec(compile(asked["script"], "script", "exec"), {"__name__": "__main__"})
        except SystemExit as stopped:
            code = stopped.code or 0
        except BaseException:
            traceback.print_exc()
            code = 70
    faulthandler.cancel_dump_traceback_later()
    answers.write(json.dumps({"code": code, "out": out.getvalue(), "err": err.getvalue()}) + "\\n")
    answers.flush()
"""
BLOCKED = ["modeling_llava", "processing", "recipes", "data_generation", "tests"]


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


class Process:
    def __init__(self, hub: HubServer, home: Path, has_project: bool):
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        environment |= {"HF_DATASETS_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1"}
        environment |= {"HF_HUB_DISABLE_TELEMETRY": "1"} | ({"PYTHONPATH": str(ROOT)} if has_project else {})
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, json.dumps([] if has_project else BLOCKED)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=home,
            env=environment,
            text=True,
        )

    def ask(self, cwd: Path, token: str, **what) -> Done:
        asked = {"cwd": str(cwd), "environment": {"HF_TOKEN": token}} | what
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return Done(**json.loads(self.process.stdout.readline()))

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait(400)  # on a machine that has other work


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def project(hub, tmp_path_factory):
    process = Process(hub, tmp_path_factory.mktemp("home"), has_project=True)
    yield process
    process.end()


@pytest.fixture(scope="module")
def stock(hub, tmp_path_factory):
    process = Process(hub, tmp_path_factory.mktemp("stock-home"), has_project=False)
    yield process
    process.end()


@pytest.fixture(scope="module")
def work(tmp_path_factory, project) -> Path:
    """A data set, a checkpoint to start from, and one that was trained from it, by paths that are absolute."""
    folder = tmp_path_factory.mktemp("work")
    training.write_data_and_start(folder)
    done = train(project, folder, "trained", save_strategy="steps", save_steps=2)
    assert done.code == 0, done.err
    return folder


@pytest.fixture(autouse=True)
def no_faults(hub):
    yield
    hub.faults.clear()


def train(project: Process, folder: Path, name: str, **changes) -> Done:
    """From `start` into the folder `name`, on the data that lies beside it."""
    places = {"model_name_or_path": str(folder / "start"), "data": [str(folder / "data.jsonl")]}
    path = training.write_yaml(folder / f"{name}.yaml", output_dir=str(folder / name), **places | changes)
    return project.ask(folder, WRITER, command=["train", "--config", str(path)])


def push(project: Process, folder: Path, *words: str, token: str = WRITER) -> Done:
    return project.ask(folder, token, command=["push", *words])


def refused(done: Done) -> str:
    """The one line of an error, without a traceback."""
    assert done.code == 1, done
    lines = [line for line in done.err.splitlines() if line.startswith("llava push: error: ")]
    assert len(lines) == 1 and "Traceback" not in done.err, done.err
    return lines[0]
