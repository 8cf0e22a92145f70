"""What a checkpoint sees: questions about held-out scenes, answered freely, right only if every word is.

The same questions go to every condition: with the picture, with a black one, with another scene's. Dialogues have
three turns, in which the model reads its own earlier answers.
"""

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image

from data_generation.microworld.blind import best_constant_answer, blind_baseline
from data_generation.microworld.draw import png
from data_generation.microworld.questions import Question, ask
from data_generation.microworld.scene import HELD_OUT, Scene, make_scene, scene_of, scenes
from data_generation.microworld.source import SIDE
from data_generation.microworld.teacher.writing import conversation
from data_generation.microworld.wordings import KINDS
from data_generation.replacing import write_atomically
from modeling_llava import LlavaForConditionalGeneration
from processing import LlavaProcessor
from recipes.measuring.answering import Chat, answer


TURNS = 3
BATCH = 320
MAX_NEW_TOKENS = 64  # the longest answer, a description of four objects, has 46
TRAINING_SCENES = 4000  # from which constant answers are taken


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about a scene; in a dialogue after `before`, the earlier questions and what was answered."""

    scene: str
    kind: str
    question: str
    wanted: str
    answer: str = ""
    before: tuple[tuple[str, str], ...] = ()

    @property
    def is_right(self) -> bool:
        return self.answer == self.wanted


def questions(split: str, per_kind: int) -> list[Asked]:
    """As many of each kind, about the first scenes of the split; on held-out combinations about an object that is
    one.
    """
    rng = random.Random(f"exam {split}")
    found, left, index = [], dict.fromkeys(KINDS, per_kind), 0
    while left:
        scene = make_scene(split, index)
        index += 1
        for kind in list(left):
            question = _ask(scene, kind, rng)
            if question is None:
                continue
            found.append(Asked(scene.id, kind, question.text, question.answer))
            left[kind] -= 1
            if not left[kind]:
                del left[kind]
    return found


def _ask(scene: Scene, kind: str, rng: random.Random) -> Question | None:
    if scene.split != "combinations":
        return ask(scene.things, kind, rng)
    unseen = [i for i, thing in enumerate(scene.things) if thing.pair in HELD_OUT]
    return ask(scene.things, kind, rng, about=rng.choice(unseen))


def constant_answers(per_kind: int) -> dict[str, float]:
    """What the best constant answer to each question gets right on the same scenes, kind by kind."""
    rng = random.Random("constants")
    learned = [ask(scene.things, kind, rng) for scene in scenes("train", TRAINING_SCENES) for kind in KINDS]
    constants = best_constant_answer(replace(question, key=question.answer) for question in learned if question)
    asked = [Question(one.kind, one.question, one.wanted, one.wanted, ()) for one in questions("test", per_kind)]
    return blind_baseline(constants, asked)


class Examiner:
    """Asks one checkpoint."""

    def __init__(self, checkpoint: Path, device: str):
        self.processor = LlavaProcessor.from_pretrained(checkpoint)
        self.model = LlavaForConditionalGeneration.from_pretrained(checkpoint).to(device).eval()

    def answers(self, asked: Sequence[Asked], pictures: dict[str, bytes], name: str) -> list[Asked]:
        """In the order of the questions; those of a kind together, as their answers are about as long."""
        found: dict[int, Asked] = {}
        for kind in KINDS:
            numbers = [i for i, one in enumerate(asked) if one.kind == kind]
            chats = [chat_of(asked[i]) for i in numbers]
            seen = [[pictures[asked[i].scene]] for i in numbers]
            answered = answer(self.model, self.processor, chats, seen, BATCH, MAX_NEW_TOKENS, f"{name}: {kind}")
            found |= {i: replace(asked[i], answer=text) for i, text in zip(numbers, answered, strict=True)}
        return [found[i] for i in range(len(asked))]

    def dialogues(self, number: int, name: str) -> list[Asked]:
        """Every turn of `number` dialogues."""
        rng = random.Random("dialogues")
        talks = [(scene, conversation(scene.things, TURNS, rng)) for scene in scenes("test", number)]
        pictures = pictures_of([scene.id for scene, _ in talks])
        done: list[Asked] = []
        before: dict[str, tuple[tuple[str, str], ...]] = defaultdict(tuple)
        for turn in range(TURNS):
            asked = [
                Asked(scene.id, question[turn].kind, question[turn].text, question[turn].answer, "", before[scene.id])
                for scene, question in talks
                if turn < len(question)
            ]
            answered = self.answers(asked, pictures, f"{name}, turn {turn + 1} of {TURNS}")
            for one in answered:
                before[one.scene] += ((one.question, one.answer),)
            done += answered
        return done


def chat_of(asked: Asked) -> Chat:
    chat: Chat = []
    for question, answered in asked.before:
        chat += [{"role": "user", "content": question}, {"role": "assistant", "content": answered}]
    chat.append({"role": "user", "content": asked.question})
    first = {"type": "text", "text": chat[0]["content"]}
    chat[0] = {"role": "user", "content": [{"type": "image"}, first]}
    return chat


def pictures_of(scene_ids: Sequence[str]) -> dict[str, bytes]:
    return {scene_id: png(scene_of(scene_id), SIDE) for scene_id in dict.fromkeys(scene_ids)}


def black_pictures(scene_ids: Sequence[str]) -> dict[str, bytes]:
    file = BytesIO()
    Image.new("RGB", (SIDE, SIDE)).save(file, "PNG")
    return dict.fromkeys(scene_ids, file.getvalue())


def pictures_of_others(scene_ids: Sequence[str]) -> dict[str, bytes]:
    """Each scene has the next one's picture."""
    names = list(dict.fromkeys(scene_ids))
    pictures = pictures_of(names)
    return {name: pictures[other] for name, other in zip(names, names[1:] + names[:1], strict=True)}


