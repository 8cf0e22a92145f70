"""Rows of a data set to one padded batch; pictures are opened and text is encoded here, in the dataloader's
workers.
"""

from dataclasses import dataclass
from typing import Any

import torch

from .encoding import IGNORE
from .processing_llava import LlavaProcessor


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
                name=f"sample `{row.get('id', index)}`",
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
