"""Conversations of a data set to rows of training: encoded once, planned by length, read when a row is due.

    encoded, report = encode_rows(dataset, processor, max_length)      # text only, cached
    rows = PackedRows(dataset, encoded, plan_rows(encoded, max_length=max_length, ...))
    DataLoader(rows, batch_size, collate_fn=TreeCollator(processor, "segments"))   # pictures are opened here

Data sets that are read as a stream: `streaming.py`.
"""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset, Features, List, Value
from datasets.fingerprint import Hasher
from jinja2 import TemplateError
from PIL import Image

from .conversation import ConversationError, match_pictures, pictures_in
from .encoding import collapse_images
from .images import ImageError, open_image
from .packing import Plan
from .processing_llava import LlavaProcessor


ENCODED = Features(
    {
        "id": Value("string"),
        "input_ids": List(Value("int32")),  # one token per image
        "answers": List(List(Value("int32"), length=2)),  # [start, end) in `input_ids`
        "num_tokens": Value("int32"),  # with all image tokens
        "num_images": Value("int32"),
        "prefix_key": Value("string"),  # equal where the prefix with the images may be shared; "": never
        "cut": Value("int32"),  # tokens that `max_length` left out
        "rejected": Value("string"),  # why the conversation cannot be used; "": it can
    }
)
# What an encoding depends on besides data and processor: the code that makes it. A change makes cached ones anew.
CODE = ("rows.py", "encoding.py", "conversation.py", "processing_llava.py")
NUM_EXAMPLES = 5


@dataclass
class EncodingReport:
    num_rows: int
    reasons: dict[str, list[str]] = field(default_factory=dict)  # ids of the conversations, by why they are rejected
    examples: dict[str, str] = field(default_factory=dict)  # the full words about the first of each
    places: dict[str, Counter[str]] = field(default_factory=dict)  # how many of each are in which data set, if known
    max_length: int | None = None
    num_cut: int = 0  # conversations longer than `max_length`
    tokens_cut: int = 0  # what they lost, together

    @property
    def counts(self) -> Counter[str]:
        return Counter({reason: len(ids) for reason, ids in self.reasons.items()})

    def __str__(self) -> str:
        lines = [f"{self.counts.total():,} of {self.num_rows:,} conversations cannot be used."]
        for reason, count in self.counts.most_common():
            shown = ", ".join(f"`{name}`" for name in self.reasons[reason][:NUM_EXAMPLES])
            more = ", ..." if count > NUM_EXAMPLES else ""
            places = ", ".join(f"{n:,} in `{place}`" for place, n in self.places[reason].items())
            where = f" ({places})" if places else ""
            lines.append(f"- {count:,} x {reason}{where}: {shown}{more}. The first: {self.examples[reason]}")
        if self.num_cut:
            lines.append(
                f"{self.num_cut:,} conversations are longer than {self.max_length:,} tokens: they lost their last "
                f"turns, or the end of a first answer, {self.tokens_cut:,} tokens together."
            )
        return "\n".join(lines)


@dataclass
class Tree:
    """Conversations about the same images, with the start that they share."""

    prefix: int  # ids that all begin with, one per image; 0: one conversation alone
    ids: list[str]
    input_ids: list[np.ndarray]  # one token per image
    answers: list[np.ndarray]  # (answers, 2)
    images: list[Any]  # references, to be opened by the collator


def encode_rows(
    dataset: Dataset,
    processor: LlavaProcessor,
    max_length: int,
    num_proc: int | None = None,
    skip_invalid: bool = False,
    parts: list[tuple[str, int]] | None = None,
) -> tuple[Dataset, EncodingReport]:
    """Ids, answers and lengths of every conversation, row for row, from its text; no picture is copied.

    The result has as many rows as `dataset`. Conversations that cannot be used are an error that counts them by
    reason, or with `skip_invalid` are in the report, and in the result without tokens: `plan_rows` leaves them out.
    Then every picture is opened too, since one that cannot be would stop a training later. `parts` are the data sets
    that `dataset` was put together from, with their numbers of rows, for the report.
    """
    if "messages" not in dataset.column_names:
        raise ValueError(
            f"The data set has no column `messages`, but {', '.join(dataset.column_names) or 'none'}. Convert it to "
            "conversations first."
        )
    texts = dataset.select_columns([c for c in ("messages", "id", "image_id") if c in dataset.column_names])
    encoded = texts.with_format(None).map(
        _encode_batch,
        with_indices=True,
        batched=True,
        batch_size=200,
        fn_kwargs={
            "processor": processor,
            "max_length": max_length,
            "pictures": picture_column(dataset),
            "open_pictures": skip_invalid,
        },
        remove_columns=texts.column_names,
        features=ENCODED,
        num_proc=num_proc,
        new_fingerprint=_fingerprint(dataset, processor, max_length, skip_invalid),
        desc="encoding conversations",
    )
    report = _report(encoded, max_length, parts or [])
    if report.counts and not skip_invalid:
        raise ValueError(f"{report}\nRepair or remove them, or set `skip_invalid` to train on the others.")
    if report.counts.total() == len(dataset):
        raise ValueError(f"{report}\nNothing is left to train on.")
    return encoded, report


