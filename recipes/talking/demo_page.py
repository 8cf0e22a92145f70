"""The page of `llava demo`, in Gradio: conversations, a box to ask in, buttons, settings."""

import html
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import safehttpx

from recipes.talking.demo_talks import EXAMPLES, Session, Talks, scene, spaced
from recipes.talking.talker import Conversation, Said


# What browsers show. Fonts are the reader's own: nothing is fetched from anywhere else.
SHOWN = [".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".avif"]
SECONDS_APART = 0.05  # between two states of an answer that grows
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
CSS = """
.gradio-container { width: 100% !important; max-width: 76rem !important; margin: 0 auto !important; }
.gradio-container > .main { width: 100%; padding: 1rem !important; }
.gradio-container .column { gap: 0.75rem; }
/* A conversation has the room that is left over, and scrolls in it. */
.chat { height: auto !important; min-height: 15rem !important; }
.chat > .wrapper { position: absolute; inset: 0; }
.chat .bubble-wrap { margin-top: 1.75rem; height: calc(100% - 1.75rem); }
/* Pictures small enough that the answer is seen with them, those of one question beside each other. */
.chat .user.message { text-align: right; }
.chat .user.message > .component { display: inline-block; width: auto; max-width: 100%; }
.chat .user.message img { max-height: 11rem; width: auto; }
/* Gradio's buttons: one to share would upload the picture to the Hub. */
.chat .message-buttons { display: none; }
/* An error is told in words; Gradio would also lay the word "Error" over everything. */
[data-testid=status-tracker]:has(> .error) { display: none !important; }
#question .thumbnails { flex-wrap: wrap; max-height: 14rem; overflow-y: auto; }
#question .thumbnail-item { width: 6rem; height: 6rem; }
#draw, #again, #anew { padding-inline: 0.25rem; white-space: nowrap; }
/* The scenes are for who has not begun; after that their room is the conversation's. */
.gradio-container:has(.chat .message-row) #scenes { display: none; }
#scenes .gallery-item { font-size: var(--text-sm); }
#scenes img { width: 4rem !important; height: 4rem !important; }
@media (max-width: 600px) {
    .gradio-container > .main { padding: 0.5rem !important; }
    .chat .user.message img { max-height: 8rem; }
    #draw, #again, #anew { font-size: var(--text-xs); }
}
"""
NOTHING = "(nothing was said)"
logger = logging.getLogger(__name__)


def make_page(talks: Talks, folder: Path, at_once: int) -> gr.Blocks:
    """
    Args:
        folder: drawn pictures go there.
        at_once: questions that are answered at the same time; others wait in turn.
    """
    fetch_nothing()
    page = gr.Blocks(
        title=" | ".join(talks.talkers), analytics_enabled=False, delete_cache=(3600, 86400), fill_height=True
    )
    with page:
        session = gr.State(None)
        with gr.Row(scale=1, equal_height=True):
            chats = [chat_of(name) for name in talks.talkers]
        box = gr.MultimodalTextbox(
            show_label=False,
            placeholder="Ask about a picture: upload, drop or paste one",
            file_types=SHOWN,
            file_count="multiple",
            autofocus=True,
            elem_id="question",
        )
        with gr.Row():
            drawn = gr.Button("Draw me a scene", size="sm", min_width=90, elem_id="draw")
            again = gr.Button("Answer again", size="sm", min_width=90, elem_id="again")
            anew = gr.Button("New chat", size="sm", min_width=90, elem_id="anew")
        with gr.Accordion("Temperature and length", open=False, elem_id="settings"), gr.Row():
            temperature = gr.Slider(0, 1.5, 0, step=0.1, label="Temperature", info="0: always the likeliest word")
            length = gr.Slider(
                1,
                talks.most_tokens,
                min(256, talks.most_tokens),
                step=1,
                label="Longest answer",
                info="in tokens, of which a word has one or two",
            )
        with gr.Column(scale=0, elem_id="scenes"):
            gr.Examples(examples_in(folder), box, label="Scenes to ask about")

        shown = [session, box, *chats]
        handlers = Handlers(talks, folder)
        queued = {"concurrency_limit": at_once, "concurrency_id": "model", "show_progress_on": chats}
        quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        # In the queue too, though with no limit: what goes past it cannot show errors.
        told_of = quick | {"queue": True, "concurrency_limit": None}
        for asked in (
            box.submit(handlers.ask, [box, session], shown, **told_of),
            again.click(handlers.again, session, shown, **told_of),
        ):
            answer = asked.success(
                handlers.answer, [session, temperature, length], chats, api_visibility="private", **queued
            )
            answer.then(free_box, None, box, **quick)
        box.stop(handlers.stop, None, None, **quick)
        drawn.click(handlers.draw, box, box, **quick)
        gr.on([anew.click, *(chat.clear for chat in chats)], handlers.anew, session, shown, **quick)
        page.unload(handlers.leave)
    return page


def fetch_nothing() -> None:
    """Gradio would fetch, for anyone who can open the page, what the address in a message or of a file names."""

    async def refuse(address: str, **_: Any) -> None:
        raise ValueError(f"`{address}` would have to be fetched, and nothing is fetched here. Upload the picture.")

    # All that Gradio fetches for others goes through these two.
    safehttpx.get = safehttpx.async_validate_url = refuse


def chat_of(name: str) -> gr.Chatbot:
    # Markdown of an answer could show pictures, and so fetch them from where a text says. Of Gradio's buttons one
    # copies what `messages` escapes and another uploads a picture to the Hub; a mouse copies the words as they are.
    return gr.Chatbot(
        label=name,
        render_markdown=False,
        buttons=[],
        feedback_options=None,
        layout="bubble",
        height=None,
        min_width=320,
        placeholder="Show a picture and ask about it",
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

    def ask(self, message: dict[str, Any], session: Session | None, request: gr.Request) -> tuple:
        """Shows the question at once, though its answer may have to wait for those of others."""
        session = session or self.talks.session()
        try:
            self.talks.ask(session, request.session_hash, message["text"], message["files"])
        except Exception as error:
            raise told(error) from error
        return self._shown(session, gr.MultimodalTextbox(value=None, submit_btn=False, stop_btn=True))

    def again(self, session: Session | None, request: gr.Request) -> tuple:
        session = session or self.talks.session()
        try:
            self.talks.again(session, request.session_hash)
        except Exception as error:
            raise told(error) from error
        return self._shown(session, gr.MultimodalTextbox(submit_btn=False, stop_btn=True))

    def answer(self, session: Session | None, temperature: float, length: int, request: gr.Request) -> Iterator[list]:
        chats: list = [[] for _ in self.talks.talkers]
        try:
            if session is not None:
                growing = self.talks.answers(session, request.session_hash, temperature, length)
                for said in spaced(growing, SECONDS_APART):
                    chats = self._chats(session, said)
                    yield chats if len(chats) > 1 else chats[0]  # as Gradio wants it
        except Exception as error:
            raise told(error) from error
        if session is None or session.is_over:
            # What was shown of it may reach the browser only after the page has been cleared.
            yield [[] for _ in chats] if len(chats) > 1 else []

    def _shown(self, session: Session, box: Any) -> tuple:
        said = [Said("") for _ in session.conversations]
        return session, box, *self._chats(session, said)

    def _chats(self, session: Session, said: list[Said]) -> list:
        return [messages(one, session.files, now) for one, now in zip(session.conversations, said, strict=True)]

    def stop(self, request: gr.Request) -> None:
        self.talks.stop(request.session_hash)

    def leave(self, request: gr.Request) -> None:
        self.talks.leave(request.session_hash)

    def draw(self, message: dict[str, Any]) -> dict[str, Any]:
        question, path = scene(random.Random(), self.folder)
        # A question without a picture was typed for the one to come.
        is_typed = bool(message["text"].strip()) and not message["files"]
        return {"text": message["text"] if is_typed else question, "files": [path]}

    def anew(self, session: Session | None, request: gr.Request) -> tuple:
        if session is not None:
            session.is_over = True
        self.talks.leave(request.session_hash)
        return (
            None,
            gr.MultimodalTextbox(value=None, submit_btn=True, stop_btn=False),
            *([] for _ in self.talks.talkers),
        )


def messages(conversation: Conversation, files: dict[str, str], said: Said) -> list[dict[str, Any]]:
    """As a chatbot shows them: a picture is a message of its own, and of words it takes `<` for a tag."""
    pictures = iter(conversation.pictures)
    found: list[dict[str, Any]] = []
    for message in conversation.messages:
        for part in message["content"]:
            content = {"path": files[next(pictures).key]} if part["type"] == "image" else html.escape(part["text"])
            found.append({"role": message["role"], "content": content})
    is_unanswered = bool(conversation.messages) and conversation.messages[-1]["role"] == "user"
    if is_unanswered and (said.text or said.ended):
        found.append({"role": "assistant", "content": html.escape(said.text or NOTHING)})
    return found


def told(error: Exception) -> gr.Error:
    """What happened, in the words of who noticed; of what nobody foresaw, its kind too, and its place in the log."""
    words = " ".join(str(error).split())
    if not isinstance(error, (ValueError, OSError)):
        logger.exception("An answer failed")
        words = f"{type(error).__name__}: {words}"
    return gr.Error(html.escape(words), duration=20, print_exception=False)
