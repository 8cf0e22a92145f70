"""Conversations to token ids and labels, through the tokenizer's chat template.

Three promises, each held by a test:
- Labels come from the `{% generation %}` marks of the template, while encoding; nothing is found again by counting.
- Text cannot become control: the spelling of a control token inside a message is encoded as plain characters. Image
  places come from structure alone.
- For text without such spellings the ids are those of the stock processor with the same template.
"""

import re
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from .conversation import ConversationError, ConversationTooLong, count_images, describe


IGNORE = -100
# Private-use characters that fence control spellings while the template runs; a pair that the text lacks is taken.
FENCES = [(chr(0xF0000 + i), chr(0xF0001 + i)) for i in range(0, 0x200, 2)]

# What a piece in the middle of a text is encoded after; the last, nothing, always fits.
CONTEXTS = ("\n", "a", ")", "0", "")


@dataclass
class Encoded:
    """One conversation as ids. `answers` holds the [start, end) of each supervised stretch of ids."""

    input_ids: list[int]
    labels: list[int]
    num_images: int
    answers: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True)
class TokenizerFacts:
    control: re.Pattern  # the spelling of every token that text must not become
    control_ids: frozenset[int]
    prefix: list[int]  # what the tokenizer itself puts before a text, and after it
    suffix: list[int]


@lru_cache(maxsize=8)
def tokenizer_facts(
    tokenizer: PreTrainedTokenizerBase, num_tokens: int, chat_template: str, image_token: str
) -> TokenizerFacts:
    """Facts that are the same for every conversation; `num_tokens` is `len(tokenizer)`, which grows when tokens are
    added.
    """
    control_ids = {tokenizer.convert_tokens_to_ids(image_token): image_token} | {
        i: token.content
        for i, token in tokenizer.added_tokens_decoder.items()
        if token.special or (token.content in chat_template and not token.content.isspace())
    }
    spellings = sorted(control_ids.values(), key=len, reverse=True)
    bare = tokenizer("a", add_special_tokens=False).input_ids
    full = tokenizer("a", add_special_tokens=True).input_ids
    start = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
    return TokenizerFacts(
        control=re.compile("|".join(map(re.escape, spellings))),
        control_ids=frozenset(control_ids),
        prefix=full[:start],
        suffix=full[start + len(bare) :],
    )


def encode_messages(
    messages: list[dict],
    tokenizer: PreTrainedTokenizerBase,
    chat_template: str,
    image_token: str,
    tokens_per_image: int,
    add_generation_prompt: bool = False,
    name: str = "conversation",
) -> Encoded:
    """Ids and labels of a conversation that `check_conversation` has passed."""
    facts = tokenizer_facts(tokenizer, len(tokenizer), chat_template, image_token)
    fences = _unused_fences(messages, name)
    fenced = [_fence_message(message, facts.control, fences) for message in messages]
    rendered, spans = render_jinja_template(
        conversations=[fenced],
        chat_template=chat_template,
        return_assistant_tokens_mask=True,
        add_generation_prompt=add_generation_prompt,
        **tokenizer.special_tokens_map,
    )
    ids, offsets = _tokenize(rendered[0], spans[0], tokenizer, facts, fences)
    if tokenizer.bos_token is None or not rendered[0].startswith(tokenizer.bos_token):
        # As in stock: a template that writes no BOS leaves that to the tokenizer.
        ids = facts.prefix + ids + facts.suffix
        offsets = [(-1, -1)] * len(facts.prefix) + offsets + [(-1, -1)] * len(facts.suffix)
    answers = [_token_range(offsets, *span) for span in spans[0]]

    image_token_id = tokenizer.convert_tokens_to_ids(image_token)
    num_images = ids.count(image_token_id)
    if num_images != count_images(messages):
        raise ConversationError(
            f"{name} shows {count_images(messages)} images, but the chat template printed {num_images} places for "
            "them. Use a template that knows images, such as those of `llava build --template`."
        )
    return _expand_images(ids, answers, image_token_id, tokens_per_image, num_images)


