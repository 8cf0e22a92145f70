"""What the teacher is told: our prompt files, a folder of the user's own, and the context in the paper's form."""

import json
import re
import shutil

import pytest

from data_generation.parsing import parse
from data_generation.prompting import OURS, choose, load_prompt, load_questions, write_context
from data_generation.rejections import Rejected
from data_generation.sources import AnnotatedImage, Box


KINDS = ("conversation", "detail", "reasoning")
CAT = AnnotatedImage(
    "7",
    None,
    ("A cat on a rug.", "A sleeping cat."),
    (Box("cat", 1 / 3, 0.25, 1.0, 2 / 3), Box("rug", 0.0, 0.5, 0.9996, 1.0)),
)


def test_the_context_is_in_the_papers_form():
    assert load_prompt("detail").context(CAT) == (
        "A cat on a rug.\nA sleeping cat.\n\ncat: [0.333, 0.25, 1.0, 0.667]\nrug: [0.0, 0.5, 1.0, 1.0]"
    )
    assert load_prompt("conversation").context(CAT) == "A cat on a rug.\nA sleeping cat."
    assert write_context((), CAT.boxes[:1]) == "cat: [0.333, 0.25, 1.0, 0.667]"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("with_boxes", [True, False])
def test_the_fixed_part_is_first_and_the_same_for_all(kind, form, with_boxes):
    prompt = load_prompt(kind, form=form, with_boxes=with_boxes)
    messages = prompt.messages(CAT)
    others = prompt.messages(AnnotatedImage("8", None, ("Else.",)))
    assert json.dumps(messages[:-1]) == json.dumps(others[:-1])
    assert messages[-1] == {"role": "user", "content": prompt.context(CAT)}
    roles = [message["role"] for message in messages]
    assert roles == ["system", *["user", "assistant"] * 3, "user"]
    boxes = [re.search(r": \[[\d., ]+\]", message["content"]) for message in messages if message["role"] == "user"]
    assert [box is not None for box in boxes] == [with_boxes] * 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["text", "json"])
def test_our_examples_are_good_replies(kind, form):
    prompt = load_prompt(kind, form=form)
    contexts, replies = zip(*prompt.shots, strict=True)
    question = "Describe it." if kind == "detail" else None
    for reply in replies:
        turns = parse(kind, reply, form=form, question=question)
        assert len(turns) >= 4 if kind == "conversation" else len(turns) == 1
    assert len(set(contexts)) == 3
    assert all(len(context.partition("\n\n")[0].split("\n")) == 5 for context in contexts)


def test_the_question_of_a_description_is_fixed_by_picture_and_seed():
    prompt = load_prompt("detail")
    asked = [prompt.question(str(number), seed=3) for number in range(1600)]
    assert asked == [prompt.question(str(number), seed=3) for number in range(1600)]
    assert set(asked) == set(load_questions("detailed"))
    assert all(60 <= asked.count(question) <= 140 for question in set(asked))
    assert asked != [prompt.question(str(number), seed=4) for number in range(1600)]
    # Written down, so that a data set made today can be made again.
    assert choose(("a", "b", "c", "d"), "000000000009", 0) == "c"
    assert load_prompt("reasoning").question("1") is None


def test_there_are_as_many_questions_as_in_the_paper():
    assert (len(load_questions("brief")), len(load_questions("detailed"))) == (11, 16)


def test_the_version_says_whether_anything_changed(tmp_path):
    versions = {load_prompt(k, form=f, with_boxes=b).version for k in KINDS for f in ("text", "json") for b in (0, 1)}
    assert len(versions) == 12
    shutil.copytree(OURS, tmp_path / "mine")
    assert load_prompt("detail", tmp_path / "mine").version == load_prompt("detail").version
    for name in ("detail/system.txt", "detail/001_reply.txt", "detail/format_text.txt", "detailed_questions.txt"):
        before = load_prompt("detail", tmp_path / "mine").version
        with (tmp_path / "mine" / name).open("a") as file:
            file.write(" More.")
        assert load_prompt("detail", tmp_path / "mine").version != before, name


@pytest.mark.parametrize("kind", KINDS)
def test_the_schema_is_strict(kind):
    assert load_prompt(kind).response_format is None
    sent = load_prompt(kind, form="json").response_format
    schema = sent["json_schema"]["schema"]
    assert (sent["type"], sent["json_schema"]["strict"]) == ("json_schema", True)
    objects = [schema] if kind == "detail" else [schema, schema["properties"]["turns"]["items"]]
    for one in objects:
        assert one["additionalProperties"] is False
        assert one["required"] == list(one["properties"])


def test_a_picture_with_nothing_to_show_is_refused():
    boxes_only = AnnotatedImage("1", None, (), CAT.boxes)
    with pytest.raises(Rejected, match="no-annotation"):
        load_prompt("conversation").messages(boxes_only)
    assert load_prompt("reasoning").messages(boxes_only)[-1]["content"].startswith("cat: [")


def mine(tmp_path):
    shutil.copytree(OURS / "reasoning", tmp_path / "reasoning")
    return tmp_path / "reasoning"


def test_a_folder_of_the_users_replaces_only_what_it_has(tmp_path):
    (mine(tmp_path) / "system.txt").write_text("My words.\n")
    assert load_prompt("reasoning", tmp_path).system.startswith("My words.\n\n")
    assert load_prompt("detail", tmp_path) == load_prompt("detail")
    assert load_questions("brief", tmp_path) == load_questions("brief")


@pytest.mark.parametrize(
    "name, content, error",
    [
        ("system.txt", None, "system.txt` cannot be read"),
        ("system.txt", b" \n", "system.txt` is empty"),
        ("system.txt", b"\xff\xfe", "write it as UTF-8"),
        ("format_text.txt", None, "format_text.txt` cannot be read"),
        ("001_reply.txt", None, "alone: 001"),
        ("004_context.txt", b"A.", "alone: 004"),
        ("001_reply.txt", b"Question:\nWhy?", "001_reply.txt` is no good example of a reply: not-alternating"),
        ("001_context.txt", b"A cat.\n\ncat [0, 0, 1, 1]", "has the line 'cat \\[0, 0, 1, 1\\]'"),
        ("001_context.txt", b"A cat.\n\ncat: [0.5, 0, 0.25, 1]", "left of right"),
        ("../reasonning/system.txt", b"x", "holds reasonning; wanted some of"),
    ],
)
def test_odd_files_are_named(tmp_path, name, content, error):
    path = mine(tmp_path) / name
    if content is None:
        path.unlink()
    else:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    with pytest.raises(ValueError, match=error):
        load_prompt("reasoning", tmp_path)


def test_other_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match="holds nothing"):
        load_prompt("detail", tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        load_prompt("detail", tmp_path / "none")
    with pytest.raises(ValueError, match="Kind `details` in form `text` is not known"):
        load_prompt("details")
    (tmp_path / "brief_questions.txt").write_text("What?\nWhat?\n")
    with pytest.raises(ValueError, match="a question twice"):
        load_questions("brief", tmp_path)
