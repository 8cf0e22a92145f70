"""Answers to many questions at once: sorted by length, padded on the left, each picture seen once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from tqdm import tqdm

from modeling_llava import LlavaForConditionalGeneration
from processing import LlavaProcessor
from recipes.questions import Picture


Chat = list[dict[str, Any]]
KEPT = 2048  # pictures whose features are kept; 1.2 MB each with 576 tokens of a ViT-L in 16 bits


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
    """Numbers of the questions that are asked together: those of about the same length, in windows that show at most
    `KEPT` pictures, so that none has to be looked at again. What needs most memory comes first in its window.
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
        window.sort(key=lambda number: (-len(texts[number]), number))
        batches += [window[first : first + batch_size] for first in range(0, len(window), batch_size)]
    return [batch for batch in batches if batch]


@torch.no_grad()
def answer_batch(features: Features, texts: list[list[int]], pictures: list[Any], **options: Any) -> list[Answer]:
    """Answers to the ids of some questions, which show `pictures` in this order.

    Args:
        options: of `generate`.
    """
    model, tokenizer = features.model, features.processor.tokenizer
    ids, mask = pad_left(texts, tokenizer.pad_token_id or 0)
    inputs = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
    if pictures:
        inputs["image_features"] = features.of(pictures)
    chosen = options.get("generation_config", model.generation_config)
    if chosen.stop_strings:
        options["tokenizer"] = tokenizer
    said = model.generate(**inputs, **options)[:, ids.shape[1] :]
    ends = chosen.eos_token_id if isinstance(chosen.eos_token_id, list) else [chosen.eos_token_id]
    stops = [chosen.stop_strings] if isinstance(chosen.stop_strings, str) else chosen.stop_strings or []
    found = []
    for row, text in zip(said.tolist(), tokenizer.batch_decode(said, skip_special_tokens=True), strict=True):
        is_stopped = not set(row).isdisjoint(ends) or any(stop in text for stop in stops)
        for stop in stops:
            text = text.split(stop)[0]
        found.append(Answer(text.strip(), "stop" if is_stopped else "length"))
    return found


def pad_left(rows: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, (rows, longest)."""
    longest = max(map(len, rows))
    ids = [[pad] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)
