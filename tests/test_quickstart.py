"""The quickstart for a moment: every phase, what it leaves, and that it goes on where it stopped."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import LlavaForConditionalGeneration as Stock

from recipes.micro import exam
from recipes.quickstart import RESULTS, TINY, Quickstart


ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a tiny run that was interrupted in its first training and started again."""
    folder = tmp_path_factory.mktemp("quickstart") / "run"
    command = [sys.executable, "-m", "recipes.cli", "quickstart", "--tiny", "--out", str(folder)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    said = []
    for line in process.stdout:
        said.append(line)
        if "recipes.train" in line:
            break
    time.sleep(1)
    # As Ctrl-C does: everything in the foreground has it.
    subprocess.run(["pkill", "-INT", "--session", str(process.pid)], check=True)
    said += process.stdout.readlines()
    assert process.wait() == 130, "".join(said)
    assert not (folder / "stage1/training.json").exists()
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    return folder, again.stdout


def test_what_was_done_is_not_done_again(folder):
    _, said = folder
    phases = re.split(r"\n\[\d/8\] ", said)[1:]
    assert [phase.split(":")[0] for phase in phases] == [name for name, *_ in Quickstart(Path(), TINY, 0).phases()]
    skipped = [phase.split(":")[0] for phase in phases if "is there already" in phase]
    assert skipped == ["world", "captions", "generate", "build"]


def test_every_figure_is_in_results(folder):
    folder, said = folder
    results = json.loads((folder / RESULTS).read_text())
    page = (ROOT / "docs/quickstart.md").read_text()
    fields = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    assert {name for names in fields for name in re.findall(r"`(\w+)`", names)} == set(results)
    assert results["rows"] == {"captions": 5 * TINY.captioned, "instruct": 3 * TINY.scenes}
    assert list(results["seconds"]) == [name for name, *_ in Quickstart(folder, TINY, 0).phases() if name != "page"]
    for condition, score in results["scores"].items():
        assert 0 <= score["mean"] <= 1 and set(score) == {"questions", "right", "mean", "by_kind"}
        if condition != "dialogues":
            assert score["questions"] == TINY.per_kind * 14
    assert results["scores"]["dialogues"]["questions"] == TINY.dialogues * exam.TURNS
    for stage in ("stage1", "stage2"):
        assert results["training"][stage]["steps"] == 4 and results["training"][stage]["last_loss"] > 0
        assert f"{results['scores']['stage 2']['mean'] * 100:.1f}" in said


def test_the_page_shows_scenes_and_both_answers(folder):
    folder, _ = folder
    page = (folder / "index.html").read_text()
    assert page.count("data:image/png;base64,") >= 6
    asked = exam.read(folder / "exam/stage-2.json")[0]
    assert f'alt="{asked.scene}"' in page
    for name in ("results.json", "llava train", "after stage 1", "dialogues", "<svg"):
        assert name in page
    linked = re.findall(r'href="([^"]+)"', page)
    assert linked and all((folder / name).exists() for name in linked)


def test_the_checkpoint_is_a_stock_one(folder):
    _, info = Stock.from_pretrained(folder[0] / "stage2", output_loading_info=True)
    assert not any(info.values())


def test_another_seed_wants_another_folder(folder):
    with pytest.raises(ValueError, match="holds a quickstart with .* Take another --out"):
        Quickstart(folder[0], TINY, seed=1).run()


def test_a_command_that_fails_is_named(tmp_path):
    quickstart = Quickstart(tmp_path, TINY, 0)
    with pytest.raises(ValueError, match="`llava captions` ended with 1"):
        quickstart.pair()


def test_questions_are_even_and_of_their_split():
    asked = exam.questions("combinations", 5)
    assert len(asked) == 5 * 14
    assert all(one.scene.startswith("microworld-combinations-") for one in asked)
    assert asked == exam.questions("combinations", 5)


def test_controls_show_other_pictures():
    names = [one.scene for one in exam.questions("test", 3)]
    seen, others = exam.pictures_of(names), exam.pictures_of_others(names)
    assert seen.keys() == others.keys() and sorted(seen.values()) == sorted(others.values())
    assert all(seen[name] != others[name] for name in seen)
    assert len(set(exam.black_pictures(names).values())) == 1


def test_only_the_whole_answer_is_right():
    one = exam.Asked("s", "colour", "Q?", "It is red.", "It is red.")
    asked = [one, exam.Asked("s", "colour", "Q?", "It is red.", "It is red"), exam.Asked("s", "at", "Q?", "A.", "a.")]
    assert exam.shares(asked) == {"colour": 0.5, "at": 0.0}


def test_a_dialogue_holds_what_was_answered():
    one = exam.Asked("s", "colour", "Third?", "x", before=(("First?", "Wrong."), ("Second?", "No.")))
    chat = exam.chat_of(one)
    assert [message["role"] for message in chat] == ["user", "assistant"] * 2 + ["user"]
    assert chat[0]["content"] == [{"type": "image"}, {"type": "text", "text": "First?"}]
    assert chat[1]["content"] == "Wrong." and chat[-1]["content"] == "Third?"


def test_constant_answers_are_what_guessing_gets():
    found = exam.constant_answers(20)
    assert 0.3 < found["size"] < 0.8 and found["detail"] == 0.0


def test_the_docs_tell_the_figures_that_were_measured():
    found = json.loads((ROOT / "benchmarks/results/quickstart_seeds.json").read_text())["spread"]
    page = (ROOT / "docs/quickstart.md").read_text()
    for condition, kinds in found.items():
        worst = min(spread["lowest"] for kind, spread in kinds.items() if kind != "mean")
        mean, lowest, highest, worst = (
            f"{100 * share:.1f}" for share in (*(kinds["mean"][n] for n in ("mean", "lowest", "highest")), worst)
        )
        assert f"| {condition} | {mean} | {lowest} to {highest} | {worst} |" in page
