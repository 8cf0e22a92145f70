"""Turns what people write and show into tensors, and back."""

from .chat_templates import load_template
from .conversation import ConversationError, ConversationTooLong
from .images import ImageError, open_image
from .processing_llava import LlavaProcessor


__all__ = [
    "ConversationError",
    "ConversationTooLong",
    "ImageError",
    "LlavaProcessor",
    "load_template",
    "open_image",
]
