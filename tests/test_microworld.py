"""The micro world: pictures show what scenes say, splits share nothing, and answers cannot be guessed."""

import random
from collections import Counter
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from data_generation.microworld.blind import best_constant_answer, blind_baseline
from data_generation.microworld.draw import PALETTE, boxes, draw
from data_generation.microworld.questions import all_questions, ask
from data_generation.microworld.scene import COLOURS, HELD_OUT, SHAPES, SPLITS, Thing, make_scene, scene_of, scenes
from data_generation.microworld.source import annotated, captions_of, read_microworld
from data_generation.microworld.wordings import KINDS, WORDINGS
from data_generation.microworld.words import LEXICON, split_words, vocabulary
from data_generation.rejections import Counts


def seen_colours(pixels: np.ndarray) -> np.ndarray:
    """For each pixel the nearest colour of the palette, or "" for the ground."""
    names = ["", *PALETTE]
    hues = np.array([(28, 30, 36), *PALETTE.values()], np.float32)
    return np.array(names)[np.linalg.norm(pixels[:, :, None].astype(np.float32) - hues, axis=-1).argmin(-1)]


# Where to look in an object's box to know its shape.
PROBES = ((0.5, 0.5), (0.22, 0.22), (0.12, 0.93))
IN_SHAPE = {
    "circle": [True, True, False],
    "square": [True, True, True],
    "triangle": [True, False, True],
    "cross": [True, False, False],
    "ring": [False, True, False],
}


@pytest.mark.parametrize("side", [96, 256])
def test_a_picture_shows_what_its_scene_says(side):
    for index in range(40):
        scene = make_scene(SPLITS[index % len(SPLITS)], index)
        seen = seen_colours(np.asarray(draw(scene, side)))
        for thing, box in zip(scene.things, boxes(scene), strict=True):
            left, top, right, bottom = (round(n * side) for n in (box.x1, box.y1, box.x2, box.y2))
            inside = seen[top:bottom, left:right]
            assert Counter(inside[inside != ""]).most_common(1)[0][0] == thing.colour
            points = [(box.x1 + x * (box.x2 - box.x1), box.y1 + y * (box.y2 - box.y1)) for x, y in PROBES]
            assert [seen[int(y * side), int(x * side)] == thing.colour for x, y in points] == IN_SHAPE[thing.shape]
            assert thing.size == ("large" if box.y2 - box.y1 > 0.2 else "small")
            assert thing.cell == int((box.x1 + box.x2) * 1.5) + 3 * int((box.y1 + box.y2) * 1.5)
            seen[max(0, top - 2) : bottom + 2, max(0, left - 2) : right + 2] = ""
        assert (seen == "").all()  # nothing else is there


@pytest.mark.parametrize("shape", SHAPES)
def test_boxes_are_exact(shape):
    side = 400
    scene = next(s for s in scenes("train", 400) if len(s.things) == 2 and {t.shape for t in s.things} == {shape})
    pixels = np.asarray(draw(scene, side)).astype(int)
    for box in boxes(scene):
        window = [max(0, int(n * side) - 6) for n in (box.x1, box.y1)] + [int(n * side) + 7 for n in (box.x2, box.y2)]
        patch = pixels[window[1] : window[3], window[0] : window[2]].max(axis=-1) > 120  # half covered, or more
        down, across = np.flatnonzero(patch.any(axis=1)), np.flatnonzero(patch.any(axis=0))
        found = [window[0] + across[0], window[1] + down[0], window[0] + across[-1] + 1, window[1] + down[-1] + 1]
        assert np.abs(np.array(found) - np.array([box.x1, box.y1, box.x2, box.y2]) * side).max() <= 1.5


def test_edges_are_smooth_and_sizes_agree():
    scene = make_scene("test", 3)
    small = np.asarray(draw(scene, 48)).astype(float)
    large = np.asarray(draw(scene, 384).resize((48, 48), Image.Resampling.BOX)).astype(float)
    assert np.abs(small - large).mean() < 2 and np.abs(small - large).max() < 60


def test_a_scene_follows_from_its_id():
    for split in SPLITS:
        scene = make_scene(split, 1234, seed=7)
        assert scene_of(scene.id) == scene and scene.split == split
        assert draw(scene, 48).tobytes() == draw(scene_of(scene.id), 48).tobytes()
    assert make_scene("train", 1, seed=0).things != make_scene("train", 1, seed=1).things
    # Fixed, so that what is drawn here is what was drawn when the pretrained halves were made.
    assert make_scene("train", 0).things == (Thing("square", "green", "small", 0), Thing("ring", "red", "large", 3))
    with pytest.raises(ValueError, match="no scene"):
        scene_of("train-3")
    with pytest.raises(ValueError, match="no split"):
        make_scene("testing", 0)


def test_splits_share_no_scene_and_held_out_pairs_are_new():
    # Scenes of two objects are few enough to meet by chance.
    shown = {split: set() for split in SPLITS}
    for split in SPLITS:
        for seed in (0, 1):
            shown[split] |= {scene.things for scene in scenes(split, 700 if split != "test" else 200, seed)}
    assert not any(shown[a] & shown[b] for a in SPLITS for b in SPLITS if a != b)
    pairs = {split: {thing.pair for things in shown[split] for thing in things} for split in SPLITS}
    everything = {(colour, shape) for colour in COLOURS for shape in SHAPES}
    assert pairs["train"] == pairs["test"] == everything - HELD_OUT
    for split in ("combinations", "told"):
        assert pairs[split] == everything
        assert all(any(thing.pair in HELD_OUT for thing in things) for things in shown[split])
    assert {shape for _, shape in HELD_OUT} == set(SHAPES)


