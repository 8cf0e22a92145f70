"""A language model's own chat template: it writes what it wrote before, and the answers are marked."""

import re
from functools import cache

import jinja2
import pytest
from hypothesis import given, settings
from transformers.utils.chat_template_utils import _get_template_variables, render_jinja_template

from processing.chat_templates import own_template
from tests.template_oracle import CONVERSATIONS, EOS, REFUSED, ROUNDS, SPECIAL_TOKENS, flatten, render


# Look-alikes of what language models bring, in the styles that are around.

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
