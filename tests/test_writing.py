"""Writing what is whole or not there: what a killed run left goes, and two runs do not mix."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from data_generation.batch_files import write_lines
from data_generation.replacing import partial_of, replacing, write_atomically
from recipes import cli
from recipes.building.writing import write_checkpoint


LOCKED = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True); input()"


class Saved:
    def save_pretrained(self, folder):
        Path(folder).mkdir(exist_ok=True)
        Path(folder, "config.json").write_text("{}")


@pytest.fixture
def dead() -> int:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


def write_checkpoint_at(place: Path) -> None:
    write_checkpoint(Saved(), Saved(), place)


@pytest.mark.parametrize("begin", [write_checkpoint_at, lambda place: write_atomically(place, "x")])
def test_what_a_killed_run_left_is_removed_and_told(tmp_path, caplog, begin, dead):
    place, host = tmp_path / "new.x", socket.gethostname()
    mine = partial_of(place)
    assert mine == tmp_path / f".new.x.partial-{host}-{os.getpid()}"
    gone = [f".new.x.partial-{host}-{dead}", f".new.x.partial-{host}-{dead}-x3k9q2"]
    left = [
        f".new.x.partial-{host}-{os.getppid()}",
        f".new.x.partial-elsewhere-{dead}",
        f".new.x.partial-{host}-{dead}x",
    ]
    (tmp_path / gone[1]).write_text("half")
    for name in [gone[0], *left]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text("half")
    begin(place)
    assert sorted(path.name for path in tmp_path.iterdir() if path != place) == sorted(left)
    told = sorted(record.getMessage() for record in caplog.records)
    assert told == sorted(f"Removed `{tmp_path / name}`, which a run that was killed had left." for name in gone)


def test_a_killed_writer_leaves_a_name_that_is_known(tmp_path):
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom data_generation.replacing import replacing\n"
        "with replacing(Path(sys.argv[1])) as file:\n    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "x")], cwd=Path(__file__).parent.parent, timeout=60)
    assert len(list(tmp_path.iterdir())) == 1
    write_atomically(tmp_path / "x", "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_file_that_cannot_be_begun_is_told_by_its_own_name(tmp_path, monkeypatch):
    def fail(*args, **options):
        raise OSError(28, "No space left on device", str(tmp_path / ".x.partial"))

    monkeypatch.setattr("tempfile.mkstemp", fail)
    with pytest.raises(OSError, match="No space left on device: '.*/x'"), replacing(tmp_path / "x"):
        pass


@pytest.fixture
def full_disk(tmp_path, monkeypatch):
    """`tmp_path` takes names and no bytes, as a disk that is full does; one that a mount would take root for."""
    write = os.write

    def refuse(handle, data):
        if str(tmp_path) in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(28, "No space left on device")
        return write(handle, data)

    monkeypatch.setattr("os.write", refuse)
    return tmp_path


def test_a_full_disk_is_told_by_the_name_of_the_place_before_any_work(full_disk, capsys):
    assert cli.main(["build", "--vision", "v", "--language", "l", "--out", str(full_disk / "new")]) == 1
    assert f"error: `{full_disk / 'new'}`: No space left on device. Make space" in capsys.readouterr().err
    assert not list(full_disk.iterdir())


def test_lines_that_cannot_be_written_leave_nothing(tmp_path):
    def lines():
        yield b"one"
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left on device: '.*/lines.jsonl'"):
        write_lines(lines(), tmp_path / "lines.jsonl")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command",
    [
        ["build", "--vision", "v", "--language", "l"],
        ["convert", "--from", "v"],
        ["convert", "--to-original", "v"],
        ["merge", "--adapter", "v"],
        ["captions", "v.parquet"],
        ["data", "import", "v.json"],
        ["data", "export", "v.parquet"],
    ],
)
def test_a_second_run_into_one_place_is_refused(tmp_path, capsys, command):
    holder = [sys.executable, "-c", LOCKED, str(tmp_path / ".new.running")]
    with subprocess.Popen(holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert cli.main([*command, "--out", str(tmp_path / "new")]) == 1
        other.communicate(b"\n")
    assert f"error: Another run writes into `{tmp_path / 'new'}`" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [".new.running"]