def truncate(encoded: Encoded, max_length: int, tokens_per_image: int, image_token_id: int, name: str) -> Encoded:
    """Whole turns dropped from the end until it fits; a first answer that is too long is cut; images never are."""
    if len(encoded.input_ids) <= max_length:
        return encoded
    first_start, _ = encoded.answers[0]
    if first_start >= max_length:
        raise ConversationTooLong(
            f"{name} needs {first_start} tokens before its first answer, but `max_length` is {max_length}. Raise "
            f"`max_length`, or shorten the question (an image takes {tokens_per_image} tokens)."
        )
    kept = [(start, end) for start, end in encoded.answers if end <= max_length] or [(first_start, max_length)]
    length = kept[-1][1]
    ids = encoded.input_ids[:length]
    return Encoded(ids, encoded.labels[:length], ids.count(image_token_id) // tokens_per_image, kept)


def collapse_images(encoded: Encoded, image_token_id: int, tokens_per_image: int) -> tuple[list[int], list[list[int]]]:
    """Ids and answers with one token per image, which is how they are stored: the inverse of `expand_images`."""
    ids = np.asarray(encoded.input_ids)
    kept = ids != image_token_id
    images = np.flatnonzero(~kept)
    kept[images[::tokens_per_image]] = True  # neighbouring images are one run of tokens
    position = np.concatenate(([0], np.cumsum(kept)))  # of each token, in the collapsed ids
    return ids[kept].tolist(), position[np.asarray(encoded.answers, dtype=np.int64)].tolist()


def expand_images(
    ids: np.ndarray, answers: np.ndarray, image_token_id: int, tokens_per_image: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and answers (n, 2) as the model sees them, every image with all its tokens."""
    repeats = np.where(ids == image_token_id, tokens_per_image, 1)
    position = np.concatenate(([0], np.cumsum(repeats)))
    return np.repeat(ids, repeats), position[answers]


def _unused_fences(messages: list[dict], name: str) -> tuple[str, str]:
    text = "".join(part["text"] for message in messages for part in message["content"] if part["type"] == "text")
    for fences in FENCES:
        if fences[0] not in text and fences[1] not in text:
            return fences
    raise ConversationError(
        f"{name} uses every private character between U+F0000 and U+F01FF: {describe(text)}. Remove some of them."
    )


def _fence_message(message: dict, control: re.Pattern, fences: tuple[str, str]) -> dict:
    start, end = fences
    parts = [
        part if part["type"] == "image" else {**part, "text": control.sub(rf"{start}\g<0>{end}", part["text"])}
        for part in message["content"]
    ]
    return {**message, "content": parts}


def _tokenize(
    text: str,
    spans: list[tuple[int, int]],
    tokenizer: PreTrainedTokenizerBase,
    facts: TokenizerFacts,
    fences: tuple[str, str],
) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and character offsets of a rendered conversation, fenced spellings as plain characters."""
    cuts = _fence_cuts(text, fences)
    pieces = [_encode_piece(tokenizer, text, *cut, facts) for cut in cuts]
    # A token that begins in the prompt and ends in the answer would never be produced after that prompt; the text is
    # then cut where the answer starts, so that training sees the ids that generation will.
    starts = [start for start, _ in spans if any(a < start < b for _, offsets in pieces for a, b in offsets)]
    if starts:
        cuts = [cut for whole in cuts for cut in _cut_at(whole, starts)]
        pieces = [_encode_piece(tokenizer, text, *cut, facts) for cut in cuts]
    ids = [token for piece, _ in pieces for token in piece]
    return ids, [offset for _, offsets in pieces for offset in offsets]


def _fence_cuts(text: str, fences: tuple[str, str]) -> list[tuple[int, int, bool]]:
    """(start, end, is plain) of the stretches between fences; a fence that a template cut off from its twin only
    parts.
    """
    opening, closing = fences
    cuts, start = [], 0
    for match in re.finditer(f"{opening}([^{opening}{closing}]*){closing}|[{opening}{closing}]", text):
        cuts.append((start, match.start(), False))
        if match.group(1) is not None:
            cuts.append((match.start(1), match.end(1), True))
        start = match.end()
    cuts.append((start, len(text), False))
    return [cut for cut in cuts if cut[0] < cut[1]]


def _cut_at(cut: tuple[int, int, bool], positions: list[int]) -> list[tuple[int, int, bool]]:
    start, end, is_plain = cut
    borders = [start, *(p for p in positions if start < p < end), end]
    return [(a, b, is_plain) for a, b in zip(borders, borders[1:], strict=False)]


def _encode_piece(
    tokenizer: PreTrainedTokenizerBase, text: str, start: int, end: int, is_plain: bool, facts: TokenizerFacts
) -> tuple[list[int], list[tuple[int, int]]]:
    piece = text[start:end]
    options = {"add_special_tokens": False, "return_offsets_mapping": True, "split_special_tokens": is_plain}
    # SentencePiece puts a space before the first word of a text. A later piece is no first word: it is encoded after
    # some character that does not merge with it, whose ids are taken off again.
    for context in CONTEXTS if start else ("",):
        encoded = tokenizer(context + piece, **options)
        skip = sum(b <= len(context) for _, b in encoded.offset_mapping) if context else 0
        if all(a >= len(context) for a, _ in encoded.offset_mapping[skip:]):
            break
    ids = encoded.input_ids[skip:]
    offsets = [(a + start - len(context), b + start - len(context)) for a, b in encoded.offset_mapping[skip:]]

    if is_plain and not facts.control_ids.isdisjoint(ids):
        if end - start == 1:
            raise ConversationError(
                f"The text {piece!r} is a control token of this tokenizer and has no other spelling. Remove it from "
                "the text."
            )
        # An added token that is not marked special: apart, its first character and the rest are other tokens.
        halves = [_encode_piece(tokenizer, text, *half, facts) for half in _cut_at((start, end, True), [start + 1])]
        return halves[0][0] + halves[1][0], halves[0][1] + halves[1][1]
    return ids, offsets


def _token_range(offsets: list[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """[first, past last) of the tokens that overlap the characters [start, end).

    Some tokenizers trim the space from the offsets of a token, which leaves a lone space with no width: it belongs to
    the character before its end.
    """
    inside = [i for i, (a, b) in enumerate(offsets) if min(a, b - 1) < end and b > start]
    return (inside[0], inside[-1] + 1) if inside else (0, 0)


def _expand_images(
    ids: list[int], answers: list[tuple[int, int]], image_token_id: int, tokens_per_image: int, num_images: int
) -> Encoded:
    input_ids: list[int] = []
    position = [0] * (len(ids) + 1)  # of each token before expansion, in the expanded ids
    for i, token in enumerate(ids):
        input_ids += [token] * (tokens_per_image if token == image_token_id else 1)
        position[i + 1] = len(input_ids)
    answers = [(position[start], position[end]) for start, end in answers if end > start]
    labels = [IGNORE] * len(input_ids)
    for start, end in answers:
        labels[start:end] = [IGNORE if token == image_token_id else token for token in input_ids[start:end]]
    return Encoded(input_ids, labels, num_images, answers)
