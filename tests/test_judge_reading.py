"""What `llava judge` reads: replies, files and rows, the answers that are missing, reviews of the original."""

import re
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_generation.exchange import Reply
from data_generation.judging import read_verdict
from data_generation.rejections import Rejected
from recipes.cli import main as llava
from tests.judging import answers, conversation, error_of, plain_bench, run, write_jsonl
from tests.judging import key as key
from tests.openai_server import FakeServer
from tests.teaching import says


# -- what a reply says --


@pytest.mark.parametrize(
    "text, scores",
    [
        ("8 9\nBecause.", (8, 9)),
        ("8.5 9.25", (8.5, 9.25)),
        ("8, 9\n", (8, 9)),
        ("8,9", (8, 9)),
        ("\n\n  **7 10**  \r\nBoth.", (7, 10)),
        ("<think>5 5\nor 6 6?</think>\n\n6 6", (6, 6)),
    ],
)
def test_scores_are_read(text, scores):
    found = read_verdict(Reply("k", text=text, finish_reason="stop"))
    assert (found.first, found.second) == scores


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "empty-reply"),
        ("<think>8 9</think>", "empty-reply"),
        ("<think>8 9", "no-scores"),
        ("I like both.", "no-scores"),
        ("8", "no-scores"),
        ("8 9 7", "no-scores"),
        ("8,5 9,5", "no-scores"),
        ("8/10 9/10", "no-scores"),
        ("Assistant 1: 8\nAssistant 2: 9", "no-scores"),
        ("Scores:\n8 9", "no-scores"),
        ("-1 -1", "no-scores"),
        ("nan nan", "no-scores"),
        ("1e1 2", "no-scores"),
        ("٨ ٩", "no-scores"),
        ("0 5", "score-out-of-range"),
        ("85 90", "score-out-of-range"),
        ("10 10.5", "score-out-of-range"),
    ],
)
def test_what_is_no_score_is_no_score(text, reason):
    with pytest.raises(Rejected) as rejected:
        read_verdict(Reply("k", text=text, finish_reason="stop"))
    assert rejected.value.reason == reason


def test_a_cut_reply_counts_if_its_first_line_is_whole():
    assert read_verdict(Reply("k", text="8 10\nBecau", finish_reason="length")).second == 10
    for text, finish, refusal, reason in (
        ("8 1", "length", "", "truncated"),
        ("8 9\n", "content_filter", "", "filtered"),
        ("8 9", "stop", "I will not.", "refusal"),
    ):
        with pytest.raises(Rejected) as rejected:
            read_verdict(Reply("k", text=text, finish_reason=finish, refusal=refusal))
        assert rejected.value.reason == reason


@given(st.one_of(st.text(), st.text("0123456789., \n*-/", max_size=12)))
def test_no_text_gives_scores_beyond_the_scale(text):
    try:
        found = read_verdict(Reply("k", text=text))
    except Rejected:
        return
    assert 1 <= found.first <= 10 and 1 <= found.second <= 10
    assert len(re.findall(r"[0-9.]+", text.strip().splitlines()[0])) == 2


# -- files --


def test_a_data_set_of_ours_is_its_own_reference(tmp_path):
    boxes = [{"label": "cat", "box": [0.1, 0.2, 0.6, 0.9]}]
    rows = [
        conversation("x", ("What?", "A cat."), kind="conversation", captions=["A cat."], boxes=boxes),
        conversation("y", ("Who?", "A dog."), ("And then?", "It runs."), kind="detail", image_id=["7"]),
    ]
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    context = write_jsonl(tmp_path / "scenes.jsonl", [{"id": "7", "image": "seven.jpg", "captions": ["A dog runs."]}])
    candidate = answers(tmp_path / "a.jsonl", {"x": "A cat!", "y": "A hen.", "y#2": "It flies."})
    words = ["judge", "--data", f"{data}", "--context", f"{context}", "--answers", f"{candidate}", "--model", "m"]
    with FakeServer(faults=[says("8 4")]) as server:
        found = run(words, server.url, tmp_path / "out", "--orders", "one")
        asked = sorted(text for _, _, text in server.stats()["seen"])
    assert {kind: one["questions"] for kind, one in found["candidates"]["a"]["scores"].items()} == {
        "conversation": 1,
        "detail": 2,
        "all": 3,
    }
    assert asked[0].startswith(
        "[Context]\nA cat.\n\ncat: [0.1, 0.2, 0.6, 0.9]\n\n[Question]\nWhat?\n\n[Assistant 1]\nA cat.\n"
    )
    assert asked[2].startswith("[Context]\nA dog runs.\n\n[Question]\nWho?\n(answered: A dog.)\nAnd then?\n\n[Assist")
    assert "[Assistant 1]\nIt runs.\n[End of Assistant 1]\n\n[Assistant 2]\nIt flies.\n" in asked[2]


