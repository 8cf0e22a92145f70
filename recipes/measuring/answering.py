"""Answers to many questions at once: those of about a length together, each picture seen once, and what several
questions begin with, its picture above all, read once for all of them.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from tqdm import tqdm
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer

from modeling_llava import LlavaForConditionalGeneration
from processing import LlavaProcessor
from recipes.measuring.questions import Picture


Chat = list[dict[str, Any]]
KEPT = 2048  # pictures whose features are kept; 1.2 MB each with 576 tokens of a ViT-L in 16 bits
ABOUT_A_LENGTH = 64  # tokens by which questions asked together may differ, so that more of them share a picture


@dataclass(frozen=True)
class Answer:
    """`length`: cut at `max_new_tokens`."""

    text: str
    finish_reason: Literal["stop", "length"]


class Features:
    """What the tower makes of pictures: `Picture`s, or anything `open_image` opens, told apart by `key_of`."""

    def __init__(self, model: LlavaForConditionalGeneration, processor: LlavaProcessor):
        self.model, self.processor = model, processor
        self.kept: dict[Any, torch.Tensor] = {}  # the latest used last

    def of(self, pictures: list[Any]) -> torch.Tensor:
        """(pictures, image tokens, width)"""
        wanted = {key_of(picture): picture for picture in pictures}
        for key in wanted:
            if key in self.kept:
                self.kept[key] = self.kept.pop(key)
        new = {key: picture for key, picture in wanted.items() if key not in self.kept}
        for key in list(self.kept)[: max(len(self.kept) + len(new) - KEPT, 0)]:
            if key not in wanted:
                del self.kept[key]
        if new:
            pixels = self.processor.pixel_values(
                [picture.opened() if isinstance(picture, Picture) else picture for picture in new.values()]
            )
            pixels = pixels.to(self.model.device, self.model.dtype)
            self.kept |= zip(new, self.model.model.get_vision_features(pixels), strict=True)
        return torch.stack([self.kept[key_of(picture)] for picture in pictures])


def key_of(picture: Any) -> Any:
    """Equal for the same path or bytes; other pictures are told apart by being the same object."""
    if isinstance(picture, Picture):
        return picture.key
    return picture if isinstance(picture, (str, bytes)) else id(picture)


@torch.no_grad()
def answer(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    chats: Sequence[Chat],
    pictures: Sequence[list[Any]],
    batch_size: int = 64,
    max_new_tokens: int = 128,
    progress: str | None = None,
) -> list[str]:
    """
    Args:
        chats: each ends with a question.
        pictures: of each chat, in the order of their places.
        progress: what the bar is called; None for no bar.
    """
    texts = [processor.encode_text(chat, name=f"question {i}").input_ids for i, chat in enumerate(chats)]
    features = Features(model, processor)
    answers = [""] * len(chats)
    with tqdm(total=len(chats), desc=progress, disable=None if progress else True, unit="") as bar:
        for some in plan_batches(texts, pictures, batch_size):
            asked, seen = [texts[i] for i in some], [picture for i in some for picture in pictures[i]]
            found = answer_batch(features, asked, seen, do_sample=False, max_new_tokens=max_new_tokens)
            for i, one in zip(some, found, strict=True):
                answers[i] = one.text
            bar.update(len(some))
    return answers


def plan_batches(texts: Sequence[list[int]], pictures: Sequence[Sequence[Any]], batch_size: int) -> list[list[int]]:
    """Numbers of the questions that are asked together: those of about a length, of these the ones about a picture, in
    windows that show at most `KEPT` pictures, so that none has to be looked at again. What needs most memory comes
    first in its window.
    """
    together: dict[Any, list[int]] = {}
    for number, shown in enumerate(pictures):
        together.setdefault(key_of(shown[0]) if shown else None, []).append(number)
    windows: list[list[int]] = [[]]
    seen: set[Any] = set()
    for numbers in together.values():
        keys = {key_of(picture) for number in numbers for picture in pictures[number]}
        if windows[-1] and len(seen | keys) > KEPT:
            windows.append([])
            seen = set()
        windows[-1] += numbers
        seen |= keys
    batches = []
    for window in windows:
        place = {number: place for place, number in enumerate(window)}  # questions about a picture are neighbours
        window.sort(key=lambda number: (-(len(texts[number]) // ABOUT_A_LENGTH), place[number]))
        batches += [window[first : first + batch_size] for first in range(0, len(window), batch_size)]
    return [batch for batch in batches if batch]


@torch.no_grad()
def answer_batch(features: Features, texts: list[list[int]], pictures: list[Any], **options: Any) -> list[Answer]:
    """Answers to the ids of some questions, which show `pictures` in this order.

    Args:
        options: of `generate`.
    """
    model, tokenizer = features.model, features.processor.tokenizer
    chosen = copy.deepcopy(options.get("generation_config", model.generation_config))
    chosen.update(**options)
    if chosen.stop_strings:
        options["tokenizer"] = tokenizer
    inputs: dict[str, Any] = {}
    begun = 0
    if pictures:
        seen = features.of(pictures)
        shared = find_shared(texts, pictures, model.config.image_token_id, seen.shape[1])
        if shared and can_share(model, chosen):
            begun, inputs["past_key_values"] = shared.length, read_shared(model, texts, seen, shared)
        else:
            inputs["image_features"] = seen
    ids, mask = pad(texts, tokenizer.pad_token_id or 0, begun)
    inputs |= {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
    said = model.generate(**inputs, **options)[:, ids.shape[1] :]
    found = []
    for row, text in zip(said.tolist(), tokenizer.batch_decode(said, skip_special_tokens=True), strict=True):
        reason: Literal["stop", "length"] = "stop" if has_ended(row, text, chosen) else "length"
        found.append(Answer(before(text, stops_of(chosen)).strip(), reason))
    return found


def stops_of(chosen: GenerationConfig) -> list[str]:
    return [chosen.stop_strings] if isinstance(chosen.stop_strings, str) else chosen.stop_strings or []


def before(text: str, stops: list[str]) -> str:
    return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]


def has_ended(said: list[int], text: str, chosen: GenerationConfig) -> bool:
    """Whether the model came to an end of its own."""
    ends = chosen.eos_token_id if isinstance(chosen.eos_token_id, list) else [chosen.eos_token_id]
    return not set(said).isdisjoint(ends) or any(stop in text for stop in stops_of(chosen))


@dataclass(frozen=True)
class Shared:
    """What the questions of a batch begin with, up to the last image token, where that is less than they are."""

    length: int  # the same for all
    which: list[int]  # of each question, which of the different beginnings it has
    texts: list[int]  # of each beginning, a question that has it
    pictures: list[int]  # places, in the pictures of the batch, of those of all beginnings


def find_shared(
    texts: list[list[int]], pictures: list[Any], image_token: int, tokens_per_picture: int
) -> Shared | None:
    lengths = {len(text) - text[::-1].index(image_token) if image_token in text else 0 for text in texts}
    length = lengths.pop()
    if lengths:
        return None
    found: dict[Any, int] = {}
    which, firsts, places = [], [], []
    next_place = 0
    for number, text in enumerate(texts):
        count = text.count(image_token) // tokens_per_picture
        here = range(next_place, next_place + count)
        next_place += count
        beginning = (tuple(text[:length]), *(key_of(pictures[place]) for place in here))
        if beginning not in found:
            found[beginning] = len(found)
            firsts.append(number)
            places += here
        which.append(found[beginning])
    return Shared(length, which, firsts, places) if len(found) < len(texts) else None


def can_share(model: LlavaForConditionalGeneration, chosen: GenerationConfig) -> bool:
    """Padding then stands after the beginning: not where layers look back a number of places, or words are compared
    with the words before them; and `generate` repeats no cache that it is given.
    """
    layers = DynamicCache(config=model.config.get_text_config()).layers
    one_answer = (chosen.num_beams or 1) == (chosen.num_return_sequences or 1) == 1
    others = (chosen.cache_implementation, chosen.no_repeat_ngram_size, chosen.prefill_chunk_size)
    return all(type(layer) is DynamicLayer for layer in layers) and one_answer and not any(others)


def read_shared(
    model: LlavaForConditionalGeneration, texts: list[list[int]], seen: torch.Tensor, shared: Shared
) -> DynamicCache:
    """The beginnings in a cache, of each question its own."""
    ids = torch.tensor([texts[number][: shared.length] for number in shared.texts], device=model.device)
    cache = DynamicCache(config=model.config.get_text_config())
    model.model(input_ids=ids, image_features=seen[shared.pictures], past_key_values=cache, use_cache=True)
    cache.batch_select_indices(torch.tensor(shared.which, device=model.device))
    return cache


def pad(rows: list[list[int]], token: int, after: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, (rows, longest), filled up `after` so many ids: on the left but for a beginning of one length."""
    longest = max(map(len, rows))
    ids = [row[:after] + [token] * (longest - len(row)) + row[after:] for row in rows]
    mask = [[1] * after + [0] * (longest - len(row)) + [1] * (len(row) - after) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)
