"""Lengths to rows: which conversations share a tree, which trees share a row, and which rows a step.

A tree is one or more conversations about the same images: a prefix that all of them begin with, images included, and
a branch for each. A row is several trees end to end, of at most `max_length` tokens. Only numbers pass through here;
no image is opened, and no text is read beyond the first answer.
"""

from bisect import bisect_right, insort
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random

import numpy as np
from datasets import Dataset


# Trees that a row is chosen from. Wider windows fill rows better.
WINDOW = 4096
# Rows that are drawn to take the fullest, unless one lacks less than this part of its length.
DRAWS, FULL = 16, 200
# Trees looked at for a place in a row, where images or an earlier place forbid some.
PLACES_TRIED = 64
# A waiting tree is one integer, its length above its number, so that they sort and compare fast.
TREE_BITS = 32
LAST_TREE = (1 << TREE_BITS) - 1
# Steps that rows of like cost are drawn from: within so many, rows are sorted by cost, beyond, they stay mixed.
STEPS_SORTED = 64
# Query-key pairs that cost as much as one token does elsewhere: 6 x hidden size, here of a model of 1B to 3B.
PAIRS_PER_TOKEN = 12_288


@dataclass
class Samples:
    """What planning knows of the conversations, in arrays of one entry each. Ids have one token per image."""

    num_tokens: np.ndarray  # with all image tokens; 0: rejected, and in no tree
    num_images: np.ndarray
    keys: np.ndarray  # equal where the prefix may be shared, -1 where it may not
    heads: np.ndarray  # ids before the first answer of those with a key, end to end
    head_offsets: np.ndarray  # (conversations + 1,)


@dataclass
class Trees:
    samples: np.ndarray  # numbers of conversations, tree after tree
    offsets: np.ndarray  # (trees + 1,), of `samples`
    prefix: np.ndarray  # ids that the conversations of a tree share, one per image; 0 where one is alone
    tokens: np.ndarray
    images: np.ndarray
    costs: np.ndarray  # in tokens, with attention


@dataclass
class PlanSummary:
    samples: int
    trees: int
    rows: int
    steps: int
    epochs: int
    waste: float  # of a step, the share that is padding when all its rows are as long as its longest
    filled: float  # tokens of all rows over `max_length` each
    sharing: float  # tokens of the conversations alone over tokens of the trees
    samples_per_step: float
    images_per_step: float

    def __str__(self) -> str:
        return (
            f"{self.samples:,} conversations in {self.trees:,} trees, sharing {self.sharing:.2f}x; "
            f"{self.epochs} epochs in {self.rows:,} rows, {self.filled:.1%} filled, {self.waste:.1%} padding; "
            f"{self.steps:,} steps of {self.samples_per_step:.1f} conversations and {self.images_per_step:.1f} images"
        )


@dataclass
class Plan:
    """The rows of a whole training, in order; `rows_per_step` of them make an optimizer step."""

    trees: Trees
    row_trees: np.ndarray  # numbers of trees, row after row
    row_offsets: np.ndarray  # (rows + 1,), of `row_trees`
    epoch_starts: list[int]  # the row that each epoch begins with
    rows_per_step: int
    summary: PlanSummary

    def __len__(self) -> int:
        return len(self.row_offsets) - 1

    def trees_of(self, row: int) -> list[tuple[int, np.ndarray]]:
        """(length of the shared prefix, numbers of the conversations) of every tree of a row."""
        numbers = self.row_trees[self.row_offsets[row] : self.row_offsets[row + 1]]
        offsets = self.trees.offsets
        return [(int(self.trees.prefix[t]), self.trees.samples[offsets[t] : offsets[t + 1]]) for t in numbers]


