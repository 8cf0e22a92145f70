"""Chat templates against an oracle that builds the same texts in plain Python, without Jinja."""

import re
from pathlib import Path

import jinja2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor
from transformers import LlavaProcessor as StockLlavaProcessor
from transformers.utils.chat_template_utils import render_jinja_template

from processing.chat_templates import TEMPLATE_NAMES, load_template
from tests.template_oracle import (
    BOS,
    CONVERSATIONS,
    DEFAULT_SYSTEM,
    EOS,
    ORACLES,
    REFUSED,
    ROUNDS,
    TEXT,
    WITH_DEFAULT_SYSTEM,
    A,
    Q,
    flatten,
    oracle,
    render,
    suits,
    system,
    user,
)
from tests.tiny import PATCH_SIZE
from tests.tiny_text import clip_image_processor, tokenizer


DOCS = Path(__file__).parent.parent / "docs" / "templates.md"
CONVERSING = [name for name in TEMPLATE_NAMES if name != "plain"]


CASES = [
    pytest.param(name, messages, id=f"{name}-{case}")
    for name in TEMPLATE_NAMES
    for case, messages in CONVERSATIONS.items()
    if suits(name, messages)
]


def test_the_templates_are_those_with_an_oracle():
    assert set(TEMPLATE_NAMES) == set(ORACLES)


@pytest.mark.parametrize("name, messages", CASES)
def test_text_and_learned_spans_are_as_in_the_oracle(name, messages):
    template = load_template(name)
    assert render(template, messages) == oracle(name, messages)
    question = messages[:-1]
    assert render(template, question) == oracle(name, question)
    assert render(template, question, add_generation_prompt=True) == oracle(name, question, True)


@pytest.mark.parametrize("name, messages", CASES)
def test_a_prompt_is_the_text_up_to_the_answer(name, messages):
    template = load_template(name)
    text, spans = render(template, messages)
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    assert len(answers) == len(spans)
    for i, (start, _) in zip(answers, spans, strict=True):
        prompt, _ = render(template, messages[:i], add_generation_prompt=True)
        assert prompt == text[:start]


@pytest.mark.parametrize("name", TEMPLATE_NAMES)
def test_bos_is_written_once_and_only_where_there_is_one(name):
    messages = CONVERSATIONS["one turn"]
    text, _ = render(load_template(name), messages)
    assert text.startswith(BOS) and text.count(BOS) == 1
    for variables in ({"bos_token": None}, {"bos_token": ""}):
        assert render(load_template(name), messages, **variables) == oracle(name, messages, bos="")
    (without,), _ = render_jinja_template([messages], chat_template=load_template(name), eos_token=EOS)
    assert without == oracle(name, messages, bos="")[0]


@pytest.mark.parametrize("name", TEMPLATE_NAMES)
@given(prompt=st.none() | TEXT, rounds=ROUNDS)
@settings(max_examples=25, deadline=None)
def test_any_text_is_written_as_in_the_oracle(name, prompt, rounds):
    if name == "plain":
        rounds = [(user(1, *[item.get("text", 1) for item in rounds[0][0]["content"]]), rounds[0][1])]
    messages = [] if prompt is None else [system(prompt)]
    messages += [message for turns in rounds for message in turns]
    assert render(load_template(name), messages) == oracle(name, messages)
    assert render(load_template(name), messages[:-1], True) == oracle(name, messages[:-1], True)


# System prompts.


@given(prompt=TEXT)
@settings(max_examples=50, deadline=None)
@example('say "yes" {{ 1 }} {% if %} {# x #} -%} }} \\n \\ \\u0041')
@example("it's\r\n\t\0\x7f\u2028é凧🪁")
def test_any_text_can_be_the_default_system_prompt(prompt):
    messages = CONVERSATIONS["one turn"]
    assert render(load_template("chatml", system=prompt), messages) == oracle("chatml", [system(prompt), *messages])


@pytest.mark.parametrize("prompt", ["", 'Say "yes".\n{%}'])
@pytest.mark.parametrize("name", CONVERSING)
def test_another_default_system_prompt_is_written_like_a_system_message(name, prompt):
    template = load_template(name, system=prompt)
    messages = CONVERSATIONS["several turns"]
    assert render(template, messages) == oracle(name, [system(prompt), *messages])
    messages = CONVERSATIONS["system prompt"]
    assert render(template, messages) == oracle(name, messages)


def test_the_default_system_prompt_stands_in_one_place():
    for name in CONVERSING:
        assert load_template(name).count("set default_system") == 1
        assert load_template(name).count(DEFAULT_SYSTEM) == (name in WITH_DEFAULT_SYSTEM)


def test_plain_takes_no_system_prompt():
    with pytest.raises(ValueError, match="`plain` writes no system prompt"):
        load_template("plain", system="Speak plainly.")


@pytest.mark.parametrize("name", ["vicuna", "own", "../templates/plain", ""])
def test_an_unknown_template_is_refused_with_the_names(name):
    with pytest.raises(ValueError, match="chatml, llama_2, llama_3, llava_v0, mistral, plain, vicuna_v1"):
        load_template(name)


