"""The processor: the stock one, its behaviour and its files, plus conversations to model inputs and labels."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import BatchFeature
from transformers import LlavaProcessor as StockLlavaProcessor

from .conversation import ConversationError, check_conversation, match_pictures
from .encoding import Encoded, encode_messages, truncate
from .images import image_side, open_image


class LlavaProcessor(StockLlavaProcessor):
    """
    Text and pictures to model inputs, in the format of the stock [`~transformers.LlavaProcessor`], which reads what
    this one saves and the other way round.

    Beyond the stock class: `encode` (conversation to inputs, with labels for training), `num_image_tokens` (known
    without opening a picture), and pictures that are opened with care and named in every error.
    """

    @property
    def num_image_tokens(self) -> int:
        """Image tokens per picture: constant, since these towers see pictures of one size."""
        height, width = image_side(self.image_processor)
        tokens = (height // self.patch_size) * (width // self.patch_size) + self.num_additional_image_tokens
        return tokens - 1 if self.vision_feature_select_strategy == "default" else tokens

    def prepare_inputs_layout(self, images=None, text=None, videos=None, audio=None, **kwargs):
        return super().prepare_inputs_layout(
            images=None if images is None else _open_all(images), text=text, videos=videos, audio=audio, **kwargs
        )

    def pixel_values(self, images: list[Any], name: str = "conversation") -> torch.Tensor:
        """(pictures, 3, height, width) of anything `open_image` opens."""
        opened = [open_image(image, name=f"`{i}` of {name}") for i, image in enumerate(images)]
        return self.image_processor(opened, return_tensors="pt")["pixel_values"]

    def encode_text(
        self,
        messages: list[dict],
        for_training: bool = False,
        max_length: int | None = None,
        name: str = "conversation",
    ) -> Encoded:
        """Ids and labels of one conversation, image tokens included; no picture is opened.

        For training every answer and its stop token are supervised, and `max_length` drops whole turns from the end,
        cuts a first answer that is too long, or raises `ConversationTooLong`. Otherwise a conversation that ends with
        a user turn ends with the generation prompt.
        """
        checked = check_conversation(messages, name, for_training)
        if self.chat_template is None:
            raise ValueError(
                "This processor has no chat template. Set `processor.chat_template`, for example to "
                '`processing.load_template("vicuna_v1")`.'
            )
        encoded = encode_messages(
            checked,
            self.tokenizer,
            self.chat_template,
            self.image_token,
            self.num_image_tokens,
            add_generation_prompt=not for_training and checked[-1]["role"] == "user",
            name=name,
        )
        if not for_training:
            if max_length is not None:
                raise ValueError(
                    "`max_length` cuts what is learned, so it goes with `for_training=True`. Leave it out."
                )
            return encoded
        if not encoded.answers:
            raise ConversationError(
                f"{name} has no supervised token: the chat template has no generation marks. Use a template of "
                "`llava build --template`, or `--template own` to add marks to the tokenizer's."
            )
        if max_length is None:
            return encoded
        return truncate(encoded, max_length, self.num_image_tokens, self.image_token_id, name)

    def encode(
        self,
        messages: list[dict],
        images: list[Any] | None = None,
        for_training: bool = False,
        max_length: int | None = None,
        name: str = "conversation",
    ) -> BatchFeature:
        """Inputs of the model for one conversation, each with a batch dimension:
        `model.generate(**processor.encode(...))`.

        Pictures come in `images`, in the order of their places, or inside the places themselves.
        """
        if isinstance(messages, Mapping):
            raise ConversationError(
                f"{name} is a dict, wanted its list of messages. Pass `sample['messages']` and `sample['images']`."
            )
        encoded = self.encode_text(messages, for_training, max_length, name)
        pictures = match_pictures(messages, images, name)[: encoded.num_images]
        data = {
            "input_ids": torch.tensor([encoded.input_ids]),
            "attention_mask": torch.ones(1, len(encoded.input_ids), dtype=torch.long),
        }
        if for_training:
            data["labels"] = torch.tensor([encoded.labels])
        if pictures:
            data["pixel_values"] = self.pixel_values(pictures, name)
        return BatchFeature(data)


def _open_all(images: Any) -> Any:
    """Opens a picture, or every picture in (nested) lists, and leaves tensors and batches of arrays to stock."""
    if isinstance(images, (list, tuple)):
        return [_open_all(image) for image in images]
    if isinstance(images, torch.Tensor) or getattr(images, "ndim", 0) > 3:
        return images
    return open_image(images)


__all__ = ["LlavaProcessor"]
