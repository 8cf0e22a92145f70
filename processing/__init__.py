"""Turns what people write and show into tensors, and back."""

from .chat_templates import load_template
from .collator import PaddedCollator, TreeCollator
from .conversation import ConversationError, ConversationTooLong
from .images import ImageError, open_image
from .mixing import mix
from .packing import plan_rows
from .processing_llava import LlavaProcessor
from .rows import PackedRows, encode_rows
from .streaming import StreamingRows


__all__ = [
    "ConversationError",
    "ConversationTooLong",
    "ImageError",
    "LlavaProcessor",
    "PackedRows",
    "PaddedCollator",
    "StreamingRows",
    "TreeCollator",
    "encode_rows",
    "load_template",
    "mix",
    "open_image",
    "plan_rows",
]
