"""Conversations to token ids and labels, through the tokenizer's chat template.

Three promises, each held by a test:
- Labels come from the `{% generation %}` marks of the template, while encoding; nothing is found again by counting.
- Text cannot become control: where the characters of a message would give a control token, however they spell it, they
  are encoded as plain characters. Image places come from structure alone.
- For text without such spellings the ids are those of the stock processor with the same template.
"""

import re
from bisect import bisect_left
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from .conversation import ConversationError, ConversationTooLong, count_images, describe


IGNORE = -100
Range = tuple[int, int]  # [start, end) of characters or tokens
# Private-use characters that fence the words of messages while the template runs; a pair that they lack is taken.
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
    cut: int = 0  # ids that `truncate` left out


@dataclass(frozen=True)
class TokenizerFacts:
    control_ids: frozenset[int]  # what text must not become: special tokens, and those the template writes
    prefix: list[int]  # what the tokenizer itself puts before a text, and after it
    suffix: list[int]


@lru_cache(maxsize=8)
def tokenizer_facts(
    tokenizer: PreTrainedTokenizerBase, num_tokens: int, chat_template: str, image_token: str
) -> TokenizerFacts:
    """Facts that are the same for every conversation; `num_tokens` is `len(tokenizer)`, which grows when tokens are
    added.
    """
    control_ids = {tokenizer.convert_tokens_to_ids(image_token)} | {
        i
        for i, token in tokenizer.added_tokens_decoder.items()
        if token.special or (token.content in chat_template and not token.content.isspace())
    }
    bare = tokenizer("a", add_special_tokens=False).input_ids
    full = tokenizer("a", add_special_tokens=True).input_ids
    start = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
    return TokenizerFacts(
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
    rendered, spans = render_jinja_template(
        conversations=[[_fence_message(message, fences) for message in messages]],
        chat_template=chat_template,
        return_assistant_tokens_mask=True,
        add_generation_prompt=add_generation_prompt,
        **tokenizer.special_tokens_map,
    )
    text, said, spoken = _take_out_fences(rendered[0], spans[0], fences)
    ids, offsets = _tokenize(text, said, spoken, tokenizer, facts, name)
    if tokenizer.bos_token is None or not text.startswith(tokenizer.bos_token):
        # As in stock: a template that writes no BOS leaves that to the tokenizer.
        ids = facts.prefix + ids + facts.suffix
        offsets = [(-1, -1)] * len(facts.prefix) + offsets + [(-1, -1)] * len(facts.suffix)
    starts, ends = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
    answers = [_token_range(starts, ends, *span) for span in spoken]

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
    num_images = ids.count(image_token_id) // tokens_per_image
    return Encoded(ids, encoded.labels[:length], num_images, kept, cut=len(encoded.input_ids) - length)


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


def _fence_message(message: dict, fences: tuple[str, str]) -> dict:
    """Outer white space stays outside of the fences, where a template's `trim` finds it."""
    parts = []
    for part in message["content"]:
        if part["type"] == "text" and (words := part["text"].strip()):
            before, after = part["text"].split(words, 1)
            part = {**part, "text": f"{before}{fences[0]}{words}{fences[1]}{after}"}
        parts.append(part)
    return {**message, "content": parts}


def _take_out_fences(text: str, spans: list[Range], fences: tuple[str, str]) -> tuple[str, list[Range], list[Range]]:
    """The rendered text itself, and in it the ranges of what messages say and of the generation spans."""
    places = [found.start() for found in re.finditer("|".join(fences), text)]

    def without(position: int) -> int:
        return position - bisect_left(places, position)

    said, opened = [], None
    for place in places:
        if text[place] == fences[0]:
            opened = place
        elif opened is not None:
            said.append((without(opened), without(place)))
            opened = None
    clean = text.replace(fences[0], "").replace(fences[1], "")
    return clean, said, [(without(start), without(end)) for start, end in spans]


def _tokenize(
    text: str,
    said: list[Range],
    spans: list[Range],
    tokenizer: PreTrainedTokenizerBase,
    facts: TokenizerFacts,
    name: str,
) -> tuple[list[int], list[Range]]:
    """Ids and character offsets of a rendered conversation, whole unless a piece of it has to be encoded apart."""
    plain: set[Range] = set()
    borders: set[int] = set()
    while True:
        ids, offsets = _encode_in_pieces(text, sorted(plain), sorted(borders), tokenizer, facts)
        tokens = list(zip(ids, offsets, strict=True))
        leaks = {
            offset
            for token, offset in tokens
            if token in facts.control_ids and any(offset[0] < end and offset[1] > start for start, end in said)
        }
        # A token that begins in the prompt and ends in the answer would never be produced after that prompt: the text
        # is cut where the answer starts, so that training sees the ids that generation will.
        firsts, ends = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
        starts = {start for start, _ in spans if ((firsts < start) & (start < ends)).any()}
        if not leaks and not starts:
            return ids, offsets
        if leaks <= plain and starts <= borders:
            raise ConversationError(
                f"{name} says {[text[a:b] for a, b in sorted(leaks)]}, which this tokenizer knows only as control "
                "tokens. Remove it from the text."
            )
        plain, borders = _disjoint(plain | leaks), borders | starts


def _disjoint(ranges: set[Range]) -> set[Range]:
    """Overlapping ranges as one."""
    joined: list[Range] = []
    for start, end in sorted(ranges):
        if joined and start < joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return set(joined)


def _encode_in_pieces(
    text: str, plain: list[Range], borders: list[int], tokenizer: PreTrainedTokenizerBase, facts: TokenizerFacts
) -> tuple[list[int], list[Range]]:
    cuts, start = [], 0
    for plain_start, plain_end in plain:
        cuts += [(start, plain_start, False), (plain_start, plain_end, True)]
        start = plain_end
    cuts.append((start, len(text), False))
    ids: list[int] = []
    offsets: list[Range] = []
    for whole in cuts:
        for cut in _cut_at(whole, borders):
            piece_ids, piece_offsets = _encode_piece(tokenizer, text, *cut, facts)
            ids += piece_ids
            offsets += piece_offsets
    return ids, offsets


def _cut_at(cut: tuple[int, int, bool], positions: list[int]) -> list[tuple[int, int, bool]]:
    start, end, is_plain = cut
    borders = [start, *(p for p in positions if start < p < end), end]
    return [(a, b, is_plain) for a, b in zip(borders, borders[1:], strict=False) if a < b]


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
        if not context or all(a >= len(context) for a, _ in encoded.offset_mapping[skip:]):
            break
    ids = encoded.input_ids[skip:]
    offsets, shift = encoded.offset_mapping[skip:], start - len(context)
    if shift:
        offsets = [(a + shift, b + shift) for a, b in offsets]

    if is_plain and end - start > 1 and not facts.control_ids.isdisjoint(ids):
        # An added token that is not marked special, or a piece of the vocabulary: apart, its first character and the
        # rest are other tokens.
        halves = [_encode_piece(tokenizer, text, *half, facts) for half in _cut_at((start, end, True), [start + 1])]
        return halves[0][0] + halves[1][0], halves[0][1] + halves[1][1]
    return ids, offsets


def _token_range(starts: np.ndarray, ends: np.ndarray, start: int, end: int) -> tuple[int, int]:
    """[first, past last) of the tokens that overlap the characters [start, end).

    Some tokenizers trim the space from the offsets of a token, which leaves a lone space with no width: it belongs to
    the character before its end.
    """
    inside = np.flatnonzero((np.minimum(starts, ends - 1) < end) & (ends > start))
    return (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)


def _expand_images(
    ids: list[int], answers: list[tuple[int, int]], image_token_id: int, tokens_per_image: int, num_images: int
) -> Encoded:
    kept = np.array([answer for answer in answers if answer[1] > answer[0]], dtype=np.int64).reshape(-1, 2)
    input_ids, expanded = expand_images(np.array(ids, dtype=np.int64), kept, image_token_id, tokens_per_image)
    labels = np.full(len(input_ids), IGNORE)
    for start, end in expanded:
        labels[start:end] = input_ids[start:end]
    labels[input_ids == image_token_id] = IGNORE
    return Encoded(input_ids.tolist(), labels.tolist(), num_images, [(start, end) for start, end in expanded.tolist()])