def plan_rows(
    encoded: Dataset,
    *,
    max_length: int,
    rows_per_step: int,
    tokens_per_image: int,
    epochs: int = 1,
    max_images: int | None = None,
    seed: int = 0,
) -> Plan:
    """Packs what `encode_rows` gave; the same arguments give the same plan on every machine.

    In every epoch each conversation is in one row. Rows of one step cost nearly the same; `rows_per_step` is
    processes x batch size x accumulation. A step may begin in one epoch and end in the next. The last one is filled
    up by spreading its trees, so that no sampler has to repeat rows.
    """
    samples = read_samples(encoded)
    trees = grow_trees(samples, max_length, tokens_per_image)
    chunks: list[np.ndarray] = []  # trees of one row each
    epoch_starts = []
    for epoch in range(epochs):
        rng = np.random.default_rng([seed, epoch])
        rows = pack_rows(trees, max_length, max_images, rng)
        costs = np.array([trees.costs[row].sum() for row in rows])
        epoch_starts.append(len(chunks))
        chunks += [rows[i] for i in _order_rows(costs, -len(chunks) % rows_per_step, rows_per_step, rng)]
    unfinished = len(chunks) % rows_per_step
    if unfinished:
        chunks[-unfinished:] = _spread(chunks[-unfinished:], rows_per_step, trees.costs)

    row_trees = np.concatenate(chunks).astype(np.int32)
    row_offsets = _offsets([len(row) for row in chunks])
    summary = _summarise(samples, trees, row_trees, row_offsets, max_length, rows_per_step, epochs)
    return Plan(trees, row_trees, row_offsets, epoch_starts, rows_per_step, summary)


def read_samples(encoded: Dataset) -> Samples:
    """Lengths and heads from the columns of `encode_rows`, without making a Python object of any token."""
    columns = ["input_ids", "answers", "num_tokens", "num_images", "prefix_key"]
    key_numbers: dict[str, int] = {"": -1}
    num_tokens, num_images, keys, heads, lengths = [], [], [], [], []
    for table in encoded.select_columns(columns).with_format("arrow").iter(batch_size=10_000):
        tokens, images = table["num_tokens"].to_numpy(), table["num_images"].to_numpy()
        key = np.array([key_numbers.setdefault(k, len(key_numbers)) for k in table["prefix_key"].to_pylist()])
        ids, answers = table["input_ids"].combine_chunks(), table["answers"].combine_chunks()
        starts, ends = ids.offsets.to_numpy()[:-1], answers.values.flatten().to_numpy()
        length = np.zeros(len(tokens), dtype=np.int64)
        shared = key >= 0
        length[shared] = ends[2 * answers.offsets.to_numpy()[:-1][shared]]  # where its first answer starts
        heads.append(ids.values.to_numpy()[_ranges(starts, length)])
        num_tokens.append(tokens)
        num_images.append(images)
        keys.append(key)
        lengths.append(length)
    return Samples(
        np.concatenate(num_tokens).astype(np.int64),
        np.concatenate(num_images).astype(np.int64),
        np.concatenate(keys),
        np.concatenate(heads),
        _offsets(np.concatenate(lengths)),
    )


def grow_trees(samples: Samples, max_length: int, tokens_per_image: int) -> Trees:
    """Conversations with one key in one tree, or in several where one would be longer than `max_length`."""
    usable = np.flatnonzero(samples.num_tokens)
    if not len(usable):
        raise ValueError(
            "There is no conversation to plan rows for. Check the data, and the counts of what was rejected."
        )
    longest = usable[samples.num_tokens[usable].argmax()]
    if samples.num_tokens[longest] > max_length:
        raise ValueError(
            f"Conversation number {longest} has {samples.num_tokens[longest]} tokens, but rows have {max_length}. "
            "Encode and plan with the same `max_length`."
        )
    keys = samples.keys[usable]
    keys = np.where(keys < 0, keys.max() + 1 + np.arange(len(keys)), keys)  # alone, so with a key of its own
    order = np.argsort(keys, kind="stable")
    members = usable[order]
    starts = np.flatnonzero(np.diff(keys[order], prepend=-1))
    offsets = np.append(starts, len(members))

    prefix = _common_prefix(samples, members, offsets)
    offsets, prefix = _split_long(samples, members, offsets, prefix, max_length, tokens_per_image)
    sizes = np.diff(offsets)
    prefix = np.where(sizes > 1, prefix, 0)
    images = samples.num_images[members[offsets[:-1]]]
    expanded = np.where(prefix > 0, prefix + images * (tokens_per_image - 1), 0)
    branches = samples.num_tokens[members] - np.repeat(expanded, sizes)
    pairs = branches * (branches + 1) / 2 + branches * np.repeat(expanded, sizes)
    tokens = expanded + np.add.reduceat(branches, offsets[:-1])
    costs = tokens + (np.add.reduceat(pairs, offsets[:-1]) + expanded * (expanded + 1) / 2) / PAIRS_PER_TOKEN
    return Trees(members.astype(np.int32), offsets, prefix.astype(np.int32), tokens, images, costs)


