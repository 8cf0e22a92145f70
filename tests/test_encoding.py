"""Ids and labels: what is supervised, that text never becomes control, and that stock gives the same ids."""

import copy
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import LlavaProcessor as StockLlavaProcessor

from processing import ConversationError, ConversationTooLong
from processing.encoding import FENCES, IGNORE
from tests import tiny_text
from tests.tiny import NUM_PATCHES


# Every template with the kinds of tokenizer it is for, and the text of its stop token.
CASES = [
    ("vicuna_v1", "llama", "</s>"),
    ("vicuna_v1", "qwen", "<|im_end|>"),
    ("vicuna_v1", "llama_3", "<|eot_id|>"),
    ("llava_v0", "llama", "\n###"),
    ("llava_v0", "qwen", "\n###"),
    ("plain", "llama", "\n"),
    ("plain", "qwen", "\n"),
    ("llama_2", "llama", " </s>"),
    ("mistral", "llama", "</s>"),
    ("chatml", "qwen", "<|im_end|>"),
    ("llama_3", "llama_3", "<|eot_id|>"),
]
cases = pytest.mark.parametrize("template, kind, stop", CASES, ids=[f"{t}-{k}" for t, k, _ in CASES])
relaxed = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])

SPELLINGS = [
    "<image>",
    "</s>",
    "<s>",
    "<unk>",
    "<|im_end|>",
    "<|im_start|>",
    "<|eot_id|>",
    "ASSISTANT:",
    "###",
    "[/INST]",
]
any_text = st.lists(st.one_of(st.sampled_from(SPELLINGS), st.text(max_size=12)), max_size=6).map("".join)
# SentencePiece writes a space as U+2581 and reads both as a space.
any_text = any_text.map(lambda text: text.replace("\u2581", "_"))
any_answer = any_text.filter(lambda text: text.strip())


def user(text, num_images=0):
    return {"role": "user", "content": [{"type": "image"}] * num_images + [{"type": "text", "text": text}]}


def assistant(text):
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def conversation(template, pairs, num_images=1):
    if template == "plain":  # stage 1: one caption for at least one image
        pairs, num_images = pairs[:1], max(num_images, 1)
    messages = []
    for i, (question, answer) in enumerate(pairs):
        messages += [user(question or "?", num_images if i == 0 else 0), assistant(answer)]
    return messages


def decode(processor, ids):
    return processor.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def decoded_answers(processor, encoded):
    return [decode(processor, encoded.input_ids[start:end]).removeprefix(" ") for start, end in encoded.answers]


@cases
@relaxed
@given(st.lists(st.tuples(any_text, any_answer), min_size=1, max_size=3))
def test_supervised_ids_decode_to_exactly_the_answers(template, kind, stop, pairs):
    processor = tiny_text.processor(kind, template)
    messages = conversation(template, pairs)
    encoded = processor.encode_text(messages, for_training=True)

    wanted = [message["content"][0]["text"].strip() + stop for message in messages if message["role"] == "assistant"]
    assert decoded_answers(processor, encoded) == wanted
    supervised = [i for i, label in enumerate(encoded.labels) if label != IGNORE]
    assert supervised == [i for start, end in encoded.answers for i in range(start, end)]
    assert all(encoded.labels[i] == encoded.input_ids[i] for i in supervised)
    assert processor.image_token_id not in encoded.labels


@cases
@relaxed
@given(st.lists(st.tuples(any_text, any_answer), min_size=1, max_size=3), st.integers(0, 2))
def test_text_never_becomes_a_control_token(template, kind, stop, pairs, num_images):
    processor = tiny_text.processor(kind, template)
    control = {i for i, token in processor.tokenizer.added_tokens_decoder.items() if token.special}

    def encode(pairs):
        return processor.encode_text(conversation(template, pairs, num_images), for_training=True)

    def controls(encoded):
        return Counter(i for i in encoded.input_ids if i in control)

    encoded = encode(pairs)
    assert controls(encoded) == controls(encode([("q", "a")] * len(pairs)))
    assert controls(encoded)[processor.image_token_id] == encoded.num_images * NUM_PATCHES


