"""Rows of a data set that is read as a stream: packed block by block, and continued exactly where a run stopped."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node

from .conversation import pictures_in
from .packing import Samples, grow_trees, pack_rows
from .processing_llava import LlavaProcessor
from .rows import Tree, encode_sample, reason_of


logger = logging.getLogger(__name__)


class StreamingRows(torch.utils.data.IterableDataset):
    """
    Blocks of `buffer_size` conversations, each packed into rows as a whole data set would be, and shuffled.

    Every process and every dataloader worker reads a *lane* of its own: a share of the stream's shards, or every n-th
    conversation where the shards cannot be dealt out evenly. All of a block's rows are emitted before the next block
    is read, so a position in the stream is where the block began and how many of its rows are out: a few numbers,
    from which `load_state_dict` makes the same rows again.

    Args:
        source: `messages`, `images`, `id`, `image_id` as in `encode_rows`. It is shuffled here, within blocks; a
            shuffle buffer of its own would not survive `load_state_dict`.
        processor: Encodes the text; the collator opens the images.
        max_length: Tokens of a row.
        longest: Tokens of a conversation, if fewer; longer ones lose whole turns from the end.
        buffer_size: Conversations in memory, with the bytes of their images. More fill rows better.
        max_images: Images of a row.
        seed: Of the order within blocks.
        epochs: Passes over the stream; without end by default, so that no process runs out of rows before the others.
        rank, world_size: Which process this is, of how many.
        skip_invalid: Conversations that cannot be used are counted in `rejected`, and logged; otherwise an error.
        called: The data, as errors name it.
        name_bad_line: Called where a text is no UTF-8; raises an error that names its place, if it can find it.
    """

    def __init__(
        self,
        source: IterableDataset,
        processor: LlavaProcessor,
        *,
        max_length: int,
        longest: int | None = None,
        buffer_size: int = 2048,
        max_images: int | None = None,
        seed: int = 0,
        epochs: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        skip_invalid: bool = False,
        called: str = "the stream",
        name_bad_line: Callable[[], None] | None = None,
    ):
        self.source = source.decode(False) if source.features else source
        self.processor = processor
        self.max_length = max_length
        self.longest = longest or max_length
        self.buffer_size = buffer_size
        self.max_images = max_images
        self.seed = seed
        self.epochs = epochs
        self.rank = rank
        self.world_size = world_size
        self.skip_invalid = skip_invalid
        self.called = called
        self.name_bad_line = name_bad_line
        self.rejected: Counter[str] = Counter()
        self.num_cut = 0
        self._state: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """Where the lane of this process or worker is, as plain numbers, texts and lists."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from the state of one lane, or from those of all workers.

        The latter are `{"workers": [state, ...], "next": i}`, `i` being the worker whose batch would have come next:
        a dataloader asks its workers in turn, and a new one begins with the first.
        """
        self._state = dict(state)

    def __iter__(self) -> Iterator[dict[str, list[Tree]]]:
        state = self._state = self._lane()
        while self.epochs is None or state["epoch"] < self.epochs:
            source = split_dataset_by_node(self.source, rank=state["lane"], world_size=state["lanes"])
            source.set_epoch(state["epoch"])
            source.load_state_dict(state["source"])
            first_block, num_rows = state["block"], 0
            for block in self._blocks(source):
                rows = self._pack(block, state)
                num_rows += len(rows)
                for emitted in range(state["emitted"], len(rows)):
                    self._state = state | {"emitted": emitted + 1}
                    yield rows[emitted]
                state = state | {"source": source.state_dict(), "block": state["block"] + 1, "emitted": 0}
            if not num_rows and not first_block:
                raise ValueError(
                    f"Lane {state['lane']} of {state['lanes']} (one for each process and dataloader worker) found "
                    "nothing to train on. Use fewer of them, or check the data."
                )
            state = state | {"epoch": state["epoch"] + 1, "source": None, "block": 0, "emitted": 0}

    def _blocks(self, source: IterableDataset) -> Iterator[dict[str, list]]:
        try:
            # `iter`, unlike `__iter__`, leaves the division among workers to us.
            yield from source.iter(batch_size=self.buffer_size)
        except UnicodeDecodeError as error:
            if self.name_bad_line is not None:
                self.name_bad_line()
            raise ValueError(f"A text of {self.called} is no UTF-8: {error}. Save it as UTF-8.") from error

    def _lane(self) -> dict[str, Any]:
        info = torch.utils.data.get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        lanes = self.world_size * num_workers
        state = self._state
        if "workers" in state:
            state = state["workers"][(state["next"] + worker) % len(state["workers"])]
        start = {"lane": self.rank * num_workers + worker, "lanes": lanes, "epoch": 0, "source": None}
        start |= {"block": 0, "emitted": 0}
        if state and state["lanes"] != lanes:
            raise ValueError(
                f"The position in the stream was saved with {state['lanes']} lanes (processes x dataloader workers), "
                f"but now there are {lanes}. Continue with as many as before."
            )
        return start | state

    def _pack(self, block: dict[str, list], state: dict[str, Any]) -> list[dict[str, list[Tree]]]:
        examples = [dict(zip(block, values, strict=True)) for values in zip(*block.values(), strict=True)]
        first = state["block"] * self.buffer_size
        records = []
        for i, example in enumerate(examples):
            name = str(example.get("id", f"{first + i} of lane {state['lane']}"))
            images, image_id = example.get("images"), example.get("image_id")
            records.append(
                encode_sample(
                    self.processor, self.longest, example["messages"], images, image_id, name, self.skip_invalid
                )
            )
        if not state["emitted"]:  # else it is the block that a run goes on in, and was counted
            self._reject([record for record in records if record["rejected"]])
            self.num_cut += sum(record["cut"] > 0 for record in records)
        if not any(record["num_tokens"] for record in records):
            return []

        trees = grow_trees(samples_of(records), self.max_length, self.processor.num_image_tokens)
        rng = np.random.default_rng([self.seed, state["epoch"], state["lane"], state["block"]])
        rows = pack_rows(trees, self.max_length, self.max_images, rng)
        rng.shuffle(rows)
        return [
            {
                "trees": [
                    _tree(
                        int(trees.prefix[t]),
                        [(records[i], examples[i]) for i in trees.samples[trees.offsets[t] : trees.offsets[t + 1]]],
                    )
                    for t in row
                ]
            }
            for row in rows
        ]

    def _reject(self, records: list[dict[str, Any]]) -> None:
        if records and not self.skip_invalid:
            raise ValueError(
                f"{records[0]['rejected']} Or set `skip_invalid` to train on the others. The row is from "
                f"{self.called}."
            )
        self.rejected.update(reason_of(record["rejected"], record["id"]) for record in records)
        if records:
            logger.warning(
                f"{len(records)} conversations of this block cannot be used, the first: {records[0]['rejected']} "
                f"So far: {dict(self.rejected)} (from {self.called})"
            )


def samples_of(records: list[dict[str, Any]]) -> Samples:
    numbers: dict[str, int] = {"": -1}
    keys = np.array([numbers.setdefault(record["prefix_key"], len(numbers)) for record in records])
    heads = [record["input_ids"][: record["answers"][0][0]] if record["prefix_key"] else [] for record in records]
    return Samples(
        num_tokens=np.array([record["num_tokens"] for record in records]),
        num_images=np.array([record["num_images"] for record in records]),
        keys=keys,
        heads=np.array([token for head in heads for token in head], dtype=np.int64),
        head_offsets=np.cumsum([0, *map(len, heads)]),
    )


def _tree(prefix: int, parts: list[tuple[dict[str, Any], dict[str, Any]]]) -> Tree:
    first, example = parts[0]
    images = list(example.get("images") or pictures_in(example["messages"]))
    return Tree(
        prefix,
        [record["id"] for record, _ in parts],
        [np.array(record["input_ids"]) for record, _ in parts],
        [np.array(record["answers"]) for record, _ in parts],
        images[: first["num_images"]],
    )
