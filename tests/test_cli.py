"""The console script `llava`: help without heavy imports, near matches, one-line errors."""

import argparse
import importlib
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest

from recipes import cli


ROOT = Path(__file__).parent.parent


def run_llava(*arguments: str, fake_main: str = "pass") -> subprocess.CompletedProcess:
    """Runs the script in a fresh process, with one more command, `fake`, whose main is `fake_main`."""
    code = (
        "import sys, types\n"
        "from recipes import cli\n"
        "cli.COMMANDS['fake'] = ('recipes_fake', 'For this test')\n"
        "sys.modules['recipes_fake'] = fake = types.ModuleType('recipes_fake')\n"
        f"def main(argv):\n    {fake_main}\n"
        "fake.main = main\n"
        "status = cli.main()\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
        "sys.exit(status)\n"
    )
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_help_lists_every_command_and_imports_nothing_heavy():
    result = run_llava("--help")
    assert (result.returncode, result.stderr) == (0, "")
    for name, (_, summary) in cli.COMMANDS.items():
        assert f"{name} " in result.stdout
        assert summary in result.stdout


def test_no_arguments_prints_help_and_fails():
    result = run_llava()
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("usage: llava [--debug] <command>")


def test_an_unknown_command_is_one_line_with_near_matches():
    result = run_llava("biuld", "--out", "DIR")
    assert result.returncode == 2
    assert result.stderr.startswith("llava: error: unknown command `biuld`. Did you mean `build`?")
    assert result.stderr.count("\n") == 1
    assert "Did you mean" not in run_llava("xyzzy").stderr


def test_a_home_after_an_equals_sign_is_written_out(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    words = ["--out=~/x", "coco=~/c", "--image-root=coco=~/c", "--out=~", "~/x", "--text=a ~/b", '{"a": "b=~/c"}']
    found = ["--out=/home/ada/x", "coco=/home/ada/c", "--image-root=coco=/home/ada/c", "--out=/home/ada", *words[4:]]
    result = run_llava("fake", *words, fake_main="print(argv)")
    assert result.stdout == f"{found}\n"


def test_arguments_reach_the_command_unchanged():
    result = run_llava("fake", "--out", "a b", "--version", fake_main="print(argv)")
    assert (result.returncode, result.stdout) == (0, "['--out', 'a b', '--version']\n")


@pytest.mark.parametrize("error", ["ValueError('found 1,\\n  wanted 2')", "OSError('found 1, wanted 2')"])
def test_a_user_error_is_one_line_without_a_traceback(error):
    result = run_llava("fake", fake_main=f"raise {error}")
    assert result.returncode == 1
    assert result.stderr == "llava fake: error: found 1, wanted 2\n"


@pytest.mark.parametrize(
    "code, problem",
    [
        ("open('/nowhere/x')", "`/nowhere/x`: No such file or directory. Check the path."),
        ("open('/')", "`/`: Is a directory. Give a file."),
        ("open(b'/nowhere/x')", "`/nowhere/x`: No such file or directory. Check the path."),
    ],
)
def test_an_error_of_the_system_says_what_to_do(code, problem):
    result = run_llava("fake", fake_main=code)
    assert (result.returncode, result.stderr) == (1, f"llava fake: error: {problem}\n")


def test_a_user_error_keeps_its_traceback_on_request():
    result = run_llava("--debug", "fake", fake_main="raise ValueError('found 1')")
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "ValueError: found 1" in result.stderr


def test_a_bug_keeps_its_traceback():
    result = run_llava("fake", fake_main="raise KeyError('found 1')")
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def test_version_is_the_installed_one(monkeypatch, capsys):
    monkeypatch.setattr(cli, "version", {"visual-instruction-tuning": "1.2.3"}.__getitem__)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == "llava 1.2.3\n"


def command_problems(name: str, module: types.ModuleType) -> list[str]:
    """What keeps a module from being the command `name`."""
    problems = [f"`{module.__name__}` has no `{need}`" for need in ("parser", "main") if not hasattr(module, need)]
    if problems:
        return problems
    parser = module.parser()
    if not isinstance(parser, argparse.ArgumentParser):
        return [f"`{module.__name__}.parser()` returns {parser!r}, not an ArgumentParser"]
    return [] if parser.prog == f"llava {name}" else [f"prog is `{parser.prog}`, not `llava {name}`"]


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_a_parser_and_a_main(name):
    assert command_problems(name, importlib.import_module(cli.COMMANDS[name][0])) == []


def test_a_module_that_is_no_command_is_found():
    empty = types.ModuleType("empty")
    assert command_problems("empty", empty) == ["`empty` has no `parser`", "`empty` has no `main`"]
    empty.main = print
    empty.parser = lambda: argparse.ArgumentParser(prog="llava other")
    assert command_problems("empty", empty) == ["prog is `llava other`, not `llava empty`"]
    assert command_problems("other", empty) == []


def test_a_reader_that_has_gone_is_no_error_of_ours():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "recipes.cli", "completion", "bash"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (
        128 + signal.SIGPIPE,
        "llava completion: stopped, since nobody reads what it prints any more\n",
    )