def test_missing_answers_are_an_error_or_shown(tmp_path, capsys):
    words = [*plain_bench(tmp_path), "--allow-missing"]
    answers(tmp_path / "a.jsonl", {0: "cand 0"})
    answers(tmp_path / "b.jsonl", {0: "b 0", 1: "b 1", 2: "b 2"})
    words[words.index(str(tmp_path / "a.jsonl")) : -3] = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    with FakeServer(faults=[says("8 6")]) as server:
        out = ["--base-url", server.url, "--out", str(tmp_path / "out")]
        error = error_of([*words[:-1], *out], capsys)
        assert "`a.jsonl` has no answer to 2 of 3 questions, the first `1`" in error.replace(f"{tmp_path}/", "")
        found = run(words, server.url, tmp_path / "out")["candidates"]
        assert server.stats()["total"] == 8
    assert (found["a"]["missing"], found["b"]["missing"]) == (2, 0)
    assert (found["a"]["scores"]["all"]["questions"], found["b"]["scores"]["all"]["questions"]) == (1, 3)
    assert "a: 2 questions have no answer" in capsys.readouterr().out
    answers(tmp_path / "reference.jsonl", {0: "ref 0", 1: "ref 1"})
    with FakeServer(faults=[says("8 6")]) as server:
        results = run(words, server.url, tmp_path / "less")
    assert (results["questions"]["number"], results["questions"]["without_reference"]) == (2, 1)


BAD_FILES = [
    ("questions", "", "is empty"),
    ("questions", '{"question_id": 1, "text": "?"\n', "line 1: no JSON"),
    ("questions", "[1]", "wanted one JSON object"),
    ("questions", '{"text": "what?"}', "`question_id` is no such field among text"),
    ("questions", '{"question_id": true, "text": "what?"}', "`question_id` is True"),
    ("questions", '{"question_id": 1}', "`text` is no such field"),
    ("questions", '{"question_id": 1, "text": 3}', "`text` is 3"),
    ("questions", '{"question_id": 1, "text": "\\ud800"}', "half a surrogate pair"),
    ("questions", '{"question_id": 1, "text": "?", "image": ["a", "b"]}', "wanted the name of one picture"),
    ("questions", '{"question_id": 1, "text": "?", "category": "all"}', "the name of the row of all kinds"),
    (
        "questions",
        '{"question_id": 1, "text": "?"}\n{"question_id": "1", "text": "?"}',
        "line 2: `question_id` is `1`",
    ),
    ("context", '{"image": "0.jpg", "caption": "a"}', "2 of 3 questions have no context, the first `1` about `1.jpg`"),
    ("context", '{"image": "0.jpg"}', "neither `captions` nor boxes"),
    ("context", '{"captions": ["a"]}', "neither `image` nor `id`"),
    ("context", '{"image": "0.jpg", "captions": [3]}', "a caption is 3"),
    ("context", '{"image": "0.jpg", "caption": "a"}\n{"image": "0.jpg", "caption": "b"}', "line 2: `image` is"),
    ("context", '{"image": "0.jpg", "instances": [{"category": "cat", "bbox": [1]}]}', "wanted a name and four"),
    ("context", '{"image": "0.jpg", "instances": [{"category": "cat"}]}', "wanted objects with `category`"),
    ("reference", '{"question_id": 0, "text": " "}', "reference answer to `0` is empty"),
    ("reference", '{"question_id": 0, "text": "a"}', "has no answer to 2 of 3 questions, the first `1`"),
    ("a", '{"question_id": 9, "text": "a"}', "answers 1 questions that are not asked, the first `9`"),
    ("a", '{"question_id": 0, "text": "a"}\n{"question_id": 0, "text": "b"}', "as in an earlier line"),
    ("a", '{"question_id": 0, "text": null}', "`text` is None"),
    ("a", "version https://git-lfs.github.com/spec/v1", "line 1: no JSON"),
    ("a", b'{"question_id": 0, "text": "\xff"}', "Save the file as UTF-8"),
    ("a", None, "is no file"),
]


