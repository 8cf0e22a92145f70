"""Both ensembles of the paper over real HTTP, on the twelve problems of the score, with tables worked out by hand."""

import json
import re
import shutil
import signal
import subprocess
import sys

import pytest

from data_generation.rejections import Counts
from data_generation.scienceqa import read_problems
from data_generation.scienceqa_ensemble import FOLDER, first_request, load_prompts, second_request
from data_generation.scienceqa_scores import read_letter
from recipes.cli import main as llava
from tests.openai_server import FakeServer
from tests.teaching import says
from tests.test_scienceqa_score import FACTS, SAID, write_answers, write_problems


REFUSED = {"status": 400, "error": {"message": "no such content"}}
# The text model's first and second answers. Ours are right on 1, 2, 3, 4, 8, 10 and 12.
FIRST = {
    "1": says("So. The answer is A."),  # right, as ours
    "2": says("The answer is A."),  # wrong, ours is right
    "3": says("It depends on the picture.\nNo answer."),
    "4": says("The answer is D."),  # right, as ours
    "5": says("The answer is B."),  # right, ours is wrong
    "6": says("The answer is A."),  # right, ours is none
    "7": REFUSED,  # none, as ours
    "8": says("The answer is A."),  # wrong, ours is right
    "9": says("The answer is B."),  # wrong, ours is none
    "10": says("The answer is D."),  # right, as ours
    "11": says("The answer is ", "length"),  # none, ours is wrong
    "12": says("The answer is A."),  # right, as ours
}
SECOND = {
    "2": says("The answer is B."),  # right
    "3": says("The answer is A."),  # wrong, ours was right
    "5": says("The answer is B."),  # right
    "6": says("Who knows."),  # none, ours is none: theirs, right
    "8": says("A or B."),  # none: ours, right
    "9": says("The answer is A."),  # right
    "11": REFUSED,  # none: ours, wrong
}
COMPLEMENT = """\
               NAT     SOC     LAN     TXT     IMG      NO    G1-6   G7-12     avg
ours        100.00    0.00   50.00   40.00   60.00   75.00   66.67   50.00   58.33
text-only    60.00   66.67   25.00   40.00   40.00   50.00   16.67   83.33   50.00
complement   80.00   66.67   25.00   60.00   60.00   50.00   33.33   83.33   58.33
problems         5       3       4       5       5       4       6       6      12
upper bound, one of the two is right: 75.00 % (9 of 12)
without an option: ours 3, text-only 3, complement 1
the two differ on 7
"""
JUDGE = """\
judge       80.00   66.67   75.00   60.00   60.00   75.00   50.00  100.00   75.00
problems        5       3       4       5       5       4       6       6      12
upper bound, one of the two is right: 75.00 % (9 of 12)
without an option: ours 3, text-only 3, judge 1
the two differ on 7; asked again, it named an option for 4
"""


def faults() -> list[dict]:
    """Each once, in order: what the first request of a problem gets, and what its second."""
    return [
        {"match": f"number {name}?", "times": 1, **what} for said in (FIRST, SECOND) for name, what in said.items()
    ]