def test_training_text_never_names_a_held_out_pair():
    rng = random.Random(0)
    held_out = [f"{colour} {shape}" for colour, shape in HELD_OUT]
    for scene in scenes("train", 60):
        texts = [*captions_of(scene), *(q.text + " " + q.answer for q in all_questions(scene.things))]
        assert not any(pair in text for pair in held_out for text in texts)
    # With one in the picture another may be asked for, so that the answer is not always yes.
    asked = [ask(scene.things, "exist", rng) for scene in scenes("combinations", 300)]
    answers = Counter(q.key for q in asked if q and any(pair in q.text for pair in held_out))
    assert min(answers["yes"], answers["no"]) > 10


def test_all_words_are_in_the_vocabulary_and_none_is_idle():
    seen = set()
    for split in ("train", "combinations"):
        for scene in scenes(split, 150):
            texts = [*captions_of(scene)]
            texts += [text for q in all_questions(scene.things) for text in (q.text, q.answer)]
            seen.update(word for text in texts for word in split_words(text))
    known = set(vocabulary())
    assert seen <= known
    assert len(known) == len(vocabulary()) < 500
    assert {word.lower() for word in LEXICON.split()} <= {word.lower() for word in seen}


def test_questions_are_certain_and_each_kind_can_be_asked():
    rng = random.Random(0)
    found = Counter()
    for scene in scenes("train", 150):
        every = {(q.kind, q.text): q for q in all_questions(scene.things)}
        by_text = {text: {q.answer for (_, asked), q in every.items() if asked == text} for _, text in every}
        assert all(len(answers) == 1 for answers in by_text.values())
        for kind in KINDS:
            question = ask(scene.things, kind, rng)
            if question:
                found[kind] += 1
                assert every[kind, question.text] == question
    assert min(found.values()) > 25 and set(found) == set(KINDS)


def test_answers_are_true():
    things = (Thing("ring", "red", "small", 0), Thing("cross", "red", "large", 4), Thing("ring", "white", "small", 5))
    answers = {q.text: q.answer for q in all_questions(things)}
    assert answers["What colour is the cross?"] == "The cross is red."
    assert "What colour is the ring?" not in answers  # there are two
    assert answers["What is the white thing?"] == "A ring."
    assert answers["Where is the red cross?"] == "The red cross is at the centre."
    assert answers["What is at the middle-right?"] == "A small white ring."
    assert answers["Is there a white cross?"] == "No, there is no white cross."
    assert answers["How many rings are there?"] == "There are two rings."
    assert answers["How many circles are there?"] == "There are no circles."
    assert answers["What is to the right of the red cross?"] == "A white ring."
    assert "What is below the red ring?" not in answers  # two are
    assert answers["If all red objects are removed, how many objects remain?"].endswith("so one remains.")
    assert answers["Are there more crosses or more rings?"].endswith(
        "one cross and two rings, so there are more rings."
    )
    assert answers["How do I get from the white ring to the red ring?"].endswith("so move up and left.")
    assert answers["Describe the picture in short."] == "A red ring, a red cross and a white ring."
    same = (Thing("ring", "red", "small", 0), Thing("cross", "red", "large", 4))
    assert (
        "so yes." in {q.text: q.answer for q in all_questions(same)}["Do the ring and the cross have the same colour?"]
    )


def test_a_question_can_be_about_one_object():
    rng = random.Random(0)
    for scene in scenes("combinations", 40):
        new = next(i for i, thing in enumerate(scene.things) if thing.pair in HELD_OUT)
        for kind in KINDS:
            question = ask(scene.things, kind, rng, about=new)
            assert question is None or new in question.about


def questions(split: str, count: int):
    rng = random.Random(split)
    found = (ask(scene.things, kind, rng) for scene in scenes(split, count) for kind in KINDS for _ in range(2))
    return [question for question in found if question]


# Guessing with the best constant answer to each question's text; chance, and a margin for what so few scenes can show.
MOST_BLIND = {"colour": 0.30, "shape": 0.32, "size": 0.58, "where": 0.19, "at": 0.08, "exist": 0.58, "count": 0.42}
MOST_BLIND |= {
    "relation": 0.12,
    "same": 0.60,
    "remove": 0.42,
    "more": 0.47,
    "move": 0.22,
    "detail": 0.02,
    "brief": 0.02,
}


def test_no_answer_can_be_guessed():
    blind = blind_baseline(best_constant_answer(questions("train", 1200)), questions("test", 150))
    assert set(blind) == set(KINDS) == set(WORDINGS)
    assert not {kind: (share, MOST_BLIND[kind]) for kind, share in blind.items() if share > MOST_BLIND[kind]}


def test_the_source_draws_annotated_images():
    counts = Counts()
    images = list(read_microworld(counts, "test", count=3, side=48))
    assert [image.id for image in images] == [make_scene("test", index).id for index in range(3)]
    assert counts.kept == 3 and len({image.image for image in images}) == 3
    for image in images:
        scene = scene_of(image.id)
        assert image == annotated(scene, 48) and len(image.captions) == 5 == len(set(image.captions))
        with Image.open(BytesIO(image.image)) as picture:
            assert picture.size == (48, 48) == (image.width, image.height)
            assert picture.tobytes() == draw(scene, 48).tobytes()
        assert [box.label for box in image.boxes] == [thing.shape for thing in scene.things]
        assert all(0 <= min(b.x1, b.y1) < max(b.x2, b.y2) <= 1 for b in image.boxes)
