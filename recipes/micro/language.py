"""The speaking half: a Llama that learns from nothing to answer about scenes that are told in words.

It reads text alone. Lessons go from look-ups in short scenes to everything that can be asked, where what is answered
worst is asked most. What it knows is measured on scenes of `validation`: whole answers, exact, as greedy generation
writes them.
"""

import random
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from data_generation.microworld.questions import ask
from data_generation.microworld.scene import make_scene
from data_generation.microworld.wordings import KINDS
from modeling_llava.attention import tree_mask

from .dialogues import UNLEARNED, Batch, Lesson, Row, add, answered, collate, draw_row, encode, start_row, tell
from .vocabulary import cell_words


GATE = 0.95  # of whole answers, for each kind
ROWS = 16  # of a batch
# Of a batch this small: at 2e-3 look-ups stay near chance. `DECAY`: the share of the steps in which the rate falls.
RATE, WARM_UP, DECAY = 1e-3, 60, 0.25
WINDOW = 50  # steps after which weights are renewed
EVERY = 100  # steps there is a checkpoint
CORE = ("colour", "shape", "where", "at")  # by which lessons are passed

LOOKING_UP = dict.fromkeys((*CORE, "size"), 1.0) | {"exist": 0.5, "drill": 2.0, "retelling": 4.0}
EVERYTHING = dict.fromkeys(KINDS, 1.0) | dict.fromkeys(("same", "remove", "more", "move"), 0.6)
EVERYTHING |= {"detail": 0.25, "brief": 0.25, "caption": 0.1, "drill": 2.0, "retelling": 0.4}
# What is learned last: to go through the objects in order, and what takes two look-ups.
HARDER = EVERYTHING | {"relation": 1.5, "same": 1.0, "move": 1.0, "brief": 1.0, "detail": 0.4, "drill": 1.0}
HARDEST = HARDER | {"brief": 1.5, "size": 1.3, "exist": 1.3, "retelling": 0.1}
FIRST_FORMS = {"cells": 0.3, "list": 0.1, "told": 0.45, "captions": 0.1, "shuffled": 0.05}
LAST_FORMS = {"cells": 0.3, "list": 0.05, "told": 0.55, "captions": 0.05, "shuffled": 0.05}
LESSONS = (
    Lesson(3, 0.85, 0.0, LOOKING_UP, {"cells": 0.4, "list": 0.6}),
    Lesson(4, 0.85, 0.0, LOOKING_UP, {"cells": 0.3, "list": 0.3, "told": 0.4}, longest=350),
    Lesson(4, 0.0, 0.12, EVERYTHING, FIRST_FORMS, passed=1.0, longest=1700),
    Lesson(4, 0.0, 0.15, HARDER, LAST_FORMS, passed=1.0, longest=1900),
    Lesson(4, 0.0, 0.15, HARDEST, LAST_FORMS, told=0.5),
)


@dataclass(slots=True)
class Progress:
    """Where a training is; with the state of model, optimizer and random numbers it goes on from there."""

    step: int = 0
    lesson: int = 0
    since: int = 0  # steps of this lesson
    weights: dict[str, float] = field(default_factory=lambda: dict(LESSONS[0].kinds))
    tokens: int = 0
    seconds: float = 0.0


def new_language_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=4,
        max_position_embeddings=512,
        initializer_range=0.06,
        tie_word_embeddings=True,
        **special,
    )
    model = LlamaForCausalLM(config)
    embeddings = model.get_input_embeddings().weight.data
    for word, parts in cell_words().items():
        # A word for a cell begins as the sum of what it is made of: there are hundreds, and they are alike.
        (whole,), places = encode(f" {word}", tokenizer), [encode(f" {part}", tokenizer)[0] for part in parts]
        embeddings[whole] = embeddings[places].sum(0)
    return model


