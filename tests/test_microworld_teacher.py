"""The teacher by rules: what it reads from text, what it writes, and how it judges."""

import random

import pytest

from data_generation.microworld.questions import all_questions, ask
from data_generation.microworld.scene import CELLS, COLOURS, SPLITS, Thing, make_scene
from data_generation.microworld.source import annotated, captions_of
from data_generation.microworld.teacher.completion import MODEL, complete
from data_generation.microworld.teacher.judging import judge, parts_of
from data_generation.microworld.teacher.reading import Context, read_context, read_things
from data_generation.microworld.teacher.refusals import Unanswerable
from data_generation.microworld.teacher.writing import NUM_TURNS
from data_generation.microworld.wordings import KINDS
from data_generation.parsing import parse
from data_generation.prompting import load_prompt, write_context
from data_generation.sources import AnnotatedImage, Box


PROMPTS = [
    load_prompt(kind, form=form) for kind in ("conversation", "detail", "reasoning") for form in ("text", "json")
]
PHOTO = AnnotatedImage(
    "1",
    None,
    ("A brown dog sleeps on a red sofa", "A dog lying on a couch next to two cushions.", "A dog rests indoors."),
    (Box("dog", 0.1, 0.4, 0.6, 0.8), Box("cushion", 0.6, 0.4, 0.7, 0.5), Box("cushion", 0.7, 0.4, 0.9, 0.5)),
)


def request(prompt, image, **fields):
    fields |= {"response_format": prompt.response_format} if prompt.response_format else {}
    return {"model": MODEL, "messages": prompt.messages(image), **fields}


def text_of(body, seed=0):
    return complete(body, seed)["choices"][0]["message"]["content"]


@pytest.mark.parametrize("with_boxes", [True, False])
def test_captions_carry_every_fact(with_boxes):
    for number in range(200):
        scene = make_scene(SPLITS[number % len(SPLITS)], number)
        image = annotated(scene, 24)
        context = read_context(write_context(image.captions, image.boxes if with_boxes else ()))
        assert read_things(context) == scene.things


def test_a_single_caption_does_not_always_carry_them():
    # Else the five would be one. Boxes add shape, size and place, but never a colour.
    told = [read_things(Context((caption,), ())) for i in range(40) for caption in captions_of(make_scene("train", i))]
    assert 8 < sum(things is not None for things in told) < 40
    things = annotated(make_scene("train", 0), 24)
    assert read_things(Context(("Two objects on a dark ground.",), things.boxes)) is None


def test_captions_that_disagree_are_refused():
    with pytest.raises(Unanswerable, match="colour of the object at the top is told as red and as blue"):
        read_things(Context(("A small red ring at the top.", "A small blue ring at the top."), ()))
    with pytest.raises(Unanswerable, match="3.* objects, and where 1"):
        read_things(Context(("A small red ring at the top.", "Three objects and nothing else."), ()))


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: f"{prompt.kind}-{prompt.form}")
def test_every_reply_is_accepted_and_true(prompt):
    texts = set()
    for number in range(80):
        scene = make_scene(SPLITS[number % len(SPLITS)], number)
        image = annotated(scene, 24)
        text = text_of(request(prompt, image))
        turns = parse(prompt.kind, text, "stop", prompt.form, prompt.question(image.id))
        truths = {q.text: q.answer for q in all_questions(scene.things)}
        if prompt.kind == "detail":
            assert turns[0][1] == truths["Describe the picture in detail."]
        else:
            assert all(truths[question] == answer for question, answer in turns)
            assert len(turns) in (NUM_TURNS if prompt.kind == "conversation" else (1,))
        texts.add(text)
    assert len(texts) > 70


def test_replies_depend_on_prompt_and_seeds_alone():
    body = request(PROMPTS[0], annotated(make_scene("train", 3), 24))
    assert complete(body) == complete(dict(body))
    assert len({text_of(body, seed) for seed in range(5)}) > 2
    assert len({text_of({**body, "seed": seed}) for seed in range(5)}) > 2
    assert len({choice["message"]["content"] for choice in complete({**body, "n": 4})["choices"]}) > 2


def test_the_teacher_sees_text_alone():
    # Another caption, another truth: nothing else tells it what the picture is.
    scene = make_scene("train", 3)
    image = annotated(scene, 24)
    other = annotated(make_scene("train", 4), 24)
    swapped = AnnotatedImage(image.id, image.image, other.captions, other.boxes)
    prompt = load_prompt("detail")
    assert text_of(request(prompt, swapped)) == text_of(request(prompt, other)) != text_of(request(prompt, image))


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: f"{prompt.kind}-{prompt.form}")
def test_photographs_get_modest_turns(prompt):
    turns = parse(prompt.kind, text_of(request(prompt, PHOTO)), "stop", prompt.form, prompt.question("1"))
    answers = " ".join(answer for _, answer in turns)
    assert "A dog lying on a couch next to two cushions." in answers
    if prompt.kind != "conversation":
        assert "two cushions" in answers.lower() and "There is one dog on the left." in answers


