"""Rows to tensors, in the dataloader's workers: pictures are opened here, and trees are laid out for attention."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from .encoding import IGNORE, expand_images
from .features import FeatureFiles
from .processing_llava import LlavaProcessor
from .rows import Tree


@dataclass
class PaddedCollator:
    """One row per conversation (`messages`, `images`, `id`), padded on the right to the longest of the batch."""

    processor: LlavaProcessor
    max_length: int | None = None

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        encoded = [
            self.processor.encode(
                row["messages"],
                row.get("images"),
                for_training=True,
                max_length=self.max_length,
                name=f"conversation `{row.get('id', index)}`",
            )
            for index, row in enumerate(rows)
        ]
        fill = {"input_ids": self.processor.tokenizer.pad_token_id, "attention_mask": 0, "labels": IGNORE}
        length = max(one["input_ids"].shape[1] for one in encoded)
        batch = {
            key: torch.cat(
                [torch.nn.functional.pad(one[key], (0, length - one[key].shape[1]), value=value) for one in encoded]
            )
            for key, value in fill.items()
        }
        pixels = [one["pixel_values"] for one in encoded if "pixel_values" in one]
        if pixels:
            batch["pixel_values"] = torch.cat(pixels)
        return batch


class Layout:
    """Trees laid end to end in one row: every prefix followed by its branches."""

    def __init__(self) -> None:
        self.input_ids: list[np.ndarray] = []
        self.position_ids: list[np.ndarray] = []
        self.end: list[np.ndarray] = []
        self.segments: list[tuple[int, int, int, int]] = []  # start, end, start and end of the prefix
        self.keep: list[np.ndarray] = []  # positions that predict a supervised token
        self.targets: list[np.ndarray] = []
        self.length = 0

    def add(self, tree: Tree, image_token_id: int, tokens_per_image: int) -> None:
        shared = tree.input_ids[0][: tree.prefix]
        prefix = tree.prefix + int((shared == image_token_id).sum()) * (tokens_per_image - 1)
        start = self.length
        samples = [
            expand_images(ids, answers, image_token_id, tokens_per_image)
            for ids, answers in zip(tree.input_ids, tree.answers, strict=True)
        ]
        end = start + prefix + sum(len(ids) - prefix for ids, _ in samples)
        if prefix:
            self._add_segment(samples[0][0][:prefix], 0, end, (0, 0))
        for ids, answers in samples:
            branch = self.length
            self._add_segment(ids[prefix:], prefix, branch + len(ids) - prefix, (start, start + prefix))
            supervised = np.concatenate([np.arange(*answer) for answer in answers])
            supervised = supervised[(supervised > 0) & (ids[supervised] != image_token_id)]
            before = supervised - 1
            self.keep.append(np.where(before < prefix, start + before, branch + before - prefix))
            self.targets.append(ids[supervised])

    def _add_segment(self, ids: np.ndarray, position: int, end: int, prefix: tuple[int, int]) -> None:
        self.input_ids.append(ids)
        self.position_ids.append(np.arange(position, position + len(ids)))
        self.end.append(np.full(len(ids), end))
        seen = prefix if prefix[1] > prefix[0] else (0, 0)
        self.segments.append((self.length, self.length + len(ids), *seen))
        self.length += len(ids)


@dataclass
class TreeCollator:
    """
    Rows of trees (`PackedRows`, `StreamingRows`) to a batch, padded on the right.

    `input_ids` and `position_ids` are (rows, length); branches continue the positions of their prefix. `keep` holds
    the flat positions in (rows x length) that predict a supervised token, `shift_labels` (1, keep) those tokens, and
    `labels` the same, for the trainer to count. `pixel_values` holds every image of a tree once, in the order of the
    image tokens; a batch without images has none.

    Args:
        processor: Opens the images.
        layout: Which description of who sees whom attention wants. `end`: (rows, length), one past the last token
            that may look back at each. `segments`: (segments, 5), row, start, end, start and end of the prefix; pads
            are in none. `varlen`: `cu_seq_q`, `cu_seq_k`, `kv_index`, `max_q`, `max_k` over the flat tokens, pads
            being a segment of their own.
        pad_to: Length of every row; without it that of the longest one of the batch.
        pad_to_multiple_of: Rounds the length up.
        features: Files to read `image_features` from; pictures are not opened then, and there are no `pixel_values`.
    """

    processor: LlavaProcessor
    layout: Literal["segments", "varlen", "end"]
    pad_to: int | None = None
    pad_to_multiple_of: int = 1
    features: FeatureFiles | None = None

    def __post_init__(self) -> None:
        if self.layout not in ("segments", "varlen", "end"):
            raise ValueError(f"`layout` is {self.layout!r}, wanted `segments`, `varlen` or `end`.")

    def __call__(self, rows: list[dict[str, list[Tree]]]) -> dict[str, torch.Tensor | int]:
        image_token_id, tokens_per_image = self.processor.image_token_id, self.processor.num_image_tokens
        laid = []
        for row in rows:
            laid.append(Layout())
            for tree in row["trees"]:
                laid[-1].add(tree, image_token_id, tokens_per_image)

        length = self._length(laid)
        batch: dict[str, torch.Tensor | int] = {
            "input_ids": _padded([row.input_ids for row in laid], length, self.processor.tokenizer.pad_token_id or 0),
            "position_ids": _padded([row.position_ids for row in laid], length, 0),
            "keep": _joined([keep + i * length for i, row in enumerate(laid) for keep in row.keep]),
            "shift_labels": _joined([targets for row in laid for targets in row.targets])[None],
        }
        batch["labels"] = batch["shift_labels"]
        if self.layout == "end":
            pads = np.arange(1, length + 1)  # a pad sees itself, so that no query sees nothing
            batch["end"] = _padded([[*row.end, pads[row.length :]] for row in laid], length, 0)
        elif self.layout == "segments":
            table = [(i, *segment) for i, row in enumerate(laid) for segment in row.segments]
            batch["segments"] = torch.tensor(table, dtype=torch.long).reshape(-1, 5)
        else:
            batch |= _varlen(laid, length)

        trees = [tree for row in rows for tree in row["trees"] if tree.images]
        if trees:
            read = self.processor.pixel_values if self.features is None else self.features.read
            key = "pixel_values" if self.features is None else "image_features"
            batch[key] = torch.cat([read(tree.images, f"conversation `{tree.ids[0]}`") for tree in trees])
        return batch

    def _length(self, laid: list[Layout]) -> int:
        longest = max(1, *(row.length for row in laid))
        if self.pad_to is not None and longest > self.pad_to:
            raise ValueError(f"A row has {longest} tokens, but `pad_to` is {self.pad_to}. Plan rows of that length.")
        return -(-(self.pad_to or longest) // self.pad_to_multiple_of) * self.pad_to_multiple_of


def _varlen(laid: list[Layout], length: int) -> dict[str, torch.Tensor | int]:
    """Every segment as a sequence of its own, whose keys are gathered from its prefix and itself."""
    queries, keys, index = [], [], []
    for i, row in enumerate(laid):
        pads = [(row.length, length, 0, 0)] if row.length < length else []
        for start, end, prefix_start, prefix_end in row.segments + pads:
            queries.append(end - start)
            keys.append(end - start + prefix_end - prefix_start)
            index += [np.arange(prefix_start, prefix_end) + i * length, np.arange(start, end) + i * length]
    return {
        "cu_seq_q": torch.tensor([0, *np.cumsum(queries)], dtype=torch.int32),
        "cu_seq_k": torch.tensor([0, *np.cumsum(keys)], dtype=torch.int32),
        "kv_index": _joined(index),
        "max_q": max(queries),
        "max_k": max(keys),
    }


def _joined(pieces: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([np.zeros(0, dtype=np.int64), *pieces]).astype(np.int64))


def _padded(rows: list[list[np.ndarray]], length: int, value: int) -> torch.Tensor:
    padded = torch.full((len(rows), length), value, dtype=torch.long)
    for row, pieces in zip(padded, rows, strict=True):
        joined = _joined(pieces)
        row[: len(joined)] = joined
    return padded
