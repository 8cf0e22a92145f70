"""What a conversation may look like, and clear words when it does not look so.

A conversation is a list of messages `{"role", "content"}`; `content` is a string or a list of `{"type": "image"}` and
`{"type": "text", "text": ...}`. An image place may carry its picture under `image`, `path`, `url` or `base64`, as in
stock transformers. Turning a conversation into ids is in `encoding.py`.
"""

from typing import Any


ROLES = ("system", "user", "assistant")
PICTURE_KEYS = ("image", "path", "url", "base64")


class ConversationError(ValueError):
    """A conversation that cannot be used; the message names it, what is wrong and what to do."""


class ConversationTooLong(ConversationError):
    """Not even the first question fits into the length given."""


def check_conversation(messages: Any, name: str = "conversation", for_training: bool = False) -> list[dict]:
    """The conversation with every content as a list, neighbouring texts joined and pictures removed from their places.

    Joining matters for safety too: two harmless texts could be glued by a template into the spelling of a control
    token.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        raise ConversationError(
            f"{name} has no messages (found {describe(messages)}). Give a list of messages, each with `role` and "
            "`content`."
        )
    checked = []
    for index, message in enumerate(messages):
        where = f"Message {index} of {name}"
        if not isinstance(message, dict) or "role" not in message or message.get("content") is None:
            raise ConversationError(
                f"{where} is {describe(message)}, wanted a dict with `role` and `content`. A turn without words has "
                'content "".'
            )
        if message["role"] not in ROLES:
            raise ConversationError(
                f"{where} has the role {message['role']!r}, wanted one of {', '.join(ROLES)}. "
                "Rename it (`human` is `user`, `gpt` is `assistant`)."
            )
        checked.append({"role": message["role"], "content": _content_parts(message["content"], where)})

    _check_order(checked, name, for_training)
    for index, message in enumerate(checked):
        if message["role"] != "user" and any(part["type"] == "image" for part in message["content"]):
            raise ConversationError(
                f"Message {index} of {name} has an image in a turn of the {message['role']}. Only users show images: "
                "move it into a user turn."
            )
        if message["role"] == "user" and not message["content"]:
            raise ConversationError(
                f"Message {index} of {name} is an empty question. Add a text or an image to the turn."
            )
        if message["role"] == "assistant" and not text_of(message).strip():
            raise ConversationError(
                f"Message {index} of {name} is an empty answer: there is nothing to learn or continue from. Remove "
                "the turn or the conversation."
            )
    return checked


def _content_parts(content: Any, where: str) -> list[dict]:
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, (list, tuple)):
        raise ConversationError(f"{where} has {describe(content)} as content, wanted a string or a list of parts.")
    parts: list[dict] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("image", "image_url"):
            parts.append({"type": "image"})
        elif kind == "text" and isinstance(part.get("text"), str):
            _check_unicode(part["text"], where)
            if not part["text"]:
                continue
            if parts and parts[-1]["type"] == "text":
                parts[-1] = {"type": "text", "text": parts[-1]["text"] + part["text"]}
            else:
                parts.append({"type": "text", "text": part["text"]})
        else:
            raise ConversationError(
                f"{where} has the part {describe(part)}, wanted "
                '{"type": "image"} or {"type": "text", "text": "..."}.'
            )
    return parts


def _check_unicode(text: str, where: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConversationError(
            f"{where} has half a surrogate pair ({text[error.start]!r}) at character {error.start}: no valid "
            "Unicode. It was decoded wrongly or cut inside an emoji; remove or repair it."
        ) from error


def _check_order(messages: list[dict], name: str, for_training: bool) -> None:
    turns = messages[1:] if messages[0]["role"] == "system" else messages
    offset = len(messages) - len(turns)
    for index, message in enumerate(turns):
        wanted = ("user", "assistant")[index % 2]
        if message["role"] != wanted:
            raise ConversationError(
                f"Message {index + offset} of {name} is by the {message['role']}, wanted the {wanted}: after an "
                "optional system message, user and assistant take turns, the user first. Merge or remove turns."
            )
    if not turns:
        raise ConversationError(f"{name} has a system message alone. Add a user turn.")
    if for_training and turns[-1]["role"] != "assistant":
        raise ConversationError(
            f"{name} ends with a question: for training each question needs its answer. Add the answer or remove the "
            "turn."
        )


def text_of(message: dict) -> str:
    return "".join(part["text"] for part in message["content"] if part["type"] == "text")


def count_images(messages: list[dict]) -> int:
    return sum(part["type"] == "image" for message in messages for part in message["content"])


def pictures_in(messages: list[dict]) -> list[Any]:
    """The pictures that the image places carry themselves, in order; places without one give None."""
    pictures = []
    for message in messages:
        for part in message["content"] if isinstance(message.get("content"), (list, tuple)) else []:
            if isinstance(part, dict) and part.get("type") == "image":
                pictures.append(next((part[key] for key in PICTURE_KEYS if part.get(key) is not None), None))
            elif isinstance(part, dict) and part.get("type") == "image_url":
                url = part.get("image_url")
                pictures.append(url.get("url") if isinstance(url, dict) else url)
    return pictures


def match_pictures(messages: list[dict], images: list[Any] | None, name: str) -> list[Any]:
    """A picture for each image place of a checked conversation, from `images` or from the places themselves."""
    places = pictures_in(messages)
    if images is not None and not isinstance(images, (list, tuple)):
        raise ConversationError(
            f"The images of {name} are a {type(images).__name__}, wanted a list. Put a single one into a list too."
        )
    inside = [picture for picture in places if picture is not None]
    if inside and images:
        raise ConversationError(
            f"{name} has {len(inside)} pictures inside its image places and {len(images)} in `images`. Give them once."
        )
    pictures = inside or list(images or [])
    if len(pictures) != len(places):
        raise ConversationError(
            f"{name} has {len(places)} image places but {len(pictures)} images. Add or remove "
            '{"type": "image"} in its user turns, or images.'
        )
    return pictures


def describe(value: Any) -> str:
    """A value for an error message: short, and never a whole picture or book."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
