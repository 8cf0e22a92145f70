"""
Chat templates: how a conversation is written as one text, with marks around what the assistant is to learn.

The formats are the files `templates/<name>.jinja`, each with the lines of `conversation.jinja` put in. The result is
complete in itself and renders under stock transformers: saved as `chat_template.jinja`, it is all that a checkpoint
needs. Here they are read (`load_template`), and a language model's own template is made to fit (`own_template`).
Tokens and labels are made in `encoding.py`.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template


TEMPLATE_DIR = Path(__file__).parent / "templates"
# Not formats: `own_template` puts the first around a language model's template, the second goes into all the others.
PARTS = ("own", "conversation")
TEMPLATE_NAMES = tuple(sorted(path.stem for path in TEMPLATE_DIR.glob("*.jinja") if path.stem not in PARTS))
CONVERSATION_PLACE = "{#- conversation.jinja stands here -#}\n"
GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


def load_template(name: str, system: str | None = None) -> str:
    """The chat template `name`. `system` takes the place of its default system prompt; empty means none at all."""
    if name not in TEMPLATE_NAMES:
        raise ValueError(f"There is no chat template `{name}`. Choose one of: {', '.join(TEMPLATE_NAMES)}.")
    template = _read(name)
    if system is None:
        return template
    if "set default_system" not in template:
        raise ValueError(
            f"The chat template `{name}` writes no system prompt, but `system` is {system!r}. Leave `system` out."
        )
    return _set_text(template, "default_system", system)


def _read(name: str) -> str:
    before, place, after = (TEMPLATE_DIR / f"{name}.jinja").read_text(encoding="utf-8").partition(CONVERSATION_PLACE)
    if not place:
        raise ValueError(f"`templates/{name}.jinja` lacks the line {CONVERSATION_PLACE.strip()!r}. Put it in.")
    return before + (TEMPLATE_DIR / "conversation.jinja").read_text(encoding="utf-8") + after


def own_template(
    chat_template: str, stop: str, special_tokens: Mapping[str, str], image_token: str = "<image>"
) -> str:
    """
    A text-only language model's own chat template, made to read content lists with images and to mark the answers.

    It writes what `chat_template` writes. Marks that are there already are kept. A `ValueError` tells when the answers
    of this template cannot be marked, which is found out here on small conversations.

    Args:
        chat_template: `tokenizer.chat_template`, which expects each `content` to be a string.
        stop: The text that ends an answer and is learned with it, for example `<|im_end|>`.
        special_tokens: `tokenizer.special_tokens_map`, which stock transformers passes to every template.
        image_token: The text that stands for an image.
    """
    if not stop:
        raise ValueError("`stop` is empty, but an answer needs a text that ends it, for example `<|im_end|>`.")
    # Jinja drops one line end at the end of a file; in the middle of another it would be written.
    original = re.sub(r"(\r\n|\r|\n)\Z", "", chat_template)
    wrapper = _read("own")
    wrapper = wrapper.replace('"<image>\\n"', _quote(image_token + "\n"))
    wrapper = _set_text(wrapper, "end_of_answer", stop)
    if GENERATION_MARK.search(original):
        reading = wrapper[: wrapper.index("{%- macro write_original")]
        template = reading + "{%- set messages = conversation.messages %}\n" + original
    else:
        before, after = wrapper.split("ORIGINAL\n")
        template = before + original + after
    _check_own_template(template, chat_template, stop, special_tokens)
    return template


def _check_own_template(template: str, original: str, stop: str, special_tokens: Mapping[str, str]) -> None:
    """Raise unless `template` writes what `original` does and marks every answer together with its stop."""
    it = "The language model's own chat template"
    remedy = "Choose another format for this language model, for example `--template chatml`."
    for system in ([], [{"role": "system", "content": "Speak plainly."}]):
        messages: list[dict] = list(system)
        prompts: list[str] = []
        for number in ("one", "two", "three"):
            messages.append({"role": "user", "content": f"Question {number}?"})
            answered = [*messages, {"role": "assistant", "content": f"Answer {number}."}]
            try:
                prompt, _ = _render(original, messages, special_tokens, add_generation_prompt=True)
                text, _ = _render(original, answered, special_tokens)
            except (TemplateError, TypeError) as error:
                if system:
                    break  # this language model takes no system prompt, and says so
                raise ValueError(f"{it} cannot write a plain conversation ({error}). {remedy}") from error
            try:
                our_prompt, _ = _render(template, messages, special_tokens, add_generation_prompt=True)
                our_text, spans = _render(template, answered, special_tokens)
            except (TemplateError, TypeError) as error:
                raise ValueError(f"{error} {remedy}") from error
            messages = answered
            prompts.append(prompt)

            if (our_prompt, our_text) != (prompt, text):
                raise ValueError(f"{it} writes {text!r}, but {our_text!r} when wrapped. {remedy}")
            answers = [message["content"] for message in messages if message["role"] == "assistant"]
            for prompt, answer in zip(prompts, answers, strict=True):
                if not text.startswith(prompt):
                    raise ValueError(
                        f"{it} writes the text before an answer differently once the answer or another turn follows "
                        f"it: {text!r} does not start with {prompt!r}. {remedy}"
                    )
                begin = len(prompt)
                if not any(s <= begin < e and stop in text[begin:e].partition(answer)[2] for s, e in spans):
                    marked = [text[start:end] for start, end in spans]
                    raise ValueError(
                        f"{it} marks {marked} for learning, but not all from {prompt!r} to `{stop}`. {remedy}"
                    )


def _render(
    template: str, messages: list[dict], special_tokens: Mapping[str, str], add_generation_prompt: bool = False
) -> tuple[str, list[tuple[int, int]]]:
    """The text that stock transformers writes, and where it is marked."""
    texts, spans = render_jinja_template(
        [messages],
        chat_template=template,
        return_assistant_tokens_mask=GENERATION_MARK.search(template) is not None,
        add_generation_prompt=add_generation_prompt,
        **special_tokens,
    )
    return texts[0], spans[0] if spans else []


def _set_text(template: str, name: str, text: str) -> str:
    """Replace the text in the line `{%- set name = "..." -%}`."""
    line = re.compile(rf'^(\{{%- set {name} = )".*"( -%\}})$', re.MULTILINE)
    return line.sub(lambda match: match[1] + _quote(text) + match[2], template)


def _quote(text: str) -> str:
    """`text` as a Jinja string: Jinja knows every escape that JSON uses."""
    return json.dumps(text, ensure_ascii=False)