@pytest.fixture
def command(tmp_path):
    predictions = write_answers(tmp_path / "ours.jsonl")
    flags = [*write_problems(tmp_path), "--predictions", predictions, "--out", f"{tmp_path}/out"]

    def words(scheme, server=None):
        url = "http://127.0.0.1:9/v1" if server is None else server.url
        return ["scienceqa", "ensemble", scheme, *flags, "--model", "m", "--base-url", url, "--server", "here"]

    return words


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_both_schemes_give_the_tables_of_the_hand(tmp_path, command, capsys):
    with FakeServer(faults=faults()) as server:
        assert llava(command("complement", server)) == 0
        out = capsys.readouterr().out
        assert COMPLEMENT in out
        assert "baseline: 1 failed-http-400, the first is `7`: " in out and "baseline: 1 cut-off" in out
        assert server.stats()["total"] == 11  # the refused one is not billed

        # What is in the ledger is not asked again; what was refused is, for it may have been the server's fault.
        assert llava(command("judge", server)) == 0
        out = capsys.readouterr().out
        assert JUDGE in out and "second: 1 failed-http-400, the first is `11`" in out
        assert server.stats()["total"] == 11 + 1 + 6
    asked = [row["question_id"] for row in lines(tmp_path / "out/second.jsonl")]
    assert asked == ["2", "3", "5", "6", "8", "9", "11"]
    found = {row["question_id"]: row for row in lines(tmp_path / "out/judge.jsonl")}
    assert {name: row["text"] for name, row in found.items()} == dict(
        zip(FACTS, ["A", "B", "A", "D", "B", "A", "", "B", "A", "D", "B", "A"], strict=True)
    )
    assert found["3"]["metadata"] == {"ours": "C", "text_only": None, "second": "A"}
    assert found["4"]["metadata"] == {"ours": "D", "text_only": "D", "second": None}
    result = json.loads((tmp_path / "out/judge.json").read_text())
    assert result["differ"] == ["2", "3", "5", "6", "8", "9", "11"]
    assert result["upper_bound"] == {"problems": 12, "right": 9, "accuracy": 75.0}
    assert result["answers"]["judge"]["scores"]["SOC"] == {"problems": 3, "right": 2, "accuracy": 200 / 3}
    assert result["answers"]["ours"]["problems"]["6"]["form"] == "nothing"
    assert result["second"] == {"asked": 7, "forms": {"sentence": 4, "nothing": 3}}
    capsys.readouterr()
    flags = command("judge", server)[3:9]
    predictions = ["--predictions", f"{tmp_path}/out/judge.jsonl", "--out", f"{tmp_path}/r.json"]
    assert llava(["scienceqa", "score", *flags, *predictions]) == 0
    assert (
        "correct %   80.00   66.67   75.00   60.00   60.00   75.00   50.00  100.00   75.00" in capsys.readouterr().out
    )


def words_of(fault) -> str:
    return fault["patch"]["choices"][0]["message"]["content"] if "patch" in fault else ""


def test_a_baseline_that_is_there_is_not_asked_for(tmp_path, command, capsys):
    (tmp_path / "gpt.json").write_text(json.dumps({"outputs": {name: words_of(one) for name, one in FIRST.items()}}))
    offline = [*command("complement")[:-6], "--baseline", f"{tmp_path}/gpt.json"]
    assert llava(offline) == 0
    assert COMPLEMENT in capsys.readouterr().out
    assert not (tmp_path / "out/ledger.sqlite").exists()
    with FakeServer(faults=faults()[len(FIRST) :]) as server:
        assert llava([*command("judge", server), "--baseline", f"{tmp_path}/gpt.json"]) == 0
        assert JUDGE in capsys.readouterr().out
        assert server.stats()["total"] == 6


def test_two_that_agree_need_no_judge(tmp_path, command, capsys):
    assert llava([*command("judge"), "--baseline", f"{tmp_path}/ours.jsonl"]) == 0
    assert "the two differ on 0\n" in capsys.readouterr().out
    assert (tmp_path / "out/second.jsonl").read_text() == ""


def test_what_either_file_lacks_is_left_out(tmp_path, command, capsys):
    write_answers(tmp_path / "ours.jsonl", {name: text for name, text in SAID.items() if name != "5"})
    theirs = {name: words_of(one) for name, one in FIRST.items() if name != "2"}
    flags = [*command("complement"), "--baseline", write_answers(tmp_path / "gpt.jsonl", theirs)]
    assert llava(flags) == 1
    assert "lacks 1 of 12 problems: `5`" in capsys.readouterr().err
    assert llava([*flags, "--allow-missing"]) == 0
    out = capsys.readouterr().out
    # Of the table above 5 is right and 2 wrong: 6 of 10 are left, and 4 of 4 of natural science.
    assert "not answered, and left out: 2: `2`, `5`" in out
    assert out.splitlines()[3].startswith("complement  100.00") and out.splitlines()[3].endswith("60.00")
    write_answers(tmp_path / "gpt.jsonl", {"5": "A"})
    assert llava([*flags, "--allow-missing"]) == 1
    assert "answer no problem together" in capsys.readouterr().err


