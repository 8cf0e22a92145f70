"""Replies: read, refused with a reason, never a crash, and given back as they were."""

import json

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from data_generation.checks import LIMITS
from data_generation.parsing import parse, render
from data_generation.rejections import Rejected


BLOCKS = (
    "Question:\nWhat is it?\n===\nAnswer:\nA cat.\n\nIt sleeps.\n===\nQuestion:\nWhere is it?\n===\nAnswer:\nOn a rug."
)
TURNS = [("What is it?", "A cat.\n\nIt sleeps."), ("Where is it?", "On a rug.")]
LONG = "The cat lies on a rug that is spread on the floor of a large room, and it is fast asleep in the sun."


def reason(kind, text, **arguments):
    if kind == "detail":
        arguments.setdefault("question", "Describe it.")
    with pytest.raises(Rejected) as rejection:
        parse(kind, text, **arguments)
    return rejection.value.reason


def test_blocks_are_read():
    assert parse("conversation", BLOCKS) == TURNS
    assert render("conversation", TURNS) == BLOCKS


@pytest.mark.parametrize(
    "text",
    [
        BLOCKS.replace("\n", "\r\n"),
        f"\n\n  {BLOCKS}\n===\n\n",
        BLOCKS.replace("===\n", ""),
        BLOCKS.replace("===", "====="),
        BLOCKS.replace("Question:\n", "**Question:** ").replace("Answer:\n", "### Answer: "),
        BLOCKS.replace("Question:", "question 1 :").replace("Answer:", "ANSWER 1:"),
    ],
)
def test_small_liberties_of_the_writer_are_allowed(text):
    assert parse("conversation", text) == TURNS


@pytest.mark.parametrize(
    "text, expected",
    [
        ("A cat on a rug.", "bad-structure"),
        (f"Here is the conversation.\n\n{BLOCKS}", "bad-structure"),
        (BLOCKS.replace("On a rug.", "On a\n===\nrug."), "bad-structure"),
        (f"{BLOCKS}\n===\nQuestion:\nWhy?", "not-alternating"),
        (BLOCKS.replace("Question:\nWhere", "Answer:\nWhere"), "not-alternating"),
        (BLOCKS.replace("A cat.\n\nIt sleeps.", ""), "empty-turn"),
        (BLOCKS.replace("What is it?", " "), "empty-turn"),
        (BLOCKS.replace("Where", "What"), "repeated-question"),
        (BLOCKS.replace("On a rug.", "x" * 4001), "too-long"),
        (BLOCKS.replace("What is it?", "x?"), "too-short"),
        (
            "\n===\n".join([BLOCKS.replace("What", f"What {n}").replace("Where", f"Where {n}") for n in range(11)]),
            "too-many-turns",
        ),
        ("I'm sorry, but I can't help with that.", "refusal"),
        ("I’m unable to see images.", "refusal"),
        (BLOCKS.replace("On a rug.", "Sorry, I cannot see that."), "refusal"),
        (BLOCKS.replace("On a rug.", "As an AI, I do not know."), "refusal"),
        ("half \ud83d", "bad-unicode"),
        ("", "empty-reply"),
        (None, "empty-reply"),
    ],
)
def test_a_bad_conversation_is_refused_with_its_reason(text, expected):
    assert reason("conversation", text) == expected


@pytest.mark.parametrize(
    "finish_reason, expected",
    [
        ("length", "truncated"),
        ("max_tokens", "truncated"),
        ("content_filter", "filtered"),
        ("tool_calls", "odd-finish"),
    ],
)
def test_an_unfinished_reply_is_refused_whatever_it_says(finish_reason, expected):
    assert reason("conversation", BLOCKS, finish_reason=finish_reason) == expected
    assert parse("conversation", BLOCKS, finish_reason=None) == TURNS


@pytest.mark.parametrize(
    "words",
    [
        "The captions say that it is a cat.",
        "According to the caption, it is asleep.",
        "Based on the provided descriptions, it is asleep.",
        "Its bounding box is on the left.",
        "As mentioned in the captions, it is asleep.",
        "The cat, as described in the annotations, sleeps.",
        "It is at [0.123, 0.5, 0.7, 0.9].",
        "It reaches from (0.12, 0.4) to the edge.",
        "The coordinates show that it is on the left.",
        "From the coordinates it can be told that it lies left.",
        "Its normalized coordinates are on the left.",
        "The given sentences leave that open.",
        "One of the captions mentions a rug. The caption does not say more.",
    ],
)
@pytest.mark.parametrize("kind", ["detail", "reasoning"])
def test_a_reply_that_names_its_source_is_refused(kind, words):
    text = f"{LONG} {words}"
    assert reason(kind, text if kind == "detail" else f"Question:\nWhat is it?\n===\nAnswer:\n{text}") == (
        "names-its-source"
    )


@pytest.mark.parametrize(
    "words",
    [
        "The poster on the wall has a caption in large letters.",
        "Her scarf coordinates well with her coat.",
        "He is reading a description of the painting, and his sentence was long.",
        "She sits in a box at the opera. There are boxes of fruit, and 1.5, 2 or 3 litres in them.",
        "The sign gives the coordinates of the summit.",
        "I'm afraid the ice is thin, he seems to say. I see no other animal.",
        "The object on the left is listed as a monument.",
        "They cannot see the train yet.",
    ],
)
def test_a_reply_that_only_sounds_like_it_passes(words):
    assert parse("detail", f"{LONG} {words}", question="Describe it.") == [("Describe it.", f"{LONG} {words}")]