def _common_prefix(samples: Samples, members: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Ids that all conversations of a group begin with; no head reaches into an answer, so nor does the prefix."""
    lengths = np.diff(samples.head_offsets)
    first = np.repeat(members[offsets[:-1]], np.diff(offsets))
    limits = np.minimum(lengths[first], lengths[members])
    common = np.zeros(len(members), dtype=np.int64)
    active = np.flatnonzero((limits > 0) & (first != members))
    common[first == members] = lengths[first[first == members]]
    ours, theirs = samples.head_offsets[members], samples.head_offsets[first]
    while len(active):  # one token further at a time, in all groups at once
        at = common[active]
        active = active[samples.heads[ours[active] + at] == samples.heads[theirs[active] + at]]
        common[active] += 1
        active = active[common[active] < limits[active]]
    return np.minimum.reduceat(common, offsets[:-1])


def _split_long(
    samples: Samples,
    members: np.ndarray,
    offsets: np.ndarray,
    prefix: np.ndarray,
    max_length: int,
    tokens_per_image: int,
) -> tuple[np.ndarray, np.ndarray]:
    expanded = prefix + samples.num_images[members[offsets[:-1]]] * (tokens_per_image - 1)
    branches = samples.num_tokens[members] - np.repeat(expanded, np.diff(offsets))
    long = np.flatnonzero((expanded + np.add.reduceat(branches, offsets[:-1]) > max_length) & (np.diff(offsets) > 1))
    cuts = []
    for group in long:
        total = expanded[group]
        for i in range(offsets[group], offsets[group + 1]):
            if total + branches[i] > max_length:
                cuts.append(i)
                total = expanded[group]
            total += branches[i]
    cut = np.union1d(offsets, np.array(cuts, dtype=offsets.dtype))
    return cut, prefix[np.searchsorted(offsets, cut[:-1], side="right") - 1]


def pack_rows(trees: Trees, max_length: int, max_images: int | None, rng: np.random.Generator) -> list[np.ndarray]:
    """Rows one after the other, each of trees drawn at random until the best fit for what is left closes it.

    Of several draws the fullest row is taken. It fills rows better than sorted best fit does where a row holds but a
    few trees, and leaves more to chance.
    """
    draw = Random(int(rng.integers(2**62))).random
    images = trees.images.tolist()
    queue = [(tokens << TREE_BITS) + tree for tree, tokens in enumerate(trees.tokens.tolist())]
    queue = [queue[i] for i in rng.permutation(len(queue))]
    waiting, queue = sorted(queue[:WINDOW]), queue[: WINDOW - 1 : -1]
    rows = []
    while waiting:
        first = waiting.pop(int(draw() * len(waiting)))
        room = max_length - (first >> TREE_BITS)
        images_left = (np.inf if max_images is None else max_images) - images[first & LAST_TREE]
        best: list[int] = []
        least = room + 1
        for _ in range(DRAWS):
            chosen, left = _fill(waiting, room, images_left, images, draw)
            if left < least:
                best, least = chosen, left
            if least < max_length / FULL:
                break
        row = [first, *(waiting[i] for i in best)]
        rows.append(np.array([tree & LAST_TREE for tree in row]))
        for i in sorted(best, reverse=True):
            del waiting[i]
        for _ in range(min(len(row), len(queue))):
            insort(waiting, queue.pop())
    return rows


def _fill(
    waiting: list[int], left: int, images_left: float, images: list[int], draw: Callable[[], float]
) -> tuple[list[int], int]:
    """Places in `waiting` of trees for what is left of a row, and the tokens that are left then."""
    chosen: list[int] = []
    while waiting and left >= waiting[0] >> TREE_BITS:
        fitting = bisect_right(waiting, (left << TREE_BITS) + LAST_TREE)
        longest = waiting[fitting - 1] >> TREE_BITS
        has_choice = fitting == len(waiting) and left - longest >= waiting[0] >> TREE_BITS
        start = int(draw() * fitting) if has_choice else fitting - 1
        for i in range(start, max(start - PLACES_TRIED, -1), -1):
            if i not in chosen and images[waiting[i] & LAST_TREE] <= images_left:
                break
        else:
            break
        chosen.append(i)
        left -= waiting[i] >> TREE_BITS
        images_left -= images[waiting[i] & LAST_TREE]
    return chosen, left


def _order_rows(costs: np.ndarray, missing: int, rows_per_step: int, rng: np.random.Generator) -> np.ndarray:
    """Rows in steps of like cost, steps at random.

    The first `missing` rows complete the step that the last epoch began, and the rows at the end begin one: both are
    of middling cost, as there is no choice in what they meet.
    """
    ranked = np.argsort(costs, kind="stable")
    first, ranked = _take_middle(ranked, missing)
    last, ranked = _take_middle(ranked, len(ranked) % rows_per_step)
    rng.shuffle(first)
    rng.shuffle(last)
    rng.shuffle(ranked)
    steps = []
    for start in range(0, len(ranked), STEPS_SORTED * rows_per_step):
        near = ranked[start : start + STEPS_SORTED * rows_per_step]
        steps.append(near[np.argsort(-costs[near], kind="stable")].reshape(-1, rows_per_step))
    if steps:
        ranked = rng.permutation(np.concatenate(steps)).ravel()
    return np.concatenate((first, ranked, last))


def _take_middle(ranked: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    start = max(len(ranked) - count, 0) // 2
    return ranked[start : start + count], np.delete(ranked, slice(start, start + count))


def _spread(rows: list[np.ndarray], count: int, costs: np.ndarray) -> list[np.ndarray]:
    """As many rows as asked of the same trees: the costliest is halved until there are enough, the rest are empty."""
    rows = list(rows)
    while len(rows) < count:
        divisible = [i for i, row in enumerate(rows) if len(row) > 1]
        if not divisible:
            return rows + [np.zeros(0, dtype=np.int64)] * (count - len(rows))
        row = rows.pop(max(divisible, key=lambda i: costs[rows[i]].sum()))
        halves: tuple[list[int], list[int]] = ([], [])
        for tree in row[np.argsort(-costs[row], kind="stable")]:
            min(halves, key=lambda half: costs[half].sum()).append(tree)
        rows += [np.array(half) for half in halves]
    return rows


def _summarise(
    samples: Samples,
    trees: Trees,
    row_trees: np.ndarray,
    row_offsets: np.ndarray,
    max_length: int,
    rows_per_step: int,
    epochs: int,
) -> PlanSummary:
    totals = np.concatenate(([0], np.cumsum(trees.tokens[row_trees])))
    tokens = totals[row_offsets[1:]] - totals[row_offsets[:-1]]
    steps = np.maximum(tokens, 1).reshape(-1, rows_per_step)
    num_samples = np.diff(trees.offsets)
    return PlanSummary(
        samples=len(trees.samples),
        trees=len(trees.tokens),
        rows=len(tokens),
        steps=len(steps),
        epochs=epochs,
        waste=float(1 - tokens.sum() / (steps.max(1) * rows_per_step).sum()),
        filled=float(tokens.sum() / (len(tokens) * max_length)),
        sharing=float(samples.num_tokens.sum() / trees.tokens.sum()),
        samples_per_step=float(num_samples[row_trees].sum() / len(steps)),
        images_per_step=float(trees.images[row_trees].sum() / len(steps)),
    )


def _offsets(lengths: Iterable[int]) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(np.fromiter(lengths, dtype=np.int64))))


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The numbers start, start + 1, ... of every stretch, end to end."""
    before = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) + np.repeat(starts - before, lengths)
