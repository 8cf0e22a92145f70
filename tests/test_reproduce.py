"""The tables of the paper in miniature: their file, what each row trains on, what the report says, a small run."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from data_generation.microworld.questions import all_questions
from data_generation.microworld.scene import scenes
from data_generation.microworld.wordings import KINDS as QUESTIONS
from data_generation.microworld.wordings import REASONING
from recipes import reproduce
from recipes.micro.tables import KINDS, Row, chat_questions, choose, conclusion, plan, read_tables, with_answer_first
from recipes.micro.tables_report import JUDGED_KINDS, Found, findings, gather, told_circumstances, told_tables
from tests.test_readme import ROOT, command_problems


PATH = ROOT / "recipes/micro/tables.yaml"
SMALL = {
    "seeds": [0],
    "scenes": 30,
    "captioned": 20,
    "steps": 2,
    "questions_per_kind": 2,
    "judged": 3,
    "starts": {"mlp": {}, "smaller": {"layers": 2, "heal_steps": 2}},
    "data": {"full data": {}, "no instruction tuning": {"kinds": {}}},
    "model": {"smaller language model": {"start": "smaller"}, "answer first": {"answer_first": True}},
}


def written(folder: Path, **changes) -> Path:
    path = folder / "tables.yaml"
    path.write_text(yaml.safe_dump(SMALL | changes))
    return path


def test_the_file_has_the_rows_of_the_paper_and_a_command_that_is_one():
    tables = read_tables(PATH)
    assert len(tables.seeds) == 3 and len(tables.data) == 5 and len(tables.model) == 5
    assert tables.rows["conversation + 5 % detail + 10 % reasoning"].kinds == {
        "conversation": 1,
        "detail": 0.05,
        "reasoning": 0.1,
    }
    command = re.search(r"^# command:\n#   (.*)", PATH.read_text(), re.M)[1]
    assert not command_problems(command, ROOT)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"data": {"full data": {"kind": {}}}}, "`full data`: `kind` is not known. Wanted: kinds, start"),
        ({"data": {"full data": {"kinds": {"chat": 1}}}}, "no kind of data is called `chat`"),
        ({"model": {"odd": {"start": "none"}}}, "no start is called `none`. There are: mlp, smaller"),
        ({"model": {"full data": {}}}, "`full data` is in both tables"),
        ({"model": {"Full: data": {}}}, "two rows would have the folder `full-data`"),
        ({"data": {"full data": 3}}, "found 3, wanted names with values"),
        ({"sedes": [0]}, "`sedes` is not known"),
    ],
)
def test_a_wrong_file_is_told(tmp_path, changes, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        read_tables(written(tmp_path, **changes))


def test_rows_keep_their_share_of_each_kind(tmp_path):
    (tmp_path / "data").mkdir()
    kinds = [kind for kind in KINDS for _ in range(400)]
    said = "There is one ring and no crosses, so there are more rings."
    messages = [[{"role": "assistant", "content": [{"type": "text", "text": said}]}]] * len(kinds)
    pq.write_table(pa.table({"kind": kinds, "messages": messages}), tmp_path / "data/0.parquet")

    found = choose(tmp_path, Row({"conversation": 1, "reasoning": 0.1}), 0)["kind"].to_pylist()
    assert found.count("conversation") == 400 and found.count("detail") == 0 and 20 < found.count("reasoning") < 65
    assert choose(tmp_path, Row({"reasoning": 0.1}), 0).num_rows == found.count("reasoning")

    first = choose(tmp_path, Row(answer_first=True), 0)
    texts = {message["content"][0]["text"] for talk in first["messages"].to_pylist() for message in talk}
    assert texts == {"There are more rings: there is one ring and no crosses."}


def test_answers_with_reasons_turn_round_and_keep_their_conclusion():
    turned = 0
    for scene in scenes("test", 40):
        for question in all_questions(scene.things):
            other = with_answer_first(question.answer)
            assert (other != question.answer) == (question.kind in REASONING)
            if question.kind in REASONING:
                turned += 1
                assert conclusion(other) == conclusion(question.answer) != other.lower()
                assert sorted(re.findall(r"\w+", other.lower())) == sorted(
                    re.findall(r"\w+", question.answer.lower().replace(", so ", " "))
                )
    assert turned > 100


def test_the_judge_is_asked_about_each_kind_of_each_picture():
    found = chat_questions(30)
    assert len(found) == 90 and len({scene for scene, *_ in found}) == 30
    assert {kind: sum(kind == one for _, one, _ in found) for kind in KINDS} == dict.fromkeys(KINDS, 30)
    assert all(question.kind in KINDS[kind] for _, kind, question in found)


def figures(judged: float, exact: float, conclusions: float = 0.0) -> dict:
    kinds = {f"judged {kind}": judged for kind in JUDGED_KINDS} | dict.fromkeys(QUESTIONS, exact)
    return kinds | {"exact": exact, "blind": 10.0, "conclusions": conclusions}


def test_what_holds_is_what_holds_for_every_seed():
    found = Found(
        {
            "full data": [figures(90, 80, 50), figures(92, 82, 50)],
            "conversation": [figures(80, 70), figures(93, 70)],
            "no stage 1": [figures(50, 60), figures(50, 79)],
            "last layer": [figures(50, 85), figures(50, 81)],
            "answer first": [figures(50, 80, 50), figures(50, 80, 50)],
        }
    )
    said = list(findings(found))
    assert said == [
        "All kinds of data are better than conversations alone: undecided "
        "(relative score 91.0 ± 1.4 against 86.5 ± 9.2)",
        "Stage 1 helps: holds (exact 81.0 ± 1.4 against 69.5 ± 13.4)",
        "Features before the last layer are better than the last: does not hold (exact 81.0 ± 1.4 against 83.0 ± 2.8)",
        "Reasons first and then the answer are better than the answer first: does not hold "
        "(conclusions 50.0 ± 0.0 against 50.0 ± 0.0)",
    ]


@pytest.mark.slow
def test_a_small_run_ends_with_a_report_and_is_not_done_twice(tmp_path):
    config, out = written(tmp_path), tmp_path / "out"
    command = [sys.executable, "-m", "recipes.cli", "reproduce", "--config", str(config), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    tables = read_tables(config)
    found = gather(out, list(tables.rows), [0])
    assert all(0 <= share <= 100 for rows in found.by_row.values() for row in rows for share in row.values())
    (_, _, head, body), *_ = told_tables(found, tables)
    assert head[0] == "data" and [cells[0] for cells in body] == list(tables.data)
    report = (out / "report.md").read_text()
    assert all(name in report for name in tables.rows)
    assert re.search(r"\nTrained until \d{4}-\d\d-\d\dT\S+ on .+; commit \S+; .*torch \d\S+.*\.\n$", report)
    assert (out / "report.html").read_text().count("data:image/png") > 3
    smaller = json.loads((out / "seed-0/starts/smaller/stage1/config.json").read_text())
    assert smaller["text_config"]["num_hidden_layers"] == 2

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    again = subprocess.run([*command, "--rows", "full data"], capture_output=True, text=True, cwd=ROOT)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == before
    assert "answer first" not in (out / "report.md").read_text()

    # The log of a part that fails is told.
    (out / "seed-0/rows/full-data/row.json").unlink()
    (out / "seed-0/rows/full-data/stage2/model.safetensors").write_bytes(b"")
    failed = subprocess.run([*command, "--rows", "full data"], capture_output=True, text=True, cwd=ROOT)
    assert failed.returncode == 1 and "`seed-0/rows/full-data` failed" in failed.stderr.splitlines()[-1]


def test_a_folder_belongs_to_one_file(tmp_path):
    first = written(tmp_path)
    reproduce.check_config(tmp_path / "", first)
    (tmp_path / "other").mkdir()
    reproduce.check_config(tmp_path / "other", first)
    changed = written(tmp_path, steps=3)
    with pytest.raises(ValueError, match="was made with another tables.yaml"):
        reproduce.check_config(tmp_path / "other", changed)


def test_parts_wait_for_what_they_need(tmp_path):
    tables = read_tables(written(tmp_path))
    needs = plan(tables, ["full data", "smaller language model"], [0, 2])
    assert list(needs) == ["smaller/smaller"] + [
        f"seed-{seed}/{part}"
        for seed in (0, 2)
        for part in (
            *("data", "starts/mlp", "starts/smaller", "rows/full-data", "rows/smaller-language-model", "judge"),
        )
    ]
    assert needs["seed-2/starts/mlp"] == ["seed-2/data"]
    assert needs["seed-2/starts/smaller"] == ["seed-2/data", "smaller/smaller"]
    assert needs["seed-0/rows/full-data"] == ["seed-0/starts/mlp"]
    assert needs["seed-0/judge"] == ["seed-0/rows/full-data", "seed-0/rows/smaller-language-model"]


def test_the_docs_tell_the_figures_that_were_measured():
    results = json.loads((ROOT / "benchmarks/results/reproduce.json").read_text())
    found, page = Found(results["rows"]), (ROOT / "docs/reproduce.md").read_text()
    assert told_circumstances(results) in page.replace("\n", " ")
    tables = read_tables(PATH)
    for _, text, _, body in told_tables(found, tables):
        assert text in page
        assert all(f"| {' | '.join(cells)} |" in page for cells in body)
    assert all(f"- {finding}" in page for finding in findings(found))
