"""`llava answer` goes on: after a kill, an interruption, a full disk or beside another run, nothing is asked twice."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modeling_llava import LlavaForConditionalGeneration
from processing import LlavaProcessor
from recipes import cli
from recipes.measuring import answer_local
from recipes.measuring.answer_journal import Part
from tests import launching
from tests.questioned import FILE, MODEL, answer, read_lines, write_lines
from tests.questioned import expected as expected
from tests.questioned import folder as folder
from tests.questioned import inside as inside


ROOT = Path(__file__).parent.parent
KILLED = """
import os, signal, sys
from recipes.measuring import answer_local
from recipes import cli
ask, calls = answer_local.answer_batch, []
def watched(*args, **options):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return ask(*args, **options)
answer_local.answer_batch = watched
sys.exit(cli.main(sys.argv[1:]))
"""


def test_killed_it_goes_on_and_asks_nothing_twice(tmp_path, expected, monkeypatch, capsys):
    out = tmp_path / "a.jsonl"
    words = ["answer", *FILE, *MODEL, "--out", str(out), "--batch-size", "3"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", KILLED, *words], env=env, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    part = out.with_name("a.jsonl.journal") / "part-00000.jsonl"
    assert len(read_lines(part)) == 6 and not out.exists()
    with open(part, "a") as file:
        file.write('{"number": 11, "te')  # as a kill in the middle of a write would leave it

    assert cli.main([*words[:-1], "3", "--repetition_penalty", "1.5"]) == 1
    assert "generation.repetition_penalty was None and is 1.5" in capsys.readouterr().err
    asked = []
    ask = answer_local.answer_batch
    monkeypatch.setattr(
        answer_local, "answer_batch", lambda f, texts, *a, **o: asked.extend(texts) or ask(f, texts, *a, **o)
    )
    assert cli.main(words) == 0
    assert len(asked) == 6
    assert "12 answers (6 were there)" in capsys.readouterr().out
    assert [line["text"] for line in read_lines(out)] == expected
    assert cli.main(words) == 0 and len(asked) == 6
    assert "its 12 answers are there already" in capsys.readouterr().out


def test_another_run_does_not_go_into_the_same_file(tmp_path, folder, capsys):
    out = ["--out", str(tmp_path / "a")]
    assert answer(*FILE, *MODEL, *out) == 0
    before = (tmp_path / "a").read_text()
    model = LlavaForConditionalGeneration.from_pretrained("model")
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    model.save_pretrained(tmp_path / "other")
    LlavaProcessor.from_pretrained("model").save_pretrained(tmp_path / "other")
    write_lines(tmp_path / "fewer.jsonl", read_lines("asked.jsonl")[:3])
    for words, what in [
        ([*FILE, "--model", str(tmp_path / "other"), "--max_new_tokens", "10"], "checkpoint was"),
        ([*FILE, "--model", "model", "--max_new_tokens", "11"], "generation.max_new_tokens was 10 and is 11"),
        ([*FILE, *MODEL, "--do_sample"], "generation.do_sample was False and is True; seed was None and is 0"),
        ([*FILE, *MODEL, "--dtype", "bfloat16"], "dtype was 'float32' and is 'bfloat16'"),
        (["--questions", str(tmp_path / "fewer.jsonl"), *FILE[2:], *MODEL], "questions was"),
    ]:
        assert answer(*words, *out) == 1
        error = capsys.readouterr().err
        assert what in error and "has answers of another run" in error
    assert (tmp_path / "a").read_text() == before
    for text in ("", "what is it", '{"question_id": 1, "text": "x"}\n', "[1]"):
        (tmp_path / "a").write_text(text)
        assert answer(*FILE, *MODEL, *out) == 1
        assert "is no file of answers of ours" in capsys.readouterr().err
        assert (tmp_path / "a").read_text() == text


def test_draws_are_the_same_after_an_interruption(tmp_path, monkeypatch, capsys):
    words = [*FILE, *MODEL, "--do_sample", "--batch-size", "3", "--out"]
    assert answer(*words, str(tmp_path / "whole")) == 0
    ask, calls = answer_local.answer_batch, []

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return ask(*args, **options)

    monkeypatch.setattr(answer_local, "answer_batch", interrupted)
    assert answer(*words, str(tmp_path / "cut")) == 130
    monkeypatch.setattr(answer_local, "answer_batch", ask)
    assert answer(*words, str(tmp_path / "cut"), "--batch-size", "4") == 1
    assert "batch_size was 3 and is 4" in capsys.readouterr().err
    assert answer(*words, str(tmp_path / "cut")) == 0
    assert "(6 were there)" in capsys.readouterr().out
    assert (tmp_path / "cut").read_text() == (tmp_path / "whole").read_text()


def test_a_second_run_into_the_same_file_waits_for_nobody(tmp_path, capsys):
    script = (
        "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    )
    (tmp_path / "a.journal").mkdir()
    command = [sys.executable, "-c", script, str(tmp_path / "a.journal" / ".running")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert answer(*FILE, *MODEL, "--out", str(tmp_path / "a")) == 1
        other.communicate(b"\n")
    assert "Another run writes into" in (error := capsys.readouterr().err) and "give another `--out`" in error


def test_a_disk_that_fills_up_takes_no_half_of_an_answer_in_silence(tmp_path):
    (tmp_path / "a.journal").mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))  # the kernel writes up to there, and says so once
    try:
        part = Part(tmp_path / "a", 0)
        part.add([{"number": 0, "text": "short"}])
        with pytest.raises(OSError, match="File too large"):
            part.add([{"number": 1, "text": "long" * 50}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    part.close()


def test_a_full_disk_is_told(tmp_path, monkeypatch, capsys):
    def fail(self, answers):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Part, "add", fail)
    assert answer(*FILE, *MODEL, "--out", str(tmp_path / "a")) == 1
    told = capsys.readouterr().err
    assert "No space is left on the disk of" in told and "start the same command again: what was answered" in told


@pytest.mark.slow
def test_two_processes_go_on_where_one_was_killed(tmp_path, expected):
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(ROOT / "recipes/accelerate/ddp.yaml"), "--num_processes", "2"]
    command += ["--mixed_precision", "no", "--main_process_port", "0", "-m", "recipes.answer"]
    out = tmp_path / "a.jsonl"
    words = [*FILE, *MODEL, "--out", str(out), "--batch-size", "2"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    assert subprocess.run([sys.executable, "-c", KILLED, "answer", *words], env=env).returncode == -signal.SIGKILL
    process = subprocess.Popen(
        [*command, *words], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    printed = launching.finish(process)
    assert printed.count("12 answers (4 were there)") == 1 and "process 1 of 2" in printed
    assert [line["text"] for line in read_lines(out)] == expected
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
