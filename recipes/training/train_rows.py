"""From the data sets of a configuration to the rows that the trainer goes through: encoded, checked, planned."""

import json
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset

from processing import LlavaProcessor
from processing.collator import PaddedCollator, TreeCollator
from processing.packing import plan_rows
from processing.rows import EncodingReport, PackedRows, encode_rows
from processing.streaming import StreamingRows
from recipes.training.checkpoints import hash_of
from recipes.training.throughput import count_padded, count_trees
from recipes.training.train_config import TrainConfig
from recipes.training.train_data import check_utf8, load_mixture, load_streams


ROWS_PER_PROCESS = 5000  # that encode text: fewer are not worth starting another


@dataclass
class Encoded:
    """A data set and the ids of its conversations, row for row."""

    rows: Dataset
    encoded: Dataset
    report: EncodingReport
    sources: list[dict]

    @property
    def usable(self) -> list[int]:
        """Numbers of the rows that were not rejected."""
        return [number for number, reason in enumerate(self.encoded["rejected"]) if not reason]

    @property
    def identity(self) -> dict[str, Any]:
        return {"number": len(self.encoded), "hash": hash_of(self.encoded)}

    def __str__(self) -> str:
        return str(self.report)

    def as_dict(self) -> dict[str, Any]:
        """For `training.json`: what was dropped, by reason, with examples."""
        reasons = {reason: {"number": len(ids), "such_as": ids[:5]} for reason, ids in self.report.reasons.items()}
        cut = {"conversations": self.report.num_cut, "tokens": self.report.tokens_cut}
        return {"sources": self.sources, "conversations": self.report.num_rows, "dropped": reasons, "cut": cut}


@dataclass
class Streamed:
    """A data set that is read while training runs."""

    stream: IterableDataset
    sources: list[dict]

    @property
    def identity(self) -> dict[str, Any]:
        return {"streams": self.sources}

    def __str__(self) -> str:
        return f"a stream of {', '.join(source['data'] for source in self.sources)}"

    def as_dict(self) -> dict[str, Any]:
        return {"sources": self.sources}


