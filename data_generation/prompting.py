"""What the teacher is told: a system message, examples written by people, and last the annotations of one picture.

    prompt = load_prompt("detail")
    messages = prompt.messages(image)      # system, examples, this image's captions and boxes
    question = prompt.question(image.id, seed=0)

The words are text files under `prompts/`, which a folder of the user's own may replace kind by kind:

    conversation/, detail/, reasoning/     system.txt, format_text.txt, format_json.txt, and for each example
                                           000_context.txt and 000_reply.txt
    brief_questions.txt, detailed_questions.txt    one question a line

Everything but the last message is the same for every picture, byte for byte, so that servers can cache it.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from .parsing import Form, Kind, parse, render
from .rejections import Rejected
from .sources import AnnotatedImage, Box


QuestionList = Literal["brief", "detailed"]

OURS = Path(__file__).parent / "prompts"
QUESTION_FILES: dict[QuestionList, str] = {"brief": "brief_questions.txt", "detailed": "detailed_questions.txt"}
SHOT_SUFFIXES = ("_context.txt", "_reply.txt")
BOX_LINE = re.compile(r"[^\[\]\n]+: \[{0}, {0}, {0}, {0}\]".format(r"([01](?:\.\d{1,3})?)"))


@dataclass(frozen=True)
class Prompt:
    """The fixed part of a kind's requests.

    Args:
        kind: `conversation`, `detail` or `reasoning`.
        form: `text` for blocks of Question and Answer, `json` for the schema of `response_format`.
        with_boxes: whether the teacher sees boxes beside captions.
        system: the system message.
        shots: (context, reply) of each example.
        questions: for `detail`, what may be asked; the teacher writes the answer alone.
    """

    kind: Kind
    form: Form
    with_boxes: bool
    system: str
    shots: tuple[tuple[str, str], ...]
    questions: tuple[str, ...] = ()

    @property
    def version(self) -> str:
        """A short hash of everything that is the same for all pictures."""
        facts = [self.kind, self.form, self.with_boxes, self.system, self.shots, self.questions]
        return hashlib.blake2b(json.dumps(facts).encode(), digest_size=6).hexdigest()

    @property
    def response_format(self) -> dict[str, Any] | None:
        """What to send as `response_format`; None for text."""
        return response_format(self.kind) if self.form == "json" else None

    def messages(self, image: AnnotatedImage) -> list[dict[str, str]]:
        """Chat messages for one picture; `Rejected` where there is nothing to show of it."""
        messages = [{"role": "system", "content": self.system}]
        for context, reply in self.shots:
            messages += [{"role": "user", "content": context}, {"role": "assistant", "content": reply}]
        return [*messages, {"role": "user", "content": self.context(image)}]

    def context(self, image: AnnotatedImage) -> str:
        if not image.captions and not (self.with_boxes and image.boxes):
            needed = "captions or boxes" if self.with_boxes else "captions"
            raise Rejected("no-annotation", f"a {self.kind} is written from {needed}, and the image has none.")
        return write_context(image.captions, image.boxes if self.with_boxes else ())

    def question(self, image_id: str, seed: int = 0) -> str | None:
        """The question of a detailed description, always the same for a picture and seed; None for other kinds."""
        return choose(self.questions, image_id, seed) if self.questions else None


def write_context(captions: tuple[str, ...], boxes: tuple[Box, ...]) -> str:
    """Captions one per line; after a blank line the boxes, coordinates rounded to three decimals as in the paper."""
    blocks = ["\n".join(captions)] if captions else []
    if boxes:
        rounded = ((box.label, [round(n, 3) for n in (box.x1, box.y1, box.x2, box.y2)]) for box in boxes)
        blocks.append("\n".join(f"{label}: {numbers}" for label, numbers in rounded))
    return "\n\n".join(blocks)


def choose(options: tuple[str, ...], key: str, seed: int) -> str:
    """One of the options, by key and seed alone: the order of the work does not matter."""
    digest = hashlib.blake2b(f"{seed}\n{key}".encode(), digest_size=8).digest()
    return options[int.from_bytes(digest, "big") % len(options)]


def load_prompt(kind: Kind, folder: Path | None = None, form: Form = "text", with_boxes: bool | None = None) -> Prompt:
    """The prompt of a kind, from the user's folder where it has one of that kind.

    Args:
        with_boxes: None for the paper's choice: a conversation is written from captions alone, the others see boxes.
    """
    if kind not in get_args(Kind) or form not in get_args(Form):
        raise ValueError(
            f"Kind `{kind}` in form `{form}` is not known; wanted one of {', '.join(get_args(Kind))}, in form "
            f"{' or '.join(get_args(Form))}."
        )
    home = _home(folder, kind)
    with_boxes = kind != "conversation" if with_boxes is None else with_boxes
    questions = load_questions("detailed", folder) if kind == "detail" else ()
    system = f"{read_words(home / 'system.txt')}\n\n{read_words(home / f'format_{form}.txt')}"
    return Prompt(kind, form, with_boxes, system, _load_shots(home, kind, form, with_boxes), questions)


def load_questions(which: QuestionList, folder: Path | None = None) -> tuple[str, ...]:
    """One of the two lists of questions: `brief` for captions, `detailed` for descriptions."""
    path = _home(folder, QUESTION_FILES[which])
    questions = tuple(line.strip() for line in read_words(path).splitlines() if line.strip())
    if len(set(questions)) < len(questions):
        raise ValueError(f"`{path}` has a question twice. Remove one of them.")
    return questions


def response_format(kind: Kind) -> dict[str, Any]:
    """The JSON schema of a reply, in the strict form that every field is required."""
    answer = {"answer": {"type": "string"}}
    turn = _object({"question": {"type": "string"}} | answer)
    schema = _object(answer) if kind == "detail" else _object({"turns": {"type": "array", "items": turn}})
    return {"type": "json_schema", "json_schema": {"name": kind, "strict": True, "schema": schema}}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _home(folder: Path | None, name: str) -> Path:
    """Where `name` is taken from: the user's folder if it is there, else ours."""
    if folder is None:
        return OURS / name
    if not folder.is_dir():
        raise ValueError(f"The prompt folder `{folder}` does not exist. Make it, or copy `{OURS}` and edit the copy.")
    known = {*get_args(Kind), *QUESTION_FILES.values()}
    found = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}
    # A copy of all of ours has other commands' prompts too.
    if found - known - {entry.name for entry in OURS.iterdir()} or not found:
        raise ValueError(
            f"The prompt folder `{folder}` holds {', '.join(sorted(found - known)[:5]) or 'nothing'}; wanted some of "
            f"{', '.join(sorted(known))} and nothing else. Rename or move the others."
        )
    return folder / name if name in found else OURS / name


