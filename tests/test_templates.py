"""Chat templates against an oracle that builds the same texts in plain Python, without Jinja."""

import re
from functools import cache
from pathlib import Path

import jinja2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor
from transformers import LlavaProcessor as StockLlavaProcessor
from transformers.utils.chat_template_utils import _get_template_variables, render_jinja_template

from processing.chat_templates import TEMPLATE_NAMES, load_template, own_template
from tests.tiny import PATCH_SIZE
from tests.tiny_text import clip_image_processor, tokenizer


DOCS = Path(__file__).parent.parent / "docs" / "templates.md"
BOS, EOS = "<s>", "</s>"
SPECIAL_TOKENS = {"bos_token": BOS, "eos_token": EOS}
DEFAULT_SYSTEM = (
    "You can see the images people show you. "
    "Look closely, answer truthfully and clearly, and say so when you cannot tell."
)
WITH_DEFAULT_SYSTEM = {"vicuna_v1", "llava_v0"}
CONVERSING = [name for name in TEMPLATE_NAMES if name != "plain"]


def render(template, messages, add_generation_prompt=False, **variables):
    """Text and marked spans, from stock transformers."""
    texts, spans = render_jinja_template(
        [messages],
        chat_template=template,
        return_assistant_tokens_mask=True,
        add_generation_prompt=add_generation_prompt,
        **(SPECIAL_TOKENS | variables),
    )
    return texts[0], spans[0]


# The oracle: a list of (text, is it learned) for each format.


def flatten(message):
    content = message["content"]
    if isinstance(content, str):
        return 0, content
    images = len([item for item in content if item["type"] == "image"])
    return images, "".join([item["text"] for item in content if item["type"] == "text"])


def vicuna_v1(system, rounds, bos):
    pieces = [(bos, False), (f"{system} " if system else "", False)]
    for images, question, answer in rounds:
        pieces.append(("USER: " + "<image>\n" * images + question, False))
        if answer is not None:
            pieces += [(" ASSISTANT:", False), (f" {answer}</s>", True)]
    return pieces, " ASSISTANT:"


def llava_v0(system, rounds, bos):
    pieces = [(bos, False), (f"{system}\n\n" if system else "", False)]
    opening = "### Human: "
    for images, question, answer in rounds:
        pieces.append((opening + "<image>\n" * images + question + "\n", False))
        if answer is not None:
            pieces += [("### Assistant:", False), (f" {answer}\n###", True)]
        opening = " Human: "
    return pieces, "### Assistant:"


def plain(system, rounds, bos):
    ((images, _, caption),) = rounds
    pieces = [(bos + "<image>" * images, False)]
    if caption is not None:
        pieces.append((f"{caption}\n", True))
    return pieces, ""


def llama_2(system, rounds, bos):
    pieces = []
    for number, (images, question, answer) in enumerate(rounds):
        head = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system and number == 0 else ""
        pieces.append((bos + "[INST] " + head + "<image>\n" * images + question + " [/INST]", False))
        if answer is not None:
            pieces.append((f" {answer} </s>", True))
    return pieces, ""


def mistral(system, rounds, bos):
    pieces = [(bos, False)]
    for number, (images, question, answer) in enumerate(rounds):
        head = f"{system}\n\n" if system and number == 0 else ""
        pieces.append(("[INST] " + head + "<image>\n" * images + question + " [/INST]", False))
        if answer is not None:
            pieces.append((f" {answer}</s>", True))
    return pieces, ""


def chatml(system, rounds, bos):
    pieces = [(bos, False), (f"<|im_start|>system\n{system}<|im_end|>\n" if system else "", False)]
    for images, question, answer in rounds:
        pieces.append(("<|im_start|>user\n" + "<image>\n" * images + question + "<|im_end|>\n", False))
        if answer is not None:
            pieces += [("<|im_start|>assistant\n", False), (f"{answer}<|im_end|>", True), ("\n", False)]
    return pieces, "<|im_start|>assistant\n"