def _fingerprint(dataset: Dataset, processor: LlavaProcessor, max_length: int, open_pictures: bool) -> str:
    tokenizer = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    for state in ("truncation", "padding"):  # set by the last call, not part of what the tokenizer is
        tokenizer.pop(state, None)
    code = [(Path(__file__).parent / name).read_text(encoding="utf-8") for name in CODE]
    special = {key: str(value) for key, value in processor.tokenizer.special_tokens_map.items()}
    text = (processor.chat_template, processor.image_token, processor.num_image_tokens, max_length, open_pictures)
    return Hasher.hash(
        [dataset._fingerprint, tokenizer, sorted(special.items()), text, code, transformers.__version__]
    )


def _report(encoded: Dataset, max_length: int, parts: list[tuple[str, int]]) -> EncodingReport:
    report = EncodingReport(len(encoded), defaultdict(list), places=defaultdict(Counter), max_length=max_length)
    ends, row = np.cumsum([count for _, count in parts]), 0
    for table in encoded.select_columns(["id", "rejected", "cut"]).with_format("arrow").iter(batch_size=10_000):
        cut = table["cut"].to_numpy()
        report.num_cut += int((cut > 0).sum())
        report.tokens_cut += int(cut.sum())
        for name, rejected in zip(table["id"].to_pylist(), table["rejected"].to_pylist(), strict=True):
            if rejected:
                reason = reason_of(rejected, name)
                report.reasons[reason].append(name)
                report.examples.setdefault(reason, rejected)
                if parts:
                    report.places[reason][parts[int(np.searchsorted(ends, row, side="right"))][0]] += 1
            row += 1
    return report


def reason_of(rejected: str, name: str) -> str:
    """The first words of an error, without what is one conversation's own: its name, numbers and quotations."""
    words = rejected.replace(f"conversation `{name}`", "a conversation")
    # Of what is between backticks, names of fields and numbers stay; paths and the like go.
    words = re.sub(r"`([^`]*)`", lambda found: found[0] if re.fullmatch(r"[A-Za-z_]+|\d+", found[1]) else "…", words)
    words = re.split(r"[:.] ", words, maxsplit=1)[0]
    words = re.sub(r"'[^']*'|\"[^\"]*\"|\{.*\}|\[.*\]", "…", words)
    return re.sub(r"\d+", "N", words).rstrip(".")


def _encode_batch(
    batch: Mapping[str, list],
    indices: list[int],
    processor: LlavaProcessor,
    max_length: int,
    pictures: Dataset | None,
    open_pictures: bool,
) -> dict[str, list]:
    nothing = [None] * len(indices)
    names, image_ids = batch.get("id", nothing), batch.get("image_id", nothing)
    images = read_pictures(pictures, indices)
    rows = [
        encode_sample(
            processor, max_length, messages, shown, image_id, str(index if name is None else name), open_pictures
        )
        for messages, shown, image_id, name, index in zip(
            batch["messages"], images, image_ids, names, indices, strict=True
        )
    ]
    return {column: [row[column] for row in rows] for column in ENCODED}


def encode_sample(
    processor: LlavaProcessor,
    max_length: int,
    messages: Any,
    images: list[Any] | None,
    image_id: Any,
    name: str,
    open_pictures: bool,
) -> dict[str, Any]:
    """One row of `ENCODED`."""
    row: dict[str, Any] = {"id": name, "input_ids": [], "answers": [], "num_tokens": 0, "num_images": 0}
    row |= {"prefix_key": "", "cut": 0, "rejected": ""}
    try:
        encoded = processor.encode_text(
            messages, for_training=True, max_length=max_length, name=f"conversation `{name}`"
        )
        shown = match_pictures(messages, images, f"conversation `{name}`")[: encoded.num_images]
        for number, image in enumerate(shown if open_pictures else []):
            open_image(own_bytes(image), f"`{number}` of conversation `{name}`")
    except (ConversationError, ImageError) as error:
        return row | {"rejected": str(error)}
    except TemplateError as error:
        return row | {"rejected": f"The chat template refuses conversation `{name}`: {error}"}
    ids, answers = collapse_images(encoded, processor.image_token_id, processor.num_image_tokens)
    return row | {
        "input_ids": ids,
        "answers": answers,
        "num_tokens": len(encoded.input_ids),
        "num_images": encoded.num_images,
        "cut": encoded.cut,
        "prefix_key": _prefix_key(ids, answers[0][0], processor.image_token_id, shown, image_id),
    }