def answer_logits(model: LlamaForCausalLM, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits and labels of the tokens to be learned, and where they are, (rows, length - 1)."""
    mask = tree_mask(model.config, batch.end, batch.position_ids, model.dtype)
    hidden = model.model(
        input_ids=batch.input_ids, attention_mask=mask, position_ids=batch.position_ids, use_cache=False
    ).last_hidden_state
    labels = batch.labels[:, 1:]
    where = labels != UNLEARNED
    return model.lm_head(hidden[:, :-1][where]), labels[where], where


def whole_answers(batch: Batch, logits: torch.Tensor, labels: torch.Tensor, where: torch.Tensor) -> list[bool]:
    """For each answer of the batch, whether every token of it is the likeliest one."""
    right = torch.ones_like(where)
    right[where] = logits.argmax(-1) == labels
    rows = right.tolist()
    return [all(rows[number][start - 1 : end - 1]) for number, _, start, end in batch.answers]


def train_language(
    tokenizer: PreTrainedTokenizerFast,
    steps: int,
    seed: int,
    log,
    folder: Path | None = None,
    model: LlamaForCausalLM | None = None,
) -> LlamaForCausalLM:
    """
    Args:
        folder: for a checkpoint every `EVERY` steps, from which a later call goes on.
        model: one that has learned already, for which the last lesson is left; None for a new one.
    """
    torch.manual_seed(seed)
    rng, progress = random.Random(f"language {seed}"), Progress()
    if model is None:
        model = new_language_model(tokenizer)
    else:
        progress = Progress(lesson=len(LESSONS) - 1, weights=dict(LESSONS[-1].kinds))
    optimizer = new_optimizer(model)
    saved = folder / "training.pt" if folder else None
    if saved and saved.exists():
        state = torch.load(saved, weights_only=False)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        rng.setstate(state["rng"])
        progress = state["progress"]
        log(f"language, goes on at step {progress.step}")

    started, losses, found = time.perf_counter() - progress.seconds, 0.0, defaultdict(list)
    while progress.step < steps:
        progress.step += 1
        progress.since += 1
        rate = RATE * min(1.0, progress.step / WARM_UP) * max(0.02, min(1.0, (1 - progress.step / steps) / DECAY))
        for group in optimizer.param_groups:
            group["lr"] = rate
        rows = [draw_row(LESSONS[progress.lesson], progress.weights, tokenizer, rng) for _ in range(ROWS)]
        batch = collate(rows, tokenizer)
        logits, labels, where = answer_logits(model, batch)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

        losses += loss.item()
        progress.tokens += sum(len(row) for row in rows)
        progress.seconds = time.perf_counter() - started
        if progress.step % 5 == 0:
            rights = whole_answers(batch, logits, labels, where)
            for (_, kind, _, _), is_right in zip(batch.answers, rights, strict=True):
                found[kind].append(is_right)
        if progress.step % WINDOW == 0:
            shares = {kind: sum(right) / len(right) for kind, right in found.items()}
            speed = progress.tokens / progress.seconds
            log(
                f"language, step {progress.step} of {steps}: lesson {progress.lesson + 1}, "
                f"loss {losses / WINDOW:.3f}, {speed:.0f} tokens/s, {progress.seconds:.0f} s; {in_words(shares)}"
            )
            losses, found = 0.0, defaultdict(list)
            choose_next(progress, shares)
        if folder and (progress.step % EVERY == 0 or progress.step == steps):
            save_training(folder, model, optimizer, rng, progress)
    return model


def new_optimizer(model: LlamaForCausalLM) -> torch.optim.AdamW:
    decayed, free = [], []
    for name, parameter in model.named_parameters():
        (free if parameter.ndim == 1 or "embed" in name else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), fused=True)


def choose_next(progress: Progress, shares: dict[str, float]) -> None:
    """The next lesson where this one is passed; of everything, more of what is answered worst."""
    lesson, kinds = LESSONS[progress.lesson], LESSONS[progress.lesson].kinds
    is_passed = sum(shares.get(kind, 0.0) for kind in CORE) / len(CORE) > lesson.passed
    if lesson is not LESSONS[-1] and progress.since >= WINDOW and (is_passed or progress.since >= lesson.longest):
        progress.lesson, progress.since = progress.lesson + 1, 0
        progress.weights = dict(LESSONS[progress.lesson].kinds)
    elif kinds.keys() >= set(KINDS):
        progress.weights = {kind: w * (1.12 - shares.get(kind, 0.3)) for kind, w in kinds.items()}


def save_training(folder: Path, model, optimizer, rng: random.Random, progress: Progress) -> None:
    model.save_pretrained(folder)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": rng.getstate()}
    new = folder / "training.pt.new"
    torch.save(state | {"progress": replace(progress)}, new)
    new.replace(folder / "training.pt")


def in_words(shares: dict[str, float]) -> str:
    return " ".join(f"{kind} {share:.2f}" for kind, share in sorted(shares.items()))


@torch.no_grad()
def measure(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int = 160, form: str = "told"
) -> dict[str, float]:
    """Shares of whole answers that are exact, kind by kind, of `count` questions each about scenes of `validation`."""
    rng = random.Random(f"measure {form}")
    left = dict.fromkeys(KINDS, count)
    right = dict.fromkeys(KINDS, 0)
    number = 0
    while left:
        rows: list[Row] = []
        while len(rows) < ROWS and left:
            things = make_scene("validation", number).things
            number += 1
            row = start_row(tell(things, form, rng), tokenizer)
            for kind in list(left):
                question = ask(things, kind, rng)
                if question is None:
                    continue
                add(
                    row,
                    answered(kind, question.text, question.answer),
                    tokenizer,
                    model.config.max_position_embeddings,
                )
                left[kind] -= 1
                if not left[kind]:
                    del left[kind]
            rows.append(row)
        batch = collate(rows, tokenizer)
        rights = whole_answers(batch, *answer_logits(model, batch))
        for (_, kind, _, _), is_right in zip(batch.answers, rights, strict=True):
            right[kind] += is_right
    return {kind: number_right / count for kind, number_right in right.items()}