def llama_3(system, rounds, bos):
    def header(role):
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n"

    pieces = [(bos, False), (header("system") + f"{system}<|eot_id|>" if system else "", False)]
    for images, question, answer in rounds:
        pieces.append((header("user") + "<image>\n" * images + question + "<|eot_id|>", False))
        if answer is not None:
            pieces += [(header("assistant"), False), (f"{answer}<|eot_id|>", True)]
    return pieces, header("assistant")


ORACLES = {
    "vicuna_v1": vicuna_v1,
    "llava_v0": llava_v0,
    "plain": plain,
    "llama_2": llama_2,
    "mistral": mistral,
    "chatml": chatml,
    "llama_3": llama_3,
}


def oracle(name, messages, add_generation_prompt=False, bos=BOS):
    system = DEFAULT_SYSTEM if name in WITH_DEFAULT_SYSTEM else ""
    if messages[0]["role"] == "system":
        system, messages = flatten(messages[0])[1], messages[1:]
    rounds = []
    for message in messages:
        images, text = flatten(message)
        if message["role"] == "user":
            rounds.append([images, text, None])
        else:
            rounds[-1][2] = text.strip()
    pieces, opening = ORACLES[name](system, rounds, bos)
    text, spans = "", []
    for piece, learned in pieces:
        if learned:
            spans.append((len(text), len(text) + len(piece)))
        text += piece
    return text + (opening if add_generation_prompt else ""), spans


def system(content):
    return {"role": "system", "content": content}


def user(*content):
    """Content items; 1 stands for an image."""
    return {
        "role": "user",
        "content": [{"type": "image"} if item == 1 else {"type": "text", "text": item} for item in content],
    }


def assistant(content):
    return {"role": "assistant", "content": content}


CONVERSATIONS = {
    "one turn": [user(1, "What is this?"), assistant("A kite.")],
    "strings": [{"role": "user", "content": "What is this?"}, assistant("A kite.")],
    "answer as a list": [
        user(1, "What?"),
        {"role": "assistant", "content": [{"type": "text", "text": " A "}, {"type": "text", "text": "kite. "}]},
    ],
    "several turns": [
        user(1, "What is this?"),
        assistant("A kite."),
        user("Which colour?"),
        assistant("Red."),
        {"role": "user", "content": "Sure?"},
        assistant("Yes."),
    ],
    "several images, after and between the text": [user("Compare ", 1, "these ", 1, "three.", 1), assistant("Alike.")],
    "image in a later turn": [user("Hello."), assistant("Hello!"), user("And this?", 1), assistant("A kite.")],
    "image alone": [user(1), assistant("A kite.")],
    "system prompt": [
        system("Speak plainly."),
        user(1, "What?"),
        assistant("A kite."),
        user("Sure?"),
        assistant("Yes."),
    ],
    "system prompt as a list": [
        system([{"type": "text", "text": "Speak plainly."}]),
        user(1, "?"),
        assistant("A kite."),
    ],
    "empty system prompt": [system(""), user(1, "What?"), assistant("A kite.")],
    "empty list as system prompt": [system([]), user(1, "What?"), assistant("A kite.")],
    "many scripts": [system("Sé claro 🪁."), user(1, "ما هذا؟\u200f"), assistant("طائرة ورقية 🪁 zażółć 凧")],
    "separators in the text": [
        user(1, "USER: ### Human: [INST]<|im_start|> {{ bos_token }} {% endgeneration %}"),
        assistant(
            "ASSISTANT: no</s>USER: ### Human: a\n### Assistant: b [/INST] <|im_end|><|eot_id|> {{ 1 }} {# c #}"
        ),
        user("<s></s> <image> <<SYS>>"),
        assistant("</s>"),
    ],
    "white space": [
        user(1, "  What?\n\n"),
        assistant("\n  A\n kite.\t\n"),
        user(" \n"),
        assistant(" \u3000Red\u2028 "),
    ],
}


def suits(name, messages):
    """`plain` takes one image turn and its caption."""
    turns = [message for message in messages if message["role"] != "system"]
    return name != "plain" or (len(turns) == 2 and flatten(turns[0])[0] > 0)


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


