"""Greedy answers to many questions at once: sorted by length, padded on the left, each picture seen once."""

from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from modeling_llava import LlavaForConditionalGeneration
from processing import LlavaProcessor


Chat = list[dict[str, Any]]
KEPT = 2048  # pictures whose features are kept; 1.2 MB each with 576 tokens of a ViT-L in 16 bits


class Features:
    """What the tower makes of pictures, told apart by being the same object."""

    def __init__(self, model: LlavaForConditionalGeneration, processor: LlavaProcessor):
        self.model, self.processor = model, processor
        self.kept: dict[int, torch.Tensor] = {}

    def of(self, pictures: list[Any]) -> torch.Tensor:
        """(pictures, image tokens, width)"""
        new = {id(picture): picture for picture in pictures if id(picture) not in self.kept}
        if len(self.kept) + len(new) > KEPT:
            self.kept = {id(picture): self.kept[id(picture)] for picture in pictures if id(picture) not in new}
        if new:
            pixels = self.processor.pixel_values(list(new.values())).to(self.model.device, self.model.dtype)
            self.kept |= zip(new, self.model.model.get_vision_features(pixels), strict=True)
        return torch.stack([self.kept[id(picture)] for picture in pictures])


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
    order = sorted(range(len(chats)), key=lambda i: len(texts[i]), reverse=True)  # what needs most memory comes first
    answers = [""] * len(chats)
    with tqdm(total=len(chats), desc=progress, disable=None if progress else True, unit="") as bar:
        for first in range(0, len(order), batch_size):
            some = order[first : first + batch_size]
            ids, mask = pad_left([texts[i] for i in some], processor.tokenizer.pad_token_id)
            inputs = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
            if seen := [picture for i in some for picture in pictures[i]]:
                inputs["image_features"] = features.of(seen)
            out = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
            texts_out = processor.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
            for i, text in zip(some, texts_out, strict=True):
                answers[i] = text.strip()
            bar.update(len(some))
    return answers


def pad_left(rows: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, (rows, longest)."""
    longest = max(map(len, rows))
    ids = [[pad] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)
