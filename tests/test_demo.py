"""`llava demo`: what it does with a question, and whom it lets in."""

import random
import threading
from pathlib import Path

import pytest
from PIL import Image

from recipes import cli, demo
from recipes.talking.demo_talks import EXAMPLES, scene, spaced
from recipes.talking.talker import Said
from tests.talking import LONG, QUESTION, expected, last
from tests.talking import folder as folder
from tests.talking import talkers as talkers
from tests.talking import talks as talks


def test_both_checkpoints_answer_each_in_its_own_conversation(folder, talks):
    session = talks.session()
    turns = [(QUESTION, [folder / "red.png", folder / "blue.png"]), ("And now?", [])]
    said = []
    for text, paths in turns:
        talks.ask(session, "me", f" {text}\n", list(map(str, paths)))
        said.append(last(talks.answers(session, "me", 0, 99)))  # more than `most_tokens`
    for number, talker in enumerate(talks.talkers.values()):
        assert [both[number] for both in said] == expected(talker, turns, 20)
        assert len(session.conversations[number].pictures) == 2
    assert said[0][0] != said[0][1] and not talks.running

    talks.again(session, "me")
    assert last(talks.answers(session, "me", 0, 20)) == said[1]
    assert len(session.conversations[0].messages) == 4
    talks.again(session, "me")
    assert last(talks.answers(session, "me", 1.5, 20)) != said[1]


def test_a_growing_answer_is_shown_now_and_then_and_at_its_end():
    now = iter([0, 0, 1, 2, 3, 3, 4, 5])  # looked at before and, where one is shown, after
    assert list(spaced(iter("abcdef"), 3, lambda: next(now))) == ["a", "d", "f"]
    assert list(spaced(iter(()), 3)) == [] and list(spaced(iter("ab"), 0)) == ["a", "b"]


def test_who_leaves_early_keeps_what_was_said(folder, talks):
    session, running = talks.session(), threading.active_count()
    talks.ask(session, "me", QUESTION, [])
    answers = talks.answers(session, "me", 0, 20)
    for said in answers:
        if all(one.text for one in said):
            break
    assert list(talks.running) == ["me"] and threading.active_count() == running + 2
    answers.close()
    assert not talks.running and threading.active_count() == running
    assert [one.messages[-1]["content"][0]["text"] for one in session.conversations] == [one.text for one in said]


def test_stopping_ends_both(talks):
    session = talks.session()
    talks.most_tokens = LONG
    talks.ask(session, "me", QUESTION, [])
    for said in talks.answers(session, "me", 0, LONG):
        talks.stop("another")
        if all(one.text for one in said):
            talks.stop("me")
    assert [one.ended for one in said] == ["interrupted"] * 2
    talks.stop("me")  # nothing is running


@pytest.mark.parametrize(
    "name, problem",
    [
        ("broken.png", "Image `broken.png`"),
        ("huge.png", "Image `huge.png`"),
        ("wide.png", r"Image `wide.png` .*2,000,000"),
        ("none.png", "No such file"),
    ],
)
def test_what_is_no_picture_changes_nothing(folder, talks, name, problem):
    session = talks.session()
    with pytest.raises((ValueError, OSError), match=problem):
        talks.ask(session, "me", QUESTION, [str(folder / "red.png"), str(folder / name)])
    assert session == talks.session() or not any(one.messages or one.waiting for one in session.conversations)
    with pytest.raises(ValueError, match="There is no question"):
        talks.ask(session, "me", "  ", [])
    with pytest.raises(ValueError, match="Nothing has been asked"):
        talks.again(session, "me")


def test_a_question_that_does_not_fit_changes_nothing(folder, talks):
    session = talks.session()
    talks.ask(session, "me", QUESTION, [])
    before = last(talks.answers(session, "me", 0, 5))
    with pytest.raises(ValueError, match="tokens with this question"):
        talks.ask(session, "me", "word " * 3 * LONG, [str(folder / "red.png")])
    for conversation, text in zip(session.conversations, before, strict=True):
        assert len(conversation.messages) == 2 and not conversation.waiting and not conversation.pictures
        assert conversation.messages[1]["content"][0]["text"] == text
    talks.ask(session, "me", QUESTION, [])


def test_a_question_waits_for_the_end_of_the_answer_before(talks):
    session = talks.session()
    talks.ask(session, "me", QUESTION, [])
    for again in (lambda: talks.ask(session, "me", "And now?", []), lambda: talks.again(session, "me")):
        with pytest.raises(ValueError, match="still being answered"):
            again()
    talks.ask(talks.session(), "another", QUESTION, [])
    said = last(talks.answers(session, "me", 0, 5))
    assert all(said) and [len(one.messages) for one in session.conversations] == [2, 2]
    talks.again(session, "me")


@pytest.mark.parametrize("how", ["stop", "leave"])
def test_an_answer_that_nobody_waits_for_is_not_begun(talks, how):
    session, running = talks.session(), threading.active_count()
    talks.ask(session, "me", QUESTION, [])
    getattr(talks, how)("me")
    ((one, other),) = talks.answers(session, "me", 0, LONG)
    assert one == other == Said("", "interrupted") and threading.active_count() == running and not talks.running
    talks.ask(session, "me", QUESTION, [])


def test_scenes_are_unseen_and_asked_about(tmp_path):
    for kind, number in EXAMPLES:
        question, path = scene(random.Random(number), tmp_path, kind, number)
        assert question and Path(path).name == f"microworld-test-0-{number:06}.png"
        assert Image.open(path).size == (720, 720)
    assert scene(random.Random(3), tmp_path) == scene(random.Random(3), tmp_path)


@pytest.mark.parametrize(
    "words, problem",
    [
        ([], "There is no `runs/quickstart/stage2`. Make it with `make quickstart`"),
        (["--model", "first", "--compare", "first"], "--compare first is the checkpoint of --model too"),
        (["--model", "red.png"], "has no config.json"),
    ],
)
def test_what_cannot_be_served_is_told(folder, monkeypatch, capsys, words, problem):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(demo, "find_spec", lambda _: True)
    assert cli.main(["demo", *words]) == 1
    assert problem in capsys.readouterr().err.splitlines()[-1]


def test_gradio_that_is_missing_is_told(monkeypatch, capsys):
    monkeypatch.setattr(demo, "find_spec", lambda _: None)
    assert cli.main(["demo"]) == 1
    assert 'needs gradio, which is not installed: pip install -e ".[demo]"' in capsys.readouterr().err


def test_nothing_but_a_browser_on_this_machine_is_let_in_by_default(capsys):
    assert demo.parser().parse_args([]).host == "127.0.0.1"
    with pytest.raises(SystemExit):
        demo.parser().parse_args(["--share"])
    assert "unrecognized arguments: --share" in capsys.readouterr().err