# Arbitrary text. Surrogates cannot be written to a file and are refused before a template sees them.
TEXT = st.text(max_size=20)
SPOKEN = TEXT.filter(lambda text: text.strip() != "")
QUESTION = st.builds(lambda items, text: user(*items, text), st.lists(st.one_of(st.just(1), TEXT), max_size=4), SPOKEN)
ROUNDS = st.lists(st.tuples(QUESTION, st.builds(assistant, SPOKEN)), min_size=1, max_size=3)


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


Q, A = user(1, "What?"), assistant("A kite.")
REFUSED = {
    "no messages": ([], r"no user turn"),
    "system message alone": ([system("Speak.")], r"no user turn"),
    "unknown role": ([Q, {"role": "tool", "content": "x"}], r"messages\[1\] \(tool\) has an unknown role"),
    "no role": ([{"content": "x"}], r"messages\[0\] \(\) has an unknown role"),
    "late system message": ([Q, A, system("Speak.")], r"messages\[2\] \(system\) is out of place"),
    "two questions": ([Q, Q], r"messages\[1\] \(user\) is out of turn.* `assistant`"),
    "two answers": ([Q, A, A], r"messages\[2\] \(assistant\) is out of turn.* `user`"),
    "answer first": ([system("Speak."), A], r"messages\[1\] \(assistant\) is out of turn.* `user`"),
    "empty question": ([{"role": "user", "content": ""}, A], r"messages\[0\] \(user\) is empty"),
    "empty list": ([{"role": "user", "content": []}, A], r"messages\[0\] \(user\) is empty"),
    "no content": ([{"role": "user"}, A], r"messages\[0\] \(user\) is empty"),
    "empty answer": ([Q, assistant("")], r"messages\[1\] \(assistant\) is empty"),
    "blank answer": ([Q, assistant(" \n")], r"messages\[1\] \(assistant\) is empty"),
    "content none": ([{"role": "user", "content": None}], r"messages\[0\] \(user\) has a content that is neither"),
    "content a dict": (
        [{"role": "user", "content": {"type": "text"}}],
        r"messages\[0\] \(user\) has a content that is",
    ),
    "content a number": ([Q, assistant(3)], r"messages\[1\] \(assistant\) has a content that is neither"),
    "image in an answer": ([Q, assistant([{"type": "image"}])], r"messages\[1\] \(assistant\) contains an image"),
    "image in the system message": ([system([{"type": "image"}]), Q], r"messages\[0\] \(system\) contains an image"),
    "unknown item": (
        [{"role": "user", "content": [{"type": "video"}]}],
        r"messages\[0\] \(user\) has an item of type `video`",
    ),
    "text item without text": ([{"role": "user", "content": [{"type": "text"}]}], r"an item of type `text`"),
    "text item with none": (
        [{"role": "user", "content": [{"type": "text", "text": None}]}],
        r"an item of type `text`",
    ),
    "item a string": ([{"role": "user", "content": ["What?"]}], r"messages\[0\] \(user\) has an item"),
}


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


# A language model's own template. These are look-alikes in the styles that are around.