def encode_data(
    config: TrainConfig, processor: LlavaProcessor, data: list[str], weights: list[float] | None
) -> Encoded:
    """Encodes everything before the first step; the first process of a machine does it, the others read its result."""
    with config.main_process_first(desc="encoding conversations"):
        # Files are looked for once a machine, and not at all where every picture is opened.
        look_for_files = not config.skip_invalid and config.local_process_index == 0
        rows, sources = load_mixture(data, weights, config.image_root, config.seed, look_for_files)
        processes = config.dataset_num_proc or min(len(rows) // ROWS_PER_PROCESS, torch.get_num_threads())
        encoded, report = encode_rows(
            rows,
            processor,
            longest(config),
            num_proc=processes if processes > 1 else None,
            skip_invalid=config.skip_invalid,
            parts=[(source["data"], source["rows_in_mixture"]) for source in sources],
        )
    return Encoded(rows, encoded, report, sources)


def load_data(config: TrainConfig, processor: LlavaProcessor) -> Encoded | Streamed:
    if config.streaming:
        return Streamed(*load_streams(config.data, config.data_weights, config.image_root, config.seed))
    return encode_data(config, processor, config.data, config.data_rows or config.data_weights)


def longest(config: TrainConfig) -> int | None:
    """Tokens of a conversation at most."""
    given = [n for n in (config.max_length, config.max_conversation_length) if n is not None]
    return min(given, default=None)


def plan(
    config: TrainConfig, found: Encoded, processor: LlavaProcessor, rows_per_step: int, epochs: int
) -> PackedRows:
    planned = plan_rows(
        found.encoded,
        max_length=config.max_length,
        max_images=config.max_images_per_row,
        seed=config.seed,
        epochs=epochs,
        rows_per_step=rows_per_step,
        tokens_per_image=processor.num_image_tokens,
    )
    return PackedRows(found.rows, found.encoded, planned)


def stream_rows(config: TrainConfig, found: Streamed, processor: LlavaProcessor) -> StreamingRows:
    return StreamingRows(
        found.stream,
        processor,
        max_length=config.max_length,
        longest=longest(config),
        buffer_size=config.stream_buffer,
        max_images=config.max_images_per_row,
        seed=config.seed,
        rank=config.process_index,
        world_size=config.world_size,
        skip_invalid=config.skip_invalid,
        called=", ".join(f"`{source['data']}`" for source in found.sources),
        name_bad_line=partial(check_utf8, [source["data"] for source in found.sources]),
    )


@dataclass
class CollateNumbered:
    """TRL takes data sets of `datasets` alone: it gets the numbers of rows, and the rows are read in the workers."""

    rows: Dataset | PackedRows
    collator: PaddedCollator | TreeCollator
    held_out: PackedRows | None = None
    held_out_collator: TreeCollator | None = None

    def __call__(self, numbered: list[dict[str, Any]]) -> dict[str, Any]:
        if numbered[0].get("held_out"):
            return collate([self.held_out[item["row"]] for item in numbered], self.held_out_collator)
        return collate([self.rows[item["row"]] for item in numbered], self.collator)


@dataclass
class CollateStreamed:
    """As `CollateNumbered` for rows of a stream, with the position behind them."""

    stream: StreamingRows  # in a worker, that worker's copy is the one that moves
    collator: TreeCollator

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        worker = torch.utils.data.get_worker_info()
        stream = self.stream if worker is None else worker.dataset
        position = {"state": stream.state_dict(), "rejected": dict(stream.rejected), "cut": stream.num_cut}
        return collate(rows, self.collator) | {"position": position}


def collate(rows: list[dict[str, Any]], collator: PaddedCollator | TreeCollator) -> dict[str, Any]:
    """A batch with what the trainer wants to know of it: the ids of its conversations, and how much it is."""
    batch = collator(rows)
    if isinstance(collator, PaddedCollator):
        return batch | {"ids": [str(row.get("id")) for row in rows], "counts": count_padded(batch)}
    ids = [name for row in rows for tree in row["trees"] for name in tree.ids]
    return batch | {"ids": ids, "counts": count_trees(rows, batch, collator.processor)}


class StreamPosition:
    """Where each worker of this process is in its lane, by the batches that were trained on: workers read ahead."""

    def __init__(self, stream: StreamingRows, num_workers: int):
        self.num_workers = max(num_workers, 1)
        lanes = stream.world_size * self.num_workers
        first = stream.rank * self.num_workers
        self.states: list[dict] = [{"lane": first + i, "lanes": lanes} for i in range(self.num_workers)]
        self.rejected: list[dict[str, int]] = [{} for _ in range(self.num_workers)]
        self.cut = [0] * self.num_workers
        self.next = 0
        self.rejected_before: Counter[str] = Counter()
        self.cut_before = 0

    def passed(self, position: dict[str, Any]) -> None:
        self.states[self.next], self.rejected[self.next] = position["state"], position["rejected"]
        self.cut[self.next] = position["cut"]
        self.next = (self.next + 1) % self.num_workers

    @property
    def all_rejected(self) -> Counter[str]:
        return sum(map(Counter, self.rejected), Counter(self.rejected_before))

    @property
    def num_cut(self) -> int:
        return self.cut_before + sum(self.cut)

    def save(self, folder: Path, rank: int) -> None:
        state = {"workers": self.states, "next": self.next, "rejected": self.all_rejected, "cut": self.num_cut}
        (folder / f"stream-{rank}.json").write_text(json.dumps(state))

    def load(self, folder: Path, rank: int, stream: StreamingRows) -> None:
        path = folder / f"stream-{rank}.json"
        if not path.is_file():
            raise ValueError(
                f"`{folder}` has no position in the stream for process {rank}. Continue with as many as before."
            )
        state = json.loads(path.read_text())
        self.rejected_before, self.cut_before = Counter(state.pop("rejected")), state.pop("cut")
        # A new dataloader begins with its first worker, which gets the lane whose turn it is.
        workers = state["workers"]
        self.states = [workers[(state["next"] + i) % len(workers)] for i in range(len(workers))]
        self.next = 0
        stream.load_state_dict(state)
