"""The micro language model's dialogues: what is learned, what sees what, and that a seed decides it all."""

import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tokenizers.pre_tokenizers import ByteLevel

from data_generation.microworld.questions import all_questions, ask
from data_generation.microworld.scene import CELLS, COLOURS, HELD_OUT, SHAPES, SIZES, make_scene, split_of
from data_generation.microworld.wordings import KINDS
from data_generation.microworld.words import NUMBERS
from processing import load_template
from processing.encoding import encode_messages
from recipes.micro import language
from recipes.micro.dialogues import (
    LENGTH,
    UNLEARNED,
    Lesson,
    add,
    answered,
    collate,
    draw_row,
    drill,
    questions_of,
    scene_for,
    start_row,
    tell,
)
from recipes.micro.language import (
    CORE,
    EVERYTHING,
    LESSONS,
    Progress,
    answer_logits,
    choose_next,
    measure,
    new_language_model,
    train_language,
)
from recipes.micro.vocabulary import cell_words, new_tokenizer


FORMS = ("list", "shuffled", "told", "captions", "cells")


@pytest.fixture(scope="module")
def tokenizer():
    return new_tokenizer()


@pytest.fixture
def few_rows(monkeypatch):
    monkeypatch.setattr(language, "ROWS", 2)


def rows_of(lesson, tokenizer, count, seed=0):
    rng = random.Random(seed)
    return [draw_row(lesson, lesson.kinds, tokenizer, rng) for _ in range(count)]