QWEN_2 = """\
{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role != 'system' %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
LLAMA_3 = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "today" %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" + date_string + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
    "{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
ZEPHYR = """\
  {% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
"""
PHI_3 = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
MISTRAL = """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Turns must alternate') }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.first and system_message is defined %}
            {{- " [INST] " + system_message + "\\n\\n" + message["content"] + " [/INST]" }}
        {%- else %}
            {{- " [INST] " + message["content"] + " [/INST]" }}
        {%- endif %}
    {%- else %}
        {{- " " + message["content"] + eos_token}}
    {%- endif %}
{%- endfor %}
"""
# A macro that calls itself, another that reads an outer variable, a namespace, variables from outside, white space at
# both ends: what could break inside another macro.
SCOPES = """\
   {% set mark = '~' %}
{%- macro nest(depth) -%}{{ mark }}{%- if depth > 0 -%}{{ nest(depth - 1) }}{%- endif -%}{%- endmacro -%}
{%- macro line(message) -%}{{ nest(2) }}{{ message.role }}:  {{ message.content }}{%- endmacro -%}
{%- set ns = namespace(n=0) -%}
{% if tools %}{{ tools | length }} tools {% endif %}{% if enable_thinking is defined %}thinking {% endif %}
{% for message in messages %}
{%- set ns.n = ns.n + 1 %}
{{ ns.n }} {{ line(message) }}{{ eos_token if message.role == 'assistant' }}
{% endfor -%}
{{ (ns.n + 1) ~ ' ' ~ nest(2) ~ 'assistant:' if add_generation_prompt }}  \n"""
MARKED = QWEN_2.replace(
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}",
    "{{- '<|im_start|>' + message.role + '\\n' }}\n{%- if message.role == 'assistant' %}{% generation %}"
    "{{- message.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{- message.content + '<|im_end|>' }}"
    "{% endif %}{{- '\\n' }}",
)

OWN = {
    "qwen 2": (QWEN_2, "<|im_end|>"),
    "qwen 2, marked": (MARKED, "<|im_end|>"),
    "llama 3": (LLAMA_3, "<|eot_id|>"),
    "gemma": (GEMMA, "<end_of_turn>"),
    "zephyr": (ZEPHYR, EOS),
    "phi 3": (PHI_3, "<|end|>"),
    "mistral": (MISTRAL, EOS),
    "scopes": (SCOPES, EOS),
}


def as_strings(messages, image_token="<image>"):
    """What a text-only template expects: images first, content one string, answers without outer white space."""
    strings = []
    for message in messages:
        images, text = flatten(message)
        text = text.strip() if message["role"] == "assistant" else text
        strings.append({"role": message["role"], "content": f"{image_token}\n" * images + text})
    return strings


@cache
def own(original, stop):
    return own_template(original, stop, SPECIAL_TOKENS)


def write_alone(template, messages, add_generation_prompt=False, **variables):
    (text,), _ = render_jinja_template(
        [messages], chat_template=template, add_generation_prompt=add_generation_prompt, **(SPECIAL_TOKENS | variables)
    )
    return text


@pytest.mark.parametrize("case", CONVERSATIONS)
@pytest.mark.parametrize("style", OWN)
def test_own_writes_what_the_original_writes_and_marks_the_answers(style, case):
    original, stop = OWN[style]
    messages = CONVERSATIONS[case]
    template = own(original, stop)
    if style == "gemma" and messages[0]["role"] == "system":
        with pytest.raises(jinja2.TemplateError, match="No system role"):
            render(template, messages)
        return

    text, spans = render(template, messages)
    assert text == write_alone(original, as_strings(messages))
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    assert len(spans) == len(answers)
    for i, (start, end) in zip(answers, spans, strict=True):
        prompt, _ = render(template, messages[:i], add_generation_prompt=True)
        assert prompt == write_alone(original, as_strings(messages[:i]), add_generation_prompt=True) == text[:start]
        answer = flatten(messages[i])[1].strip()
        assert re.fullmatch(rf"\s*{re.escape(answer)}\s*{re.escape(stop)}", text[start:end])


@given(rounds=ROUNDS)
@settings(max_examples=25, deadline=None)
def test_own_marks_answers_of_any_text(rounds):
    template = own(QWEN_2, "<|im_end|>")
    messages = [message for turns in rounds for message in turns]
    text, spans = render(template, messages)
    assert text == write_alone(QWEN_2, as_strings(messages))
    assert [text[start:end] for start, end in spans] == [
        answer["content"].strip() + "<|im_end|>" for _, answer in rounds
    ]


def test_own_writes_another_image_token():
    template = own_template(QWEN_2, "<|im_end|>", SPECIAL_TOKENS, image_token='<"img\\">')
    messages = CONVERSATIONS["several images, after and between the text"]
    assert render(template, messages)[0] == write_alone(QWEN_2, as_strings(messages, '<"img\\">'))


BEGINNINGS = ["", "\n \n", "  {% if true %}\n\n{% endif %}\n", "  {{ 'x' }}"]
# And what they write: Jinja drops one line end at the end of a file, `trim_blocks` another one behind a block.
ENDINGS = {"": "", "\n": "", "\r\n": "", "\n\n": "\n", "  ": "  ", "  \n": "  ", "{% if true %} {% endif %}\n\n": " "}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_own_keeps_white_space_at_both_ends(beginning, ending):
    # A prompt must be a beginning of the whole, so what is written behind it comes before an answer too.
    gap = ENDINGS[ending] + " "
    body = (
        f"{{% for message in messages %}}{{{{ message.role ~ ':{gap}' ~ message.content ~ eos_token }}}}{{% endfor %}}"
        "{{ 'assistant:' if add_generation_prompt }}"
    )
    original = beginning + body + ending
    messages = CONVERSATIONS["several turns"]
    assert render(own(original, EOS), messages)[0] == write_alone(original, as_strings(messages))


@pytest.mark.parametrize("ending", ["\n\n", "\n \n", "."])
def test_own_refuses_what_a_prompt_has_and_the_whole_has_not(ending):
    with pytest.raises(ValueError, match="written differently once"):
        own(QWEN_2 + "{{ '' }}" + ending, "<|im_end|>")


def test_own_still_takes_the_variables_of_the_original():
    template = own(SCOPES, EOS)
    # Stock transformers passes on what it finds by reading the template.
    assert {"tools", "enable_thinking", "bos_token"} - _get_template_variables(template) == {"bos_token"}
    tools = [{"type": "function", "function": {"name": "zoom"}}]
    text, _ = render(template, CONVERSATIONS["one turn"], tools=tools, enable_thinking=False)
    assert text.startswith("1 tools thinking")


@pytest.mark.parametrize("case", REFUSED)
def test_own_refuses_what_the_others_refuse(case):
    messages, words = REFUSED[case]
    with pytest.raises(jinja2.TemplateError, match=words):
        render(own(QWEN_2, "<|im_end|>"), messages)


THINKING = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' and CONDITION %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
    {{- message.content.split('</think>')[-1].lstrip('\\n') + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\nPROMPT' }}{%- endif %}
"""


@pytest.mark.parametrize(
    "original, stop, words",
    [
        # Qwen3: thoughts are printed in the last answer and taken away again when another turn follows.
        (THINKING.replace("CONDITION", "loop.last").replace("PROMPT", ""), "<|im_end|>", "other words are written"),
        (
            THINKING.replace("CONDITION", "loop.last").replace("PROMPT", "<think>\\n\\n</think>\\n\\n"),
            "<|im_end|>",
            r"in messages\[1\] the text before the answer is written differently once",
        ),
        (THINKING.replace("CONDITION", "false").replace("PROMPT", "<think>\\n"), "<|im_end|>", "differently once"),
        (QWEN_2.replace("message.content", "message.content | upper"), "<|im_end|>", "the answer is changed"),
        (QWEN_2, EOS, "is not followed by its end `</s>`"),
        (PHI_3, EOS, "is not followed by its end `</s>`"),
        (MARKED, EOS, "but not all from .* to `</s>`"),
        # What stands between the prompt and the mark is not learned, so the model would never write it.
        (MARKED.replace("{% generation", "{{- 'x' }}{% generation"), "<|im_end|>", "but not all from"),
        ("{% for message in messages %}{{ message.content[0].text + '' }}{% endfor %}", EOS, "cannot write a plain"),
        ("{% for message in messages %}", EOS, "cannot write a plain conversation"),
        ("{{ raise_exception('Never.') }}", EOS, r"cannot write a plain conversation \(Never.\)"),
    ],
)
def test_an_own_template_that_cannot_be_kept_is_refused(original, stop, words):
    with pytest.raises(ValueError, match=words) as refusal:
        own(original, stop)
    assert "--template chatml" in str(refusal.value)


def test_own_needs_a_stop():
    with pytest.raises(ValueError, match="`stop` is empty"):
        own(QWEN_2, "")


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
