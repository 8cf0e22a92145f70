"""The page of `llava demo`, in Gradio: conversations, a box to ask in, buttons, settings."""

import html
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from recipes.demo_talks import EXAMPLES, Session, Talks, scene
from recipes.talking import Conversation, Said


# What browsers show. Fonts are the reader's own: nothing is fetched from anywhere else.
SHOWN = [".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".avif"]
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
# Gradio's button to share a picture would upload it to the Hub.
CSS = """
.gradio-container { max-width: 76rem !important; margin: 0 auto !important; }
#question .thumbnail-item { width: 8rem; height: 8rem; }
.chat button[aria-label="Share"] { display: none; }
"""
NOTHING = "(nothing was said)"
logger = logging.getLogger(__name__)


def make_page(talks: Talks, folder: Path, at_once: int) -> gr.Blocks:
    """
    Args:
        folder: drawn pictures go there.
        at_once: questions that are answered at the same time; others wait in turn.
    """
    with gr.Blocks(title=" | ".join(talks.talkers), analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        session = gr.State(None)
        with gr.Row():
            chats = [chat_of(name, len(talks.talkers)) for name in talks.talkers]
        box = gr.MultimodalTextbox(
            show_label=False,
            placeholder="Ask about a picture: upload, drop or paste one, or have a scene drawn",
            file_types=SHOWN,
            file_count="multiple",
            autofocus=True,
            elem_id="question",
        )
        with gr.Row():
            drawn = gr.Button("Draw me a scene", size="sm", min_width=100, elem_id="draw")
            again = gr.Button("Answer again", size="sm", min_width=100, elem_id="again")
            anew = gr.Button("New conversation", size="sm", min_width=100, elem_id="anew")
        with gr.Accordion("How it answers", open=False):
            temperature = gr.Slider(0, 1.5, 0, step=0.1, label="Temperature", info="0: always the likeliest word")
            length = gr.Slider(
                1, talks.most_tokens, min(256, talks.most_tokens), step=1, label="Longest answer, tokens"
            )
        gr.Examples(examples_in(folder), box, label="Scenes to ask about")

        settings = [temperature, length]
        shown = [session, box, *chats]
        handlers = Handlers(talks, folder)
        queued = {"concurrency_limit": at_once, "concurrency_id": "model", "api_visibility": "private"}
        quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        box.submit(handlers.ask, [box, session, *settings], shown, **queued).then(free_box, None, box, **quick)
        again.click(handlers.again, [session, *settings], shown, **queued).then(free_box, None, box, **quick)
        box.stop(handlers.stop, None, None, **quick)
        drawn.click(handlers.draw, None, box, **quick)
        gr.on([anew.click, *(chat.clear for chat in chats)], handlers.anew, None, shown, **quick)
        page.unload(handlers.leave)
    return page


def chat_of(name: str, beside: int) -> gr.Chatbot:
    # Markdown of an answer could show pictures, and so fetch them from where a text says.
    return gr.Chatbot(
        label=name,
        render_markdown=False,
        buttons=["copy"],
        feedback_options=None,
        layout="bubble",
        height="56vh" if beside == 1 else "48vh",
        min_height=260,
        placeholder="Show a picture and ask",
        latex_delimiters=[],
        elem_classes="chat",
    )


def examples_in(folder: Path) -> list[list[dict[str, Any]]]:
    found = []
    for kind, number in EXAMPLES:
        question, path = scene(random.Random(number), folder, kind, number)
        found.append([{"text": question, "files": [path]}])
    return found


def free_box() -> gr.MultimodalTextbox:
    return gr.MultimodalTextbox(submit_btn=True, stop_btn=False)


class Handlers:
    """What the page's buttons call. Errors come back as words of what happened."""

    def __init__(self, talks: Talks, folder: Path):
        self.talks, self.folder = talks, folder

    def ask(
        self,
        message: dict[str, Any],
        session: Session | None,
        temperature: float,
        length: int,
        request: gr.Request,
    ) -> Iterator[tuple]:
        session = session or self.talks.session()
        text, paths = message["text"], message["files"]
        try:
            self.talks.ask(session, text, paths)
        except Exception as error:
            raise told(error) from error
        try:
            yield from self._answer(session, temperature, length, request)
        except Exception as error:
            self.talks.forget(session, len(paths))
            yield self._shown(session, gr.MultimodalTextbox(value=message, submit_btn=True, stop_btn=False))
            raise told(error) from error

    def again(self, session: Session | None, temperature: float, length: int, request: gr.Request) -> Iterator[tuple]:
        try:
            session = session or self.talks.session()
            self.talks.again(session)
            yield from self._answer(session, temperature, length, request)
        except Exception as error:
            raise told(error) from error

    def _answer(self, session: Session, temperature: float, length: int, request: gr.Request) -> Iterator[tuple]:
        asking = gr.MultimodalTextbox(value=None, submit_btn=False, stop_btn=True)
        for said in self.talks.answers(session, request.session_hash, temperature, length):
            yield self._shown(session, asking, said)
            asking = gr.skip()
        yield self._shown(session, free_box(), said)

    def _shown(self, session: Session, box: Any, said: list[Said] | None = None) -> tuple:
        said = said or [Said("") for _ in session.conversations]
        chats = [messages(one, session.files, now) for one, now in zip(session.conversations, said, strict=True)]
        return session, box, *chats

    def stop(self, request: gr.Request) -> None:
        self.talks.stop(request.session_hash)

    leave = stop

    def draw(self) -> dict[str, Any]:
        question, path = scene(random.Random(), self.folder)
        return {"text": question, "files": [path]}

    def anew(self, request: gr.Request) -> tuple:
        self.talks.stop(request.session_hash)
        return (
            None,
            gr.MultimodalTextbox(value=None, submit_btn=True, stop_btn=False),
            *([] for _ in self.talks.talkers),
        )


def messages(conversation: Conversation, files: dict[str, str], said: Said) -> list[dict[str, Any]]:
    """As a chatbot shows them: a picture is a message of its own."""
    pictures = iter(conversation.pictures)
    found: list[dict[str, Any]] = []
    for message in conversation.messages:
        for part in message["content"]:
            content = {"path": files[next(pictures).key]} if part["type"] == "image" else part["text"]
            found.append({"role": message["role"], "content": content})
    is_unanswered = bool(conversation.messages) and conversation.messages[-1]["role"] == "user"
    if is_unanswered and (said.text or said.ended):
        found.append({"role": "assistant", "content": said.text or NOTHING})
    return found


def told(error: Exception) -> gr.Error:
    """What happened, in the words of who noticed; of what nobody foresaw, its kind too, and its place in the log."""
    words = " ".join(str(error).split())
    if not isinstance(error, (ValueError, OSError)):
        logger.exception("An answer failed")
        words = f"{type(error).__name__}: {words}"
    return gr.Error(html.escape(words), duration=20, print_exception=False)