def test_what_cannot_be_written_is_refused_with_a_reason():
    detail = load_prompt("detail")
    with pytest.raises(Unanswerable, match="too little to write a detail of"):
        complete(request(detail, AnnotatedImage("1", None, ("A dog.",))))
    with pytest.raises(Unanswerable, match="Neither a schema, nor an example"):
        complete({"model": MODEL, "messages": [{"role": "user", "content": "Hello!"}]})
    with pytest.raises(Unanswerable, match="schema called 'person'"):
        schema = {"type": "json_schema", "json_schema": {"name": "person"}}
        complete({"model": MODEL, "messages": [{"role": "user", "content": "Hello!"}], "response_format": schema})
    picture = [{"type": "image_url", "image_url": {"url": "data:"}}]
    with pytest.raises(Unanswerable, match="no pictures"):
        complete({"model": MODEL, "messages": [{"role": "user", "content": picture}]})
    with pytest.raises(Unanswerable, match="no model 'gpt'") as refused:
        complete({"model": "gpt", "messages": []})
    assert refused.value.status == 404


def test_a_system_message_without_examples_is_enough():
    image = annotated(make_scene("train", 5), 24)
    for kind in ("conversation", "detail", "reasoning"):
        system, *_, last = load_prompt(kind).messages(image)
        text = text_of({"model": MODEL, "messages": [system, last]})
        assert parse(kind, text, question="What is it?" if kind == "detail" else None)


def test_a_reply_is_cut_at_the_limit_of_tokens():
    body = request(load_prompt("detail"), annotated(make_scene("train", 3), 24))
    whole, short = complete(body), complete({**body, "max_completion_tokens": 7})
    text = short["choices"][0]["message"]["content"]
    assert short["choices"][0]["finish_reason"] == "length" and len(text.split()) == 6
    assert whole["choices"][0]["message"]["content"].startswith(text)
    assert short["usage"]["completion_tokens"] == 7 < whole["usage"]["completion_tokens"]
    assert whole["usage"]["prompt_tokens"] == short["usage"]["prompt_tokens"] > 500


def verdict(context, question, first, second):
    parts = {"Context": context, "Question": question, "Assistant 1": first, "Assistant 2": second}
    text = "\n\n".join(f"[{name}]\n{words}" for name, words in parts.items())
    head, reason = judge(parts_of(f"{text}\n\n[System]\nScore them.")).split("\n", 1)
    assert reason
    scores = tuple(map(int, head.split()))
    assert len(scores) == 2 and all(1 <= score <= 10 for score in scores)
    return scores


def other_answer(things, question, rng):
    """What would be right of another picture, with the same words before it."""
    changed = tuple(
        Thing(thing.shape, rng.choice([c for c in COLOURS if c != thing.colour]), "small", (thing.cell + 4) % 9)
        for thing in things
    )
    return next((q.answer for q in all_questions(changed) if q.text == question.text), None)


def test_the_judge_prefers_what_is_right():
    rng, compared = random.Random(0), 0
    for number in range(60):
        scene = make_scene("test", number)
        context = write_context(captions_of(scene), ())
        for kind in KINDS:
            question = ask(scene.things, kind, rng)
            wrong = question and other_answer(scene.things, question, rng)
            if not wrong or wrong == question.answer:
                continue
            compared += 1
            first, second = verdict(context, question.text, question.answer, wrong)
            assert first == 10 > second, (question, wrong)
            assert verdict(context, question.text, wrong, question.answer) == (second, first)
    assert compared > 150


def test_the_judge_knows_other_words_and_half_truths():
    things = (Thing("ring", "red", "small", CELLS.index("top")), Thing("square", "blue", "large", 4))
    context = "A small red ring at the top and a large blue square at the centre.\nTwo objects and nothing else."
    assert read_things(read_context(context)) == things
    same = "Do the ring and the square have the same colour?"
    assert verdict(context, same, "No, the ring is red and the square is blue.", "Yes.")[0] >= 8
    first, second = verdict(context, same, "No.", "The ring is blue and the square is red, so no.")
    assert first == 8 > second
    detail = "Tell me what is in the picture and where."
    swapped = "At the top there is a large blue square. At the centre there is a small red ring."
    first, second = verdict(context, detail, "At the top there is a small red ring.", swapped)
    assert first > second
    assert verdict(context, "What mood is it?", "A small red ring is at the top.", "Three green crosses.") == (10, 1)
    assert verdict(context, same, "I cannot say.", "")[1] == 1


def test_the_judge_of_photographs_prefers_what_the_context_says():
    context = write_context(PHOTO.captions, PHOTO.boxes)
    first, second = verdict(
        context, "What is there?", "A brown dog sleeps on a sofa.", "Three men repair a car outside."
    )
    assert first > second
    with pytest.raises(Unanswerable, match=r"\[Question\] is missing"):
        judge(parts_of("[Context]\nA dog.\n[Assistant 1]\na\n[Assistant 2]\nb"))
    assert parts_of("[Context]\nA dog.\n[Question]\nWhat?") is None