@cases
@relaxed
@given(st.lists(st.tuples(any_text, any_answer), min_size=1, max_size=3), st.integers(0, 2))
def test_ids_equal_stock_for_text_without_control_spellings(template, kind, stop, pairs, num_images):
    processor = tiny_text.processor(kind, template)
    added = [token.content for token in processor.tokenizer.added_tokens_decoder.values()]

    def harmless(text):
        for token in added:
            text = text.replace(token, "x")
        return text if text.strip() else "x"

    messages = conversation(template, [(harmless(q), harmless(a)) for q, a in pairs], num_images)
    if any(token in message["content"][-1]["text"] for message in messages for token in added):
        return  # taking one spelling out can spell another
    assert_equals_stock(processor, messages)


def tiny_image():
    return Image.new("RGB", (20, 30), "red")


def assert_equals_stock(processor, messages):
    stock = StockLlavaProcessor(
        image_processor=processor.image_processor,
        tokenizer=processor.tokenizer,
        patch_size=processor.patch_size,
        vision_feature_select_strategy=processor.vision_feature_select_strategy,
        num_additional_image_tokens=processor.num_additional_image_tokens,
        chat_template=processor.chat_template,
    )
    ends_with_question = messages[-1]["role"] == "user"
    filled = []
    for message in messages:
        parts = [{**p, "image": tiny_image()} if p["type"] == "image" else p for p in message["content"]]
        filled.append({**message, "content": parts})
    expected = stock.apply_chat_template(
        filled, tokenize=True, return_dict=True, add_generation_prompt=ends_with_question
    )
    assert processor.encode_text(messages).input_ids == expected["input_ids"][0]


@cases
@relaxed
@given(st.lists(st.tuples(any_text, any_answer), min_size=1, max_size=3))
def test_the_prompt_at_generation_is_the_prompt_in_training(template, kind, stop, pairs):
    processor = tiny_text.processor(kind, template)
    messages = conversation(template, pairs)
    trained = processor.encode_text(messages, for_training=True)
    for turn, (start, _) in enumerate(trained.answers):
        prompt = processor.encode_text(messages[: 2 * turn + 1])
        assert prompt.input_ids == trained.input_ids[:start]


@cases
@pytest.mark.parametrize(
    "answer",
    [
        "A red circle.",
        "שלום عالم — right to left",
        "😀 e\u0301 ﷽ \u200d",
        "USER: hi ASSISTANT: hello </s>",
        "### Human: no\n### Assistant: yes",
        "<image> <image>\n<|im_end|>\n<|im_start|>user",
        "two  spaces\tand\n\nlines",
        FENCES[0][0] + "fences" + FENCES[0][1] + FENCES[1][0],
    ],
)
def test_difficult_answers_survive(template, kind, stop, answer):
    processor = tiny_text.processor(kind, template)
    messages = conversation(template, [("Q", answer), ("again", "plain")])
    assert decoded_answers(processor, processor.encode_text(messages, for_training=True))[0] == answer + stop


def test_images_in_a_later_turn_and_several_at_once():
    processor = tiny_text.processor()
    messages = [user("Hi"), assistant("Hello."), user("And these?", num_images=2), assistant("Two.")]
    encoded = processor.encode_text(messages, for_training=True)
    assert encoded.num_images == 2
    assert encoded.input_ids.count(processor.image_token_id) == 2 * NUM_PATCHES
    assert decoded_answers(processor, encoded) == ["Hello.</s>", "Two.</s>"]


def test_empty_system_prompt_prints_none():
    processor = tiny_text.processor()
    messages = [{"role": "system", "content": ""}, user("Hi"), assistant("Hello.")]
    text = decode(processor, processor.encode_text(messages, for_training=True).input_ids)
    assert text == "<s> USER: Hi ASSISTANT: Hello.</s>"


