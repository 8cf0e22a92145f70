"""What `llava demo` does with a question, whatever the page looks like: sessions, limits, answers side by side."""

import copy
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

from data_generation.microworld.draw import draw
from data_generation.microworld.questions import ask
from data_generation.microworld.scene import make_scene
from data_generation.microworld.wordings import KINDS
from processing import open_image
from recipes.measuring.questions import Picture
from recipes.talking.talker import Conversation, Said, Talker, picture_of


SIDE = 720  # pixels of a scene; the micro model sees 64
NOT_TRAINED_ON = 1_000_000  # scenes of the split `test`, which is in no training
EXAMPLES = (("detail", 11), ("count", 4), ("colour", 29))  # a kind of question, and the number of a scene
T = TypeVar("T")


@dataclass
class Session:
    """A person's conversations, one for each checkpoint, and where the pictures lie that the page shows."""

    conversations: list[Conversation]
    files: dict[str, str] = field(default_factory=dict)  # by the key of the picture
    is_over: bool = False  # another has begun in its place


class Talks:
    def __init__(self, talkers: dict[str, Talker], max_pixels: int, most_tokens: int):
        """
        Args:
            talkers: by the name that the page shows.
            most_tokens: the longest answer that can be asked for.
        """
        self.talkers, self.max_pixels, self.most_tokens = talkers, max_pixels, most_tokens
        self.running: dict[str, threading.Event] = {}  # by who has asked, what stops the answer

    def session(self) -> Session:
        return Session([Conversation() for _ in self.talkers])

    def pictures(self, paths: list[str]) -> list[Picture]:
        """Each is opened once here, so that what is no picture is told before anything is asked."""
        found = []
        for path in paths:
            name = Path(path).name
            picture = picture_of(path, name)
            open_image(picture.encoded(), name, max_pixels=self.max_pixels)
            found.append(picture)
        return found

    def ask(self, session: Session, who: str, text: str, paths: list[str]) -> None:
        """Changes nothing where the question cannot be asked."""
        self._refuse_second(who)
        if not text.strip() and not paths:
            raise ValueError("There is no question. Write one, or show a picture.")
        pictures = self.pictures(paths)
        asked = [copy.deepcopy(conversation) for conversation in session.conversations]
        for talker, conversation in zip(self.talkers.values(), asked, strict=True):
            conversation.waiting += pictures
            conversation.ask(text.strip())
            talker.encode(conversation)
        session.conversations = asked
        session.files |= {picture.key: path for picture, path in zip(pictures, paths, strict=True)}
        self.running[who] = threading.Event()

    def again(self, session: Session, who: str) -> None:
        """The last question, as if its answer had not been given."""
        self._refuse_second(who)
        if not session.conversations[0].messages:
            raise ValueError("Nothing has been asked that could be answered again. Ask something first.")
        for conversation in session.conversations:
            conversation.ask(conversation.take_back())
        self.running[who] = threading.Event()

    def _refuse_second(self, who: str) -> None:
        if who in self.running:
            raise ValueError("The last question is still being answered. Stop that answer, or wait for its end.")

    def answers(self, session: Session, who: str, temperature: float, length: int) -> Iterator[list[Said]]:
        """What each checkpoint says to the last question, growing; kept in the conversations at the end."""
        given: dict[str, Any] = {"max_new_tokens": min(int(length), self.most_tokens)}
        if temperature:
            given |= {"do_sample": True, "temperature": float(temperature)}
        stop = self.running.get(who)
        said = [Said("") for _ in self.talkers]
        try:
            if stop is None or stop.is_set():  # while it waited for others
                yield [Said("", "interrupted") for _ in self.talkers]
                return
            with ExitStack() as stack:
                streams = [
                    stack.enter_context(closing(talker.answer(conversation, stop, **given)))
                    for talker, conversation in zip(self.talkers.values(), session.conversations, strict=True)
                ]
                yield said
                for new in zip_longest(*streams):
                    said = [one or before for one, before in zip(new, said, strict=True)]
                    if self.running.get(who) is not stop:  # has left this conversation
                        return
                    yield said
        finally:
            # Here too where the person has gone: what was read of an answer is part of the conversation.
            for conversation, one in zip(session.conversations, said, strict=True):
                if one.text:
                    conversation.answered(one.text)
            if stop is not None and self.running.get(who) is stop:
                del self.running[who]

    def stop(self, who: str) -> None:
        if who in self.running:
            self.running[who].set()

    def leave(self, who: str) -> None:
        """Ends the answer, also one that still waits and that nobody will ask for."""
        self.stop(who)
        self.running.pop(who, None)


def spaced(growing: Iterator[T], seconds: float, clock: Callable[[], float] = time.monotonic) -> Iterator[T]:
    """What is read along with: not each token's, which a browser would draw long after a small model had ended."""
    shown, waiting = -math.inf, []
    for one in growing:
        waiting = [one]
        if clock() - shown >= seconds:
            yield waiting.pop()
            shown = clock()
    yield from waiting


def scene(rng: random.Random, folder: Path, kind: str | None = None, number: int | None = None) -> tuple[str, str]:
    """A question about a scene of the micro world that no training has seen, and the file of its picture."""
    while True:
        made = make_scene("test", rng.randrange(NOT_TRAINED_ON) if number is None else number)
        question = ask(made.things, kind or rng.choice(list(KINDS)), rng)
        if question is not None:
            break
    path = folder / f"{made.id}.png"
    draw(made, SIDE).save(path)
    return question.text, str(path)