def read_words(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"`{path}` cannot be read: {error}. It is part of the prompt; write it as UTF-8.") from error
    if not text.strip():
        raise ValueError(f"`{path}` is empty. Write its text, or copy it from `{OURS}`.")
    return text.strip()


def _load_shots(home: Path, kind: Kind, form: Form, with_boxes: bool) -> tuple[tuple[str, str], ...]:
    numbers = {suffix: {p.name[: -len(suffix)] for p in home.glob(f"*{suffix}")} for suffix in SHOT_SUFFIXES}
    contexts, replies = numbers.values()
    if contexts != replies or not contexts:
        alone = ", ".join(sorted(contexts ^ replies)) or "none at all"
        raise ValueError(
            f"`{home}` needs a context and a reply of every example ({' and '.join(f'000{s}' for s in SHOT_SUFFIXES)}"
            f"); alone: {alone}."
        )
    shots = []
    for number in sorted(contexts):
        context = _shot_context(home / f"{number}_context.txt", with_boxes)
        path = home / f"{number}_reply.txt"
        try:
            turns = parse(kind, read_words(path), question="" if kind == "detail" else None)
        except Rejected as rejection:
            raise ValueError(f"`{path}` is no good example of a reply: {rejection} Rewrite it.") from rejection
        shots.append((context, render(kind, turns, form)))
    return tuple(shots)


def _shot_context(path: Path, with_boxes: bool) -> str:
    """The example's context as written, without its boxes where the teacher is to see none."""
    captions, _, boxes = read_words(path).partition("\n\n")
    for line in boxes.splitlines():
        match = BOX_LINE.fullmatch(line)
        numbers = [float(number) for number in match.groups()] if match else []
        if not match or max(numbers) > 1 or numbers[0] >= numbers[2] or numbers[1] >= numbers[3]:
            raise ValueError(
                f"`{path}` has the line {line!r}, wanted `label: [x1, y1, x2, y2]` from 0 to 1, left of right and top "
                "above bottom. Captions come first, one per line, then a blank line, then the boxes."
            )
    return f"{captions}\n\n{boxes}" if boxes and with_boxes else captions