def _prefix_key(ids: list[int], first_answer: int, image_token_id: int, images: list[Any], image_id: Any) -> str:
    places = [i for i, token in enumerate(ids) if token == image_token_id]
    if not places or places[-1] >= first_answer:
        return ""
    named = image_id if isinstance(image_id, list) else [image_id] * len(images)
    if len(named) < len(images):
        named = [None] * len(images)
    identities = [_identity(image, name) for image, name in zip(images, named, strict=False)]
    key = json.dumps([identities, ids[: places[-1] + 1]])
    return hashlib.blake2b(key.encode(), digest_size=16).hexdigest()


def _identity(image: Any, name: Any) -> list[Any]:
    """Equal for the same image only.

    A name may mean another image in another data set, and a path may be a bare file name that comes with the bytes. So
    a name is taken with the path or the number of bytes, and a path alone only where there are no bytes.
    """
    data, path = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (None, image)
    if isinstance(path, Image.Image):
        data, path = path.tobytes(), None
    if isinstance(path, bytes):
        data, path = path, None
    if data is None:
        return [name, str(path)]
    if name is not None:
        return [name, len(data)]
    return [None, hashlib.blake2b(data, digest_size=16).hexdigest()]


def picture_column(dataset: Dataset) -> Dataset | None:
    return dataset.select_columns(["images"]).with_format("arrow") if "images" in dataset.column_names else None


def read_pictures(pictures: Dataset | None, indices: list[int]) -> list[list[Any] | None]:
    """References to the images of some rows: paths, or dicts of `path` and `bytes`, the bytes a view and no copy."""
    if pictures is None:
        return [None] * len(indices)
    lists = [row.values for row in pictures[indices]["images"]]
    return [None if images is None else [_reference(image) for image in images] for images in lists]


def _reference(image: Any) -> Any:
    if not isinstance(image, Mapping):
        return image.as_py()
    found = dict(image)
    return {"bytes": found["bytes"].as_buffer(), "path": found["path"].as_py()}


def own_bytes(image: Any) -> Any:
    """A reference whose bytes are no view into the data set's files."""
    if isinstance(image, dict) and image["bytes"] is not None:
        return {**image, "bytes": bytes(image["bytes"])}
    return image


class PackedRows(torch.utils.data.Dataset):
    """The rows of a plan, each read from the data set's files when it is asked for: `{"trees": [Tree, ...]}`.

    Rows are to be taken in order: the plan is shuffled already.
    """

    def __init__(self, dataset: Dataset, encoded: Dataset, plan: Plan):
        if len(dataset) != len(encoded):
            raise ValueError(
                f"The data set has {len(dataset)} rows, but {len(encoded)} were encoded. Give the same data set, and "
                "select from both or from none."
            )
        self.plan = plan
        self.pictures = picture_column(dataset)
        self.messages = dataset.select_columns(["messages"]).with_format(None)
        columns = ["id", "input_ids", "answers", "num_images"]
        self.encoded = encoded.select_columns(columns).with_format("arrow")

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, row: int) -> dict[str, list[Tree]]:
        return {"trees": [self._read(prefix, numbers.tolist()) for prefix, numbers in self.plan.trees_of(row)]}

    def read_tree(self, number: int) -> Tree:
        trees = self.plan.trees
        numbers = trees.samples[trees.offsets[number] : trees.offsets[number + 1]]
        return self._read(int(trees.prefix[number]), numbers.tolist())

    def _read(self, prefix: int, numbers: list[int]) -> Tree:
        table = self.encoded[numbers]
        ids, answers = table["input_ids"].combine_chunks(), table["answers"].combine_chunks()
        images: list[Any] = []
        num_images = table["num_images"][0].as_py()
        if num_images:
            images = read_pictures(self.pictures, numbers[:1])[0] or pictures_in(self.messages[numbers[0]]["messages"])
            images = list(map(own_bytes, images[:num_images]))
        return Tree(
            prefix,
            table["id"].to_pylist(),
            [row.values.to_numpy() for row in ids],
            [row.values.flatten().to_numpy().reshape(-1, 2) for row in answers],
            images,
        )