@pytest.mark.parametrize("name, content, words", BAD_FILES)
def test_a_bad_file_is_named(tmp_path, capsys, name, content, words):
    command = plain_bench(tmp_path)
    path = tmp_path / f"{name}.jsonl"
    path.unlink()
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    error = error_of([*command, "--base-url", "http://127.0.0.1:9/v1", "--out", str(tmp_path / "out")], capsys)
    assert words in error and (f"{name}.jsonl" in error) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "row, words",
    [
        ({"id": "x"}, "no list `messages`"),
        (conversation("x", ("What?", "")), "a message without words"),
        ({"id": "x", "messages": [{"role": "user", "content": "What?"}]}, "wanted user and assistant in turn"),
        (conversation("x", ("What?", "A cat.")), "no context, the first `x` about `1.jpg`"),
        (conversation("", ("What?", "A cat.")), "`id` is ''"),
    ],
)
def test_a_bad_row_is_named(tmp_path, capsys, row, words):
    data = write_jsonl(tmp_path / "data.jsonl", [row])
    flags = ["judge", "--data", f"{data}", "--answers", "a.jsonl", "--model", "m", "--out", f"{tmp_path / 'out'}"]
    assert words in error_of(flags, capsys)


def test_candidates_of_one_name_are_told_apart(tmp_path, capsys):
    words = plain_bench(tmp_path)
    (tmp_path / "more").mkdir()
    shutil.copy(tmp_path / "a.jsonl", tmp_path / "more" / "a.jsonl")
    place = words.index(str(tmp_path / "a.jsonl")) + 1
    words.insert(place, str(tmp_path / "more" / "a.jsonl"))
    with FakeServer(faults=[says("8 6")]) as server:
        found = run(words, server.url, tmp_path / "out")["candidates"]
        assert server.stats()["total"] == 6  # the same answers are judged once
    assert list(found) == [f"{tmp_path.name}/a", "more/a"]
    words[place] = words[place - 1]
    assert "names" in error_of([*words, "--out", str(tmp_path / "out")], capsys)


# -- old reviews --


OLD = [
    ("llava_bench_conv", [8.0, 7.0]),
    ("llava_bench_conv", [9.0, 6.5]),
    ("llava_bench_detail", [-1, -1]),
    ("llava_bench_detail", [7.0, 3.0]),
    ("llava_bench_detail", [8.0, 8.0]),
]


def test_reviews_of_the_original(tmp_path, capsys):
    rows = [{"id": n + 1, "question_id": n, "category": kind, "tuple": pair} for n, (kind, pair) in enumerate(OLD)]
    path = write_jsonl(tmp_path / "old.jsonl", rows)
    assert llava(["judge", "--summarize", str(path), "--legacy-scores"]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert table[1:] == [
        ["old", "all", "75.8", "62.0", "47.0", "5"],
        ["old", "llava_bench_conv", "79.4", "85.0", "67.5", "2"],
        ["old", "llava_bench_detail", "71.4", "46.7", "33.3", "3"],
    ]
    assert llava(["judge", "--summarize", str(path)]) == 0
    shown = capsys.readouterr().out
    table = [line.split() for line in shown.splitlines()]
    # Without the pair of -1: 11 / 15, and 24.5 / 32 of all.
    assert table[2][:3] == ["old", "llava_bench_detail", "73.3"] and table[3][:3] == ["old", "all", "76.6"]
    assert "old: 1 of 5 replies had no scores that count: no-scores 1" in shown
    # Reviews of text alone have `score` and no category.
    text = write_jsonl(tmp_path / "text.jsonl", [{"question_id": 1, "score": [8, 6]}])
    assert llava(["judge", "--summarize", str(text)]) == 0 and "75.0" in capsys.readouterr().out
    twice = write_jsonl(tmp_path / "twice.jsonl", rows[:1] * 2)
    assert "question `0` is reviewed 2 times" in error_of(["judge", "--summarize", str(twice)], capsys)
    assert llava(["judge", "--summarize", str(twice), "--legacy-scores"]) == 0
    bad = write_jsonl(tmp_path / "bad.jsonl", [{"question_id": 1, "tuple": [8]}])
    assert "`tuple` is [8]" in error_of(["judge", "--summarize", str(bad)], capsys)


def test_our_reviews_give_our_table(tmp_path, capsys):
    words = plain_bench(tmp_path, count=6)
    faults = [{"match": "[Assistant 1]\ncand 1", **says("No.")}, {"match": "what 2?", **says("9 5")}, says("8 6.5")]
    with FakeServer(faults=faults) as server:
        run(words, server.url, tmp_path / "out", "--attempts", "1")
    table = capsys.readouterr().out.split("replies about")[0].splitlines()
    assert llava(["judge", "--summarize", str(tmp_path / "out" / "reviews.jsonl")]) == 0
    again = capsys.readouterr().out.splitlines()
    assert again[: len(table)] == table and "no-scores 1" in again[-1] and len(table) > 5
