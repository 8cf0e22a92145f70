"""What each chat template should write, in plain Python without Jinja; conversations to try, and ones to refuse."""

from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template


BOS, EOS = "<s>", "</s>"
SPECIAL_TOKENS = {"bos_token": BOS, "eos_token": EOS}
DEFAULT_SYSTEM = (
    "You can see the images people show you. "
    "Look closely, answer truthfully and clearly, and say so when you cannot tell."
)
WITH_DEFAULT_SYSTEM = {"vicuna_v1", "llava_v0"}


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


# Arbitrary text. Surrogates cannot be written to a file and are refused before a template sees them.
TEXT = st.text(max_size=20)
SPOKEN = TEXT.filter(lambda text: text.strip() != "")
QUESTION = st.builds(lambda items, text: user(*items, text), st.lists(st.one_of(st.just(1), TEXT), max_size=4), SPOKEN)
ROUNDS = st.lists(st.tuples(QUESTION, st.builds(assistant, SPOKEN)), min_size=1, max_size=3)


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