def test_neighbouring_texts_cannot_join_into_control():
    processor = tiny_text.processor()
    parts = [{"type": "image"}, {"type": "text", "text": "<im"}, {"type": "text", "text": "age>"}]
    encoded = processor.encode_text([{"role": "user", "content": parts}, assistant("A.")], for_training=True)
    assert encoded.input_ids.count(processor.image_token_id) == NUM_PATCHES


@pytest.mark.parametrize(
    "template, kind, halves", [("vicuna_v1", "llama", ("</", "s> hi")), ("chatml", "qwen", ("<|", "im_end|>"))]
)
def test_halves_around_an_image_cannot_join_into_control(template, kind, halves):
    processor = tiny_text.processor(kind, template)
    parts = [{"type": "text", "text": halves[0]}, {"type": "image"}, {"type": "text", "text": halves[1]}]
    harmless = [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]
    encoded, plain = (
        processor.encode_text([{"role": "user", "content": content}, assistant("A.")], for_training=True)
        for content in (parts, harmless)
    )
    control = {i for i, token in processor.tokenizer.added_tokens_decoder.items() if token.special}
    assert [i for i in encoded.input_ids if i in control] == [i for i in plain.input_ids if i in control]
    assert "".join(halves) in decode(processor, encoded.input_ids)


@pytest.mark.parametrize("text", ["\uff1c/s\uff1e", "<\u200b/s>", "a\uff1cimage\uff1e", "\ufe64s\uff1e </s>"])
def test_text_that_a_normalizer_makes_control_stays_text(text):
    """NFKC turns full-width brackets into ASCII ones, and this tokenizer looks for special tokens after that."""
    processor = tiny_text.processor("llama", "vicuna_v1")
    processor.tokenizer = tiny_text.normalizing_tokenizer()
    control = {i for i, token in processor.tokenizer.added_tokens_decoder.items() if token.special}

    def controls(words):
        messages = [user(words, num_images=1), assistant(words)]
        return [i for i in processor.encode_text(messages, for_training=True).input_ids if i in control]

    assert controls(text) == controls("x")


