"""`llava completion`: the files that it writes, in the shells that they are for."""

import shutil
import subprocess
from pathlib import Path

import pytest

from recipes import completion
from recipes.cli import COMMANDS


# What is typed, and what is offered where the cursor is; None: names of files.
CASES = [
    (["llava", "sc"], ["scienceqa", "score"]),
    (["llava", "data", "im"], ["import"]),
    (["llava", "--debug", "data", "ch"], ["check"]),
    (["llava", "score", "pope", "--ann"], ["--annotations"]),
    (["llava", "build", "--projector", ""], ["linear", "mlp"]),
    (["llava", "build", "--out", "d", "--projector", "m"], ["mlp"]),
    (["llava", "push", "data", "--repo"], []),  # `data` is a folder's name there, and no command of `push`
    (["llava", "train", "--conf"], ["--config"]),
    (["llava", "build", "--out", "some"], ["some file.txt"]),
]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scripts")
    (folder / "some file.txt").touch()
    for shell in completion.SHELLS:
        (folder / shell).write_text(getattr(completion, shell)())
    return folder


def offered(folder: Path, shell: str, code: str) -> list[str]:
    command = {"bash": ["bash", "--norc"], "fish": ["fish", "--no-config"]}[shell]
    done = subprocess.run([*command, "-c", code], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return sorted(done.stdout.splitlines())


@pytest.mark.parametrize("typed, wanted", CASES)
def test_bash(scripts, typed, wanted):
    """As readline calls it; where the function offers nothing, `-o default` has bash look for files."""
    words = " ".join(f"'{word}'" for word in typed)
    code = f"""
        source ./bash
        COMP_WORDS=({words}); COMP_CWORD={len(typed) - 1}
        _llava
        [[ ${{#COMPREPLY[@]}} -gt 0 ]] && printf '%s\\n' "${{COMPREPLY[@]}}"
        complete -p llava | grep -q -- '-o default.* -F _llava llava'
    """
    is_file = wanted == ["some file.txt"]
    assert offered(scripts, "bash", code) == ([] if is_file else wanted)


@pytest.mark.skipif(not shutil.which("fish"), reason="fish is not installed")
@pytest.mark.parametrize("typed, wanted", CASES)
def test_fish(scripts, typed, wanted):
    """It offers files and words with the letters inside as well."""
    found = offered(scripts, "fish", f"source ./fish; complete -C '{' '.join(typed)}'")
    assert set(wanted) <= set(found) and (wanted or not found)


@pytest.mark.skipif(not shutil.which("zsh"), reason="zsh is not installed")
def test_zsh_takes_the_file(scripts):
    done = subprocess.run(
        ["zsh", "-f", "-c", "source ./zsh; print $_comps[llava]"], cwd=scripts, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "") and "_bash_complete" in done.stdout and "_llava" in done.stdout


def test_every_command_and_shell_is_there(capsys):
    found = completion.all_places()
    assert set(COMMANDS) <= set(found["llava"])
    assert all(f"llava {name}" in found for name in COMMANDS)
    for shell in completion.SHELLS:
        completion.main([shell])
        assert capsys.readouterr().out == getattr(completion, shell)()