def test_what_is_sent(tmp_path):
    folder = tmp_path / "prompts"
    shutil.copytree(FOLDER, folder)
    (folder / "second_system.txt").write_text("Decide.\n")
    prompts = load_prompts(folder)
    assert prompts.first == load_prompts().first and prompts.version != load_prompts().version
    write_problems(tmp_path)
    problems = {one.id: one for one in read_problems(Counts(), tmp_path, "test")}
    request = first_request(problems["1"], prompts, {"model": "m"})
    roles = [message["role"] for message in request.body["messages"]]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]
    question = "Question number 1?\nContext: H.\nOptions: (A) option A (B) option B"
    assert request.body["messages"][-1]["content"] == question
    sent = [second_request(one, "ours", " ", prompts, {"model": "m"}).body["messages"] for one in problems.values()]
    assert sent[0][0] == {"role": "system", "content": "Decide."}
    ours_first = sum(
        messages[-1]["content"].endswith("First answer:\nours\n\nSecond answer:\n(no answer)") for messages in sent
    )
    theirs_first = sum(
        messages[-1]["content"].endswith("First answer:\n(no answer)\n\nSecond answer:\nours") for messages in sent
    )
    assert ours_first + theirs_first == 12 and ours_first and theirs_first
    request = second_request(problems["1"], "ours", " ", prompts, {"model": "m"})
    assert request.body["messages"][-1]["content"].startswith(f"{question}\n\nFirst answer:")


def test_our_examples_are_of_the_form_that_is_asked_for():
    for question, reply in load_prompts().shots:
        assert re.search(r"\nContext: .*\nOptions: \(A\)", question)
        assert read_letter(reply, question.count("(")).form == "sentence"
        assert reply.splitlines()[-1].startswith("The answer is ")


def test_what_cannot_be_done_is_said(tmp_path, command, capsys):
    def error(words) -> str:
        assert llava(words) == 1
        return capsys.readouterr().err

    assert "--model has to name" in error(command("judge")[:-6])
    assert "cannot be read" in error([*command("judge"), "--prompts", f"{tmp_path}/nowhere"])
    shutil.copytree(FOLDER, tmp_path / "prompts")
    (tmp_path / "prompts/000_reply.txt").write_text("It is C.")
    assert "000_reply.txt` has no `The answer is B.`" in error([*command("judge"), "--prompts", f"{tmp_path}/prompts"])
    (tmp_path / "prompts/000_reply.txt").write_text("")
    assert "000_reply.txt` is empty" in error([*command("judge"), "--prompts", f"{tmp_path}/prompts"])
    (tmp_path / "gpt.jsonl").write_text('{"question_id": "1", "text": "A"}')
    assert "lacks 11 of 12 problems" in error([*command("complement"), "--baseline", f"{tmp_path}/gpt.jsonl"])
    write_answers(tmp_path / "ours.jsonl", SAID | {"2": "\ud83d"})
    with FakeServer(faults=faults()) as server:
        assert "The answer to problem `2` cannot be shown" in error(command("judge", server))
        write_answers(tmp_path / "ours.jsonl")
        stopped = error([*command("complement", server), "--max-requests", "3", "--out", f"{tmp_path}/other"])
        assert "max_requests: 4 requests" in stopped and "the same command goes on from here" in stopped
        assert not (tmp_path / "other/baseline.jsonl").exists()
    (tmp_path / "file").write_text("")
    assert "is a file. Name a folder" in error([*command("judge"), "--out", f"{tmp_path}/file"])


def test_after_ctrl_c_the_same_command_goes_on(tmp_path, command, capsys):
    # The answer to the seventh problem comes after the signal; nothing else of what happens depends on time.
    slow = [{"match": "number 7?", "seconds": 3}]
    with FakeServer(faults=slow, latency=0) as server:
        words = [*command("complement", server), "--concurrency", "1"]
        program = "import sys; from recipes.cli import main; sys.exit(main())"
        process = subprocess.Popen([sys.executable, "-c", program, *words], stdout=subprocess.PIPE, text=True)
        while server.stats()["requests"] < 7:
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 130
        assert "Nothing that was answered is lost: the same command goes on from here." in out
        assert 7 <= server.stats()["total"] < 12 and not (tmp_path / "out/baseline.jsonl").exists()
        assert llava(words) == 0
        assert (server.stats()["total"], server.stats()["twice"]) == (12, 0)