def shares(asked: Sequence[Asked]) -> dict[str, float]:
    """Right answers, kind by kind, in the order of `KINDS`."""
    right = defaultdict(list)
    for one in asked:
        right[one.kind].append(one.is_right)
    return {kind: sum(right[kind]) / len(right[kind]) for kind in KINDS if kind in right}


def mean(by_kind: dict[str, float]) -> float:
    return sum(by_kind.values()) / len(by_kind)


def read(path: Path) -> list[Asked]:
    found = json.loads(path.read_text(encoding="utf-8"))
    return [Asked(**one | {"before": tuple(map(tuple, one["before"]))}) for one in found]


def written(asked: Sequence[Asked]) -> str:
    return json.dumps([asdict(one) for one in asked], indent=1)


def examine(folder: Path, per_kind: int, num_dialogues: int) -> None:
    """Asks the checkpoints `stage1` and `stage2` in `folder`; what is answered already is not asked again."""
    out = folder / "exam"
    out.mkdir(exist_ok=True)
    test, combinations = questions("test", per_kind), questions("combinations", per_kind)
    names = [one.scene for one in test]
    seen = pictures_of(names)
    conditions = {
        "stage 2": ("stage2", lambda examiner: examiner.answers(test, seen, "stage 2")),
        "dialogues": ("stage2", lambda examiner: examiner.dialogues(num_dialogues, "dialogues")),
        "new combinations": (
            "stage2",
            lambda examiner: examiner.answers(
                combinations, pictures_of([one.scene for one in combinations]), "new combinations"
            ),
        ),
        "black picture": ("stage2", lambda examiner: examiner.answers(test, black_pictures(names), "black picture")),
        "another scene's": (
            "stage2",
            lambda examiner: examiner.answers(test, pictures_of_others(names), "another scene's"),
        ),
        "stage 1 only": ("stage1", lambda examiner: examiner.answers(test, seen, "stage 1 only")),
    }
    device = "cuda" if torch.cuda.is_available() else "cpu"
    examiners: dict[str, Examiner] = {}
    for name, (checkpoint, ask_all) in conditions.items():
        path = out / f"{file_name(name)}.json"
        if path.exists():
            continue
        if checkpoint not in examiners:
            examiners = {checkpoint: Examiner(folder / checkpoint, device)}
        write_atomically(path, written(ask_all(examiners[checkpoint])))
    write_atomically(out / "finished.json", json.dumps({"conditions": list(conditions)}))


def file_name(condition: str) -> str:
    return condition.replace(" ", "-").replace("'", "")
