"""Commands and scripts against a `HubServer`, in processes of their own that live as long as a test file.

One process with our commands, one that cannot import this project: each imports transformers once.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.hub_server import HubServer


ROOT = Path(__file__).parent.parent
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