def test_each_word_of_the_world_is_one_token_and_any_text_can_be_written(tokenizer):
    rng = random.Random(0)
    bytes_ = {tokenizer.convert_tokens_to_ids(token) for token in ByteLevel.alphabet()}
    for i in range(40):
        things = make_scene("train", i).things
        texts = [tell(things, form, rng) for form in FORMS]
        for question in all_questions(things):
            texts.append(f"{question.text} ASSISTANT: {question.answer}</s>USER: {question.text} ASSISTANT:")
        texts += [f"{question} ASSISTANT:" for which in ("brief", "detailed") for question in questions_of(which)]
        for text in texts:
            text = f"<s>USER:  {text}"
            tokens = tokenizer.convert_ids_to_tokens(ids := tokenizer(text).input_ids)
            assert tokenizer.decode(ids) == text
            # A sign alone is its byte.
            letters = [token for token, i in zip(tokens, ids, strict=True) if i in bytes_ and token.isalpha()]
            assert set(letters) <= {"I", "Ġ", "Ċ"}, text
    wanted = ["Ġat", "Ġthe", "Ġtop-left", ".", "Ċ", "What", "Ġis", "ĠASSISTANT:", "ĠA"]
    assert tokenizer.tokenize(" at the top-left.\nWhat is ASSISTANT: A") == wanted
    for text in ("a café, 12 %", "  two  spaces\n\n", "I can't", "top-leftish"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_a_picture_stands_where_a_scene_is_told(tokenizer):
    """The tokens of a built LLaVA's prompt, but for the picture, are those that are learned here."""
    tokenizer = new_tokenizer()  # gets an image token
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where is the ring?"}]}]
    said = [{"role": "assistant", "content": [{"type": "text", "text": "At the top."}]}]
    more = [{"role": "user", "content": [{"type": "text", "text": "How big is the ring?"}]}]
    encoded = encode_messages([*asked, *said, *more, *said], tokenizer, load_template("vicuna_v1", ""), "<image>", 9)
    row = start_row(tell(make_scene("train", 0).things, "cells", random.Random(0)), tokenizer)
    row.is_chained = True
    for question in ("Where is the ring?", "How big is the ring?"):
        assert add(row, answered("where", question, "At the top."), tokenizer)
    ours = [*row.prefix, *(i for ids, _ in row.branches for i in ids)]
    labels = [UNLEARNED] * len(row.prefix) + [i for _, learned in row.branches for i in learned]
    image = tokenizer.convert_tokens_to_ids("<image>")
    places = [i for i, token in enumerate(encoded.input_ids) if token == image]
    assert places == list(range(3, 12))
    assert [image if i in places else token for i, token in enumerate(ours)] == encoded.input_ids
    assert labels == encoded.labels


def test_a_word_for_a_cell_begins_as_the_sum_of_what_it_is_made_of(tokenizer):
    table = small(tokenizer).get_input_embeddings().weight
    ids = [
        tokenizer.convert_tokens_to_ids(f"Ġ{word}") for word in ("top-large-red-ring", "top", "large", "red", "ring")
    ]
    torch.testing.assert_close(table[ids[0]], table[ids[1:]].sum(0))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_tells_every_fact(form):
    rng = random.Random(0)
    for i in range(30):
        things = make_scene("train", i).things
        words = tell(things, form, rng).lower().replace(",", " ").replace(".", " ").replace(";", " ").split()
        if form == "cells":
            assert len(words) == len(CELLS)
            words = [part for word in words for part in cell_words()[word]]
        for thing in things:
            assert {thing.colour, thing.size, CELLS[thing.cell]} <= set(words)
            assert {thing.shape, f"{thing.shape}s", f"{thing.shape}es"} & set(words)


@pytest.mark.parametrize("lesson", LESSONS)
def test_lessons_show_what_they_are_for_and_held_out_pairs_where_it_is_said(lesson):
    rng = random.Random(0)
    found = [scene_for(lesson, rng) for _ in range(100)]
    assert max(map(len, found)) <= lesson.most
    told = [split_of(things) for things in found].count("told")
    assert told == 0 if lesson.told == 0 else 0.3 < told / len(found) < 0.7
    assert told == sum(not {thing.pair for thing in things}.isdisjoint(HELD_OUT) for things in found)


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_batch_has_one_length_and_learns_answers_only(lesson, tokenizer):
    rows = rows_of(lesson, tokenizer, 12)
    batch = collate(rows, tokenizer)
    longest = max(len(row) for row in rows)
    assert longest <= LENGTH and sum(map(len, rows)) > 0.85 * LENGTH * len(rows)
    for tensor in (batch.input_ids, batch.labels, batch.end, batch.position_ids):
        assert tensor.shape == (12, longest)
    in_answers = torch.zeros_like(batch.labels, dtype=torch.bool)
    for number, kind, start, end in batch.answers:
        in_answers[number, start:end] = True
        text = tokenizer.decode(batch.input_ids[number, start:end])
        if kind == "drill":
            assert text.strip() in {*SHAPES, *COLOURS, *SIZES, *CELLS, "yes", "no", *NUMBERS}
        elif kind == "retelling":
            assert text.startswith(" ") and text.endswith(";")
        else:
            before = tokenizer.decode(batch.input_ids[number, start - 1 : start])
            assert before == " ASSISTANT:" and text.endswith("</s>") and text.startswith(" ")
    assert torch.equal(batch.labels != UNLEARNED, in_answers)
    assert torch.equal(batch.labels[in_answers], batch.input_ids[in_answers])


def test_drills_are_true(tokenizer):
    rng = random.Random(3)
    for i in range(40):
        things = make_scene("train", i).things
        for (key, _), (value, is_learned), _ in zip(*[iter(drill(things, rng, True).pieces)] * 3, strict=True):
            name, *about = key.split()
            value = value.strip()
            assert is_learned
            facts = [{"shape": t.shape, "colour": t.colour, "size": t.size, "where": CELLS[t.cell]} for t in things]
            if name == "is":
                assert tuple(about) not in HELD_OUT
                assert value == ("yes" if any([f["colour"], f["shape"]] == about for f in facts) else "no")
            elif name == "how":
                number = sum(about[0] in (f["colour"], f"{f['shape']}s", f"{f['shape']}es") for f in facts)
                assert value == NUMBERS[number]
            else:
                assert [f[name] for f in facts if about[0] in f.values()] == [value]


def small(tokenizer):
    torch.manual_seed(0)
    return new_language_model(tokenizer).eval()


def test_branches_see_the_prefix_and_themselves_only(tokenizer):
    def batch_of(prefix, second):
        row = start_row(prefix, tokenizer)
        for question, answer in (("Is it red?", "Yes."), second, ("Is it blue?", "No.")):
            assert add(row, answered("x", question, answer), tokenizer)
        return collate([row, start_row("a longer row beside it, so that the first is padded", tokenizer)], tokenizer)

    model, prefix = small(tokenizer), "small red circle top;"
    with torch.no_grad():
        one, labels, _ = answer_logits(model, batch_of(prefix, ("Is it big?", "No.")))
        other, _, _ = answer_logits(model, batch_of(prefix, ("Is it big?", "It is small and red.")))
        elsewhere, _, _ = answer_logits(model, batch_of("small red ring top;", ("Is it big?", "No.")))
        alone, _, _ = answer_logits(model, batch_alone(prefix, "Is it blue?", "No.", tokenizer))
    size = len(labels) // 3  # each answer is a word, a stop and </s>
    torch.testing.assert_close(one[:size], other[:size])
    torch.testing.assert_close(one[-size:], other[-size:])
    torch.testing.assert_close(one[-size:], alone)
    assert not torch.allclose(one[-size:], elsewhere[-size:], atol=1e-3)


def batch_alone(prefix, question, answer, tokenizer):
    row = start_row(prefix, tokenizer)
    add(row, answered("x", question, answer), tokenizer)
    return collate([row], tokenizer)


def test_a_conversation_is_what_stock_causal_attention_reads(tokenizer):
    lesson = Lesson(4, 0.0, 1.0, EVERYTHING, {"told": 1.0})
    row = rows_of(lesson, tokenizer, 1)[0]
    batch = collate([row], tokenizer)
    text = tokenizer.decode(batch.input_ids[0])
    assert text.count("USER:") == text.count("ASSISTANT:") == text.count("</s>") == len(row.branches) > 2
    # As the pipeline would write it, in one piece.
    assert tokenizer(text).input_ids == batch.input_ids[0].tolist()
    model = small(tokenizer)
    with torch.no_grad():
        logits, _, where = answer_logits(model, batch)
        torch.testing.assert_close(logits, model(batch.input_ids).logits[:, :-1][where])


def test_five_steps_lower_the_loss(tokenizer, monkeypatch):
    monkeypatch.setattr(language, "RATE", 5e-3)
    model, batch = small(tokenizer), collate(rows_of(LESSONS[-1], tokenizer, 4), tokenizer)
    optimizer = language.new_optimizer(model)
    losses = []
    for _ in range(6):
        logits, labels, _ = answer_logits(model, batch)
        loss = F.cross_entropy(logits, labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.5


def test_the_seed_decides_everything_and_a_checkpoint_goes_on_alike(tokenizer, few_rows, monkeypatch, tmp_path):
    monkeypatch.setattr(language, "WINDOW", 2)
    monkeypatch.setattr(language, "EVERY", 2)
    monkeypatch.setattr(language, "LESSONS", [replace(lesson, passed=-1.0) for lesson in LESSONS])
    said = []

    def stop(line):
        if "step 4" in line:
            raise KeyboardInterrupt

    one = train_language(tokenizer, 6, 0, said.append)
    assert any("lesson 3" in line for line in said)
    with pytest.raises(KeyboardInterrupt):
        train_language(tokenizer, 6, 0, stop, tmp_path)
    again = train_language(tokenizer, 6, 0, said.append, tmp_path)
    assert any("goes on at step 2" in line for line in said)
    other = train_language(tokenizer, 1, 1, said.append)
    for (name, a), b, c in zip(one.named_parameters(), again.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)
        assert a.ndim == 1 or not torch.equal(a, c)


def test_a_lesson_ends_when_it_is_passed_or_has_been_long(monkeypatch):
    first = replace(LESSONS[0], passed=0.9, longest=4 * language.WINDOW)
    monkeypatch.setattr(language, "LESSONS", [first, LESSONS[-1]])

    def lesson_after(since, share):
        progress = Progress(since=since)
        choose_next(progress, dict.fromkeys(CORE, share))
        return progress.lesson

    window = language.WINDOW
    assert [lesson_after(window, 0.95), lesson_after(window - 1, 0.95), lesson_after(window, 0.85)] == [1, 0, 0]
    assert [lesson_after(4 * window, 0.1), lesson_after(3 * window, 0.1)] == [1, 0]


def test_what_is_answered_worst_is_asked_most():
    progress = Progress(lesson=len(LESSONS) - 1)
    choose_next(progress, dict.fromkeys(KINDS, 1.0) | {"count": 0.0})
    assert progress.weights["count"] > 5 * progress.weights["colour"] > 0


def test_what_is_measured_is_what_generation_writes(tokenizer):
    """Answers learned by heart: right for those, and as `generate` says."""
    model = small(tokenizer)
    things = make_scene("validation", 0).things
    rng = random.Random(0)
    row = start_row(tell(things, "told", rng), tokenizer)
    questions = [q for kind in KINDS if (q := ask(things, kind, rng)) and kind not in ("detail", "brief")][:6]
    for question in questions:
        assert add(row, answered(question.kind, question.text, question.answer), tokenizer, 512)
    batch = collate([row], tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(30):
        logits, labels, _ = answer_logits(model, batch)
        optimizer.zero_grad()
        F.cross_entropy(logits, labels).backward()
        optimizer.step()
    with torch.no_grad():
        rights = language.whole_answers(batch, *answer_logits(model, batch))
    assert any(rights)
    for question, is_right in zip(questions, rights, strict=True):
        prompt = [*row.prefix, *tokenizer(f"{question.text} ASSISTANT:").input_ids]
        out = model.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False)[0, len(prompt) :]
        assert (tokenizer.decode(out) == f" {question.answer}</s>") == is_right


def test_every_kind_is_measured(tokenizer):
    found = measure(small(tokenizer), tokenizer, count=3)
    assert set(found) == set(KINDS) and set(found.values()) == {0.0}