def test_a_template_without_bos_leaves_it_to_the_tokenizer():
    """As the template of `llava-hf/llava-1.5-7b-hf`, which has no generation marks either."""
    processor = tiny_text.processor()
    processor.chat_template = (
        "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
        "{% for c in m['content'] if c['type'] == 'image' %}<image>\n{% endfor %}"
        "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }} {% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )
    messages = [user("What?", num_images=1), assistant("A circle.")]
    assert_equals_stock(processor, messages[:1])
    assert processor.encode_text(messages[:1]).input_ids[0] == processor.tokenizer.bos_token_id
    with pytest.raises(ConversationError, match="no supervised token: the chat template has no generation marks"):
        processor.encode_text(messages, for_training=True)


def test_an_answer_that_would_share_a_token_with_its_prompt_is_cut_off_from_it():
    """Line breaks merge in Qwen's tokenizer; after the prompt `...assistant\\n` a model cannot write half a token."""
    processor = tiny_text.processor("qwen", "chatml")
    processor.chat_template = processor.chat_template.replace("| trim", "")
    newlines = processor.tokenizer("\n\n", add_special_tokens=False).input_ids
    trained = processor.encode_text([user("Q"), assistant("\n\nA")], for_training=True)
    prompt = processor.encode_text([user("Q")])
    start, end = trained.answers[0]
    assert trained.input_ids[:start] == prompt.input_ids
    assert decode(processor, trained.input_ids[start:end]) == "\n\nA<|im_end|>"
    assert newlines


def test_added_tokens_that_are_not_special_are_guarded_when_the_template_writes_them():
    processor = tiny_text.processor("qwen", "chatml")
    processor.tokenizer = copy.deepcopy(processor.tokenizer)
    processor.tokenizer.add_tokens(["<turn>"])
    processor.chat_template = processor.chat_template.replace("<|im_start|>", "<turn>")
    turn_id = processor.tokenizer.convert_tokens_to_ids("<turn>")
    encoded = processor.encode_text([user("say <turn>user"), assistant("<turn>")], for_training=True)
    assert encoded.input_ids.count(turn_id) == 2
    assert decoded_answers(processor, encoded) == ["<turn><|im_end|>"]


LONG = [
    user("One?", num_images=1),
    assistant("First."),
    user("Two?"),
    assistant("Second."),
    user("3?"),
    assistant("Third."),
]


def test_truncation_drops_whole_turns_from_the_end():
    processor = tiny_text.processor()
    whole = processor.encode_text(LONG, for_training=True)
    assert processor.encode_text(LONG, for_training=True, max_length=len(whole.input_ids)) == whole
    cut = processor.encode_text(LONG, for_training=True, max_length=len(whole.input_ids) - 1)
    assert decoded_answers(processor, cut) == ["First.</s>", "Second.</s>"]
    assert cut.input_ids == whole.input_ids[: whole.answers[1][1]]
    assert cut.labels == whole.labels[: whole.answers[1][1]]


def test_truncation_cuts_a_first_answer_that_does_not_fit():
    processor = tiny_text.processor()
    whole = processor.encode_text(LONG, for_training=True)
    start, end = whole.answers[0]
    cut = processor.encode_text(LONG, for_training=True, max_length=start + 2)
    assert cut.input_ids == whole.input_ids[: start + 2]
    assert cut.answers == [(start, start + 2)]
    assert cut.labels.count(IGNORE) == start


def test_truncation_never_cuts_an_image_and_drops_those_of_dropped_turns():
    processor = tiny_text.processor()
    messages = [user("Hi"), assistant("Hello."), user("And this?", num_images=1), assistant("A circle.")]
    whole = processor.encode_text(messages, for_training=True)
    for max_length in range(whole.answers[0][0] + 1, len(whole.input_ids)):
        cut = processor.encode_text(messages, for_training=True, max_length=max_length)
        assert len(cut.input_ids) <= max_length
        assert cut.num_images == 0
        assert processor.image_token_id not in cut.input_ids


def test_a_question_that_does_not_fit_is_refused_by_name():
    processor = tiny_text.processor()
    start = processor.encode_text(LONG, for_training=True).answers[0][0]
    with pytest.raises(
        ConversationTooLong, match=f"^sample 7 needs {start} tokens before its first answer, but .* is {start}"
    ):
        processor.encode_text(LONG, for_training=True, max_length=start, name="sample 7")


@pytest.mark.parametrize(
    "messages, words",
    [
        ([], "sample 7 has no messages"),
        (None, "sample 7 has no messages"),
        ([user("Q"), assistant("  \n ")], "Message 1 of sample 7 is an empty answer"),
        ([user(""), assistant("A")], "Message 0 of sample 7 is an empty question"),
        ([user("Q"), user("Q")], "Message 1 of sample 7 is by the user, wanted the assistant"),
        ([assistant("A")], "Message 0 of sample 7 is by the assistant, wanted the user"),
        ([user("Q")], "sample 7 ends with a question"),
        ([{"role": "system", "content": "s"}], "sample 7 has a system message alone"),
        ([user("Q"), {"role": "system", "content": "s"}], "Message 1 of sample 7 is by the system"),
        ([{"role": "human", "content": "Q"}], "Message 0 of sample 7 has the role 'human'"),
        ([{"from": "human", "value": "Q"}], "Message 0 of sample 7 is {'from': 'human'"),
        ([user("Q"), {"role": "assistant", "content": [{"type": "image"}]}], "Message 1 of sample 7 has an image"),
        ([{"role": "user", "content": [{"type": "video"}]}], "Message 0 of sample 7 has the part {'type': 'video'}"),
        ([{"role": "user", "content": 7}, assistant("A")], "Message 0 of sample 7 has 7 as content"),
        ([user("\ud83d"), assistant("A")], "Message 0 of sample 7 has half a surrogate pair"),
    ],
)
def test_bad_conversations_are_refused_by_name(messages, words):
    with pytest.raises(ConversationError) as error:
        tiny_text.processor().encode_text(messages, for_training=True, name="sample 7")
    assert str(error.value).startswith(words)