def test_reasoning_is_one_question_and_detail_the_text_alone():
    assert reason("reasoning", BLOCKS) == "too-many-turns"
    assert reason("reasoning", "Question:\nWhy is it?\n===\nAnswer:\nShort.") == "too-short"
    assert reason("detail", "A cat.") == "too-short"
    assert reason("detail", f"Question:\nWhat?\n===\nAnswer:\n{LONG}") == "bad-structure"
    assert parse("detail", f"\n{LONG}\n", question="What?") == [("What?", LONG)]
    with pytest.raises(ValueError, match="needs `question`"):
        parse("detail", LONG)
    with pytest.raises(ValueError, match="needs `question`"):
        parse("conversation", BLOCKS, question="What?")


def test_json_replies():
    turns = [{"question": q, "answer": a} for q, a in TURNS]
    text = json.dumps({"turns": turns})
    assert parse("conversation", text, form="json") == TURNS
    assert parse("conversation", f"```json\n{text}\n```", form="json") == TURNS
    assert parse("detail", json.dumps({"answer": LONG}), form="json", question="What?") == [("What?", LONG)]
    bad = [
        "[]",
        "{}",
        "x",
        '{"turns": []}',
        '{"turns": [1]}',
        '{"turns": [{"question": "a"}]}',
        text[:-3],
        "[" * 99_999,
    ]
    for text in [*bad, '{"turns": {"question": "a"}}', '{"turns": [{"question": 1, "answer": "b"}]}']:
        assert reason("conversation", text, form="json") == "bad-json"
    assert reason("conversation", json.dumps({"turns": [turns[0], turns[0]]}), form="json") == "repeated-question"
    half = '{"turns": [{"question": "What is it?", "answer": "\\ud83d"}]}'
    assert reason("conversation", half, form="json") == "bad-unicode"
    assert reason("detail", '{"answer": null}', form="json") == "bad-json"


PIECES = st.sampled_from(
    [
        "Question:",
        "Answer:",
        "===",
        "\n",
        "\r\n",
        " ",
        "**",
        "1",
        "{",
        "}",
        '"turns":',
        "[",
        "]",
        "```json",
        "\ud83d",
        "What?",
    ]
    + ["I'm sorry", "the captions say", "0.123, 0.456", "\u2028", "\x1c", "\0", ":", "é", "Question: a"]
)


@settings(max_examples=400, deadline=None)
@given(
    st.text() | st.lists(PIECES | st.text(max_size=4), max_size=40).map("".join),
    st.sampled_from(list(LIMITS)),
    st.sampled_from(["text", "json"]),
    st.sampled_from(["stop", None, "length", "odd"]),
)
@example("=" * 50_000, "conversation", "text", "stop")
@example(" " * 50_000 + "Question" + " " * 50_000, "conversation", "text", "stop")
@example("*" * 50_000 + "\n" + "#" * 50_000, "detail", "text", "stop")
@example("the " * 20_000, "detail", "text", "stop")
@example("Question: a\n" * 20_000, "reasoning", "text", "stop")
def test_no_reply_crashes_the_parser(text, kind, form, finish_reason):
    try:
        turns = parse(kind, text, finish_reason, form, question="What?" if kind == "detail" else None)
    except Rejected as rejection:
        assert rejection.reason and rejection.detail
        return
    assert turns and all(question and answer for question, answer in turns)


WORDS = st.lists(
    st.sampled_from(
        ["cat", "rug", "\n", "\n\n", "===x", "Answer", "Question", "the", "Über", "猫", ":", "=", "- one", "x: y"]
    )
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), max_size=6),
    min_size=4,
    max_size=25,
).map(" ".join)
CONVERSATIONS = st.lists(st.tuples(WORDS.map(str.strip), WORDS.map(str.strip)), min_size=1, max_size=4)


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(list(LIMITS)), st.sampled_from(["text", "json"]), CONVERSATIONS)
def test_a_rendered_conversation_comes_back(kind, form, turns):
    turns = turns if kind == "conversation" else turns[:1]
    try:
        text = render(kind, turns, form)
    except ValueError as error:
        assert form == "text" and "cannot be written as text" in str(error)
        assume(False)
    try:
        back = parse(kind, text, form=form, question=turns[0][0] if kind == "detail" else None)
    except Rejected as rejection:
        # Refused for what they say, never for how they were written.
        assert rejection.reason in {
            "empty-turn",
            "empty-reply",
            "too-short",
            "too-long",
            "repeated-question",
            "refusal",
            "names-its-source",
        }
        assume(False)
    assert back == turns


def test_what_text_cannot_say_is_not_rendered():
    for answer in ("a\n===\nb", "a\nQuestion: b", " a", "a\rb", "a\n**Answer:**"):
        with pytest.raises(ValueError, match="cannot be written as text"):
            render("conversation", [("What?", answer)])
        with pytest.raises(ValueError, match="cannot be written as text"):
            render("detail", [("What?", answer)])