# What a template refuses.


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("name", TEMPLATE_NAMES)
def test_a_conversation_that_is_none_is_refused(name, case):
    messages, words = REFUSED[case]
    with pytest.raises(jinja2.TemplateError, match=words):
        render(load_template(name), messages)


@pytest.mark.parametrize("name", TEMPLATE_NAMES)
def test_a_generation_prompt_needs_a_question(name):
    with pytest.raises(jinja2.TemplateError, match="`add_generation_prompt` asks for an answer"):
        render(load_template(name), [Q, A], add_generation_prompt=True)


def test_plain_refuses_what_it_would_leave_out():
    with pytest.raises(jinja2.TemplateError, match="this conversation has 4 turns"):
        render(load_template("plain"), [Q, A, Q, A])
    with pytest.raises(jinja2.TemplateError, match="must show an image"):
        render(load_template("plain"), [user("What?"), A])


@pytest.mark.parametrize("name", ["vicuna_v1", "llama_2", "mistral"])
@pytest.mark.parametrize("variables", [{"eos_token": None}, {"eos_token": ""}])
def test_a_missing_eos_token_is_told(name, variables):
    with pytest.raises(jinja2.TemplateError, match="`eos_token`, and this tokenizer has none"):
        render(load_template(name), [Q, A], **variables)


# Stock transformers and servers.


@pytest.mark.parametrize("name", TEMPLATE_NAMES)
def test_the_stock_processor_renders_a_saved_template(name, tmp_path):
    kind = {"chatml": "qwen", "llama_3": "llama_3"}.get(name, "llama")
    processor = StockLlavaProcessor(
        image_processor=clip_image_processor(),
        tokenizer=tokenizer(kind),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=load_template(name),
    )
    processor.save_pretrained(tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text(encoding="utf-8") == load_template(name)

    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is StockLlavaProcessor
    bos = loaded.tokenizer.bos_token or ""
    for messages in CONVERSATIONS.values():
        if not suits(name, messages):
            continue
        text = loaded.apply_chat_template(messages, tokenize=False)
        assert text == oracle(name, messages, bos=bos)[0]
        prompt = loaded.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        assert prompt == oracle(name, messages[:-1], True, bos=bos)[0]
        continued = loaded.apply_chat_template(messages, tokenize=False, continue_final_message=True).rstrip()
        assert text.startswith(continued) and continued.endswith(flatten(messages[-1])[1].strip())

    # Exactly one BOS among the ids too, and the learned ids are the answer and its stop.
    messages = [{"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (40, 30))}]}, A]
    out = loaded.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    ids = out["input_ids"][0]
    if bos:
        assert ids[0] == loaded.tokenizer.bos_token_id and ids.count(ids[0]) == 1
    learned = [token for token, mask in zip(ids, out["assistant_masks"][0], strict=True) if mask]
    text, ((start, end),) = oracle(name, CONVERSATIONS["image alone"], bos=bos)
    assert loaded.tokenizer.decode(learned).strip() == text[start:end].strip()


@pytest.mark.parametrize("name", TEMPLATE_NAMES)
def test_servers_see_that_content_is_a_list(name):
    """vLLM and SGLang look for `for … in messages` and, in its variable's `content`, for a second loop."""
    tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(
        re.sub(r"\{%- (end)?generation -%\}", "", load_template(name))
    )
    loops = [(loop.target.name, loop.iter) for loop in tree.find_all(jinja2.nodes.For)]
    message = {target for target, over in loops if isinstance(over, jinja2.nodes.Name) and over.name == "messages"}
    assert message == {"message"}
    assert any(
        isinstance(over, jinja2.nodes.Getitem) and over.node.name == "message" and over.arg.value == "content"
        for _, over in loops
        if isinstance(over, jinja2.nodes.Getitem) and isinstance(over.node, jinja2.nodes.Name)
    )


# The table in the documentation.


def documented():
    rows = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    cells = [[cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]
    return {row[0].strip("`"): row for row in cells}


def code(cell):
    return re.search(r"`([^`]+)`", cell)[1].replace("\\n", "\n")


def test_the_documentation_lists_every_template():
    assert set(documented()) == set(TEMPLATE_NAMES)


@pytest.mark.parametrize("name", TEMPLATE_NAMES)
def test_the_documentation_tells_what_is_written(name):
    _, _, _, default_system, stop, prompt_end, _ = documented()[name]
    messages = CONVERSATIONS["one turn"]
    text, ((start, end),) = render(load_template(name), messages)
    assert text[start:end].endswith("A kite." + code(stop)) or text[start:end].endswith("A kite. " + code(stop))
    assert text[:start].endswith(code(prompt_end))
    prompt, _ = render(load_template(name), messages[:1], add_generation_prompt=True)
    assert prompt.endswith(code(prompt_end))
    without, _ = render(load_template(name), [system(""), *messages])
    assert default_system == ("no" if without == text else "yes")
