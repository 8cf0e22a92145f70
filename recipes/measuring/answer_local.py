"""`llava answer` with a checkpoint: batches dealt to all processes, each answer on disk before the next batch.

Which questions are asked together does not depend on the number of processes or on what was answered before.
"""

import argparse
import hashlib
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from tqdm import tqdm
from transformers import GenerationConfig

from modeling_llava import LlavaForConditionalGeneration
from processing import LlavaProcessor
from recipes.building.parts import load_llava, load_processor
from recipes.measuring.answer_journal import (
    LEDGER,
    Part,
    alone_at,
    begin,
    delete_journal,
    is_finished,
    journal_of,
    read_journal,
    write_answers,
)
from recipes.measuring.answering import Answer, Features, answer_batch, plan_batches
from recipes.measuring.generation_flags import chosen_generation, given_fields, written
from recipes.measuring.questions import Question, hash_of
from recipes.merge import base_of, merge


LONGEST_RUN = timedelta(days=30)  # that processes wait for each other; they are not done at the same time
# What decides the answers of a checkpoint, beside its generation settings, which are written down by themselves.
FILES = (
    "*.safetensors",
    "config.json",
    "adapter_config.json",
    "chat_template.jinja",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer.model",
)
SAMPLES, SAMPLE = 256, 1 << 16  # places of a large file that are looked at, and bytes at each


def answer_locally(
    args: argparse.Namespace,
    read: Callable[[], list[Question]],
    lines_of: Callable[[list[Question], dict[int, dict], dict], list[dict]],
) -> None:
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=LONGEST_RUN)
    with state.main_process_first():  # the others find what it has put into the cache of `datasets`
        questions = read()
    with alone_at(args.out, state.is_main_process):
        _answer(args, questions, state, lines_of)
    if state.is_main_process:
        delete_journal(args.out)


def _answer(
    args: argparse.Namespace, questions: list[Question], state: PartialState, lines_of: Callable[..., list[dict]]
) -> None:
    with state.main_process_first():
        model, processor = load(args.model, args.dtype)
    model = model.to(state.device).eval()
    given = given_fields(args)
    generation = chosen_generation(model.generation_config, given, processor.tokenizer.pad_token_id)
    run: dict[str, Any] = {
        "questions": hash_of(questions),
        "checkpoint": fingerprint(args.model, model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "generation": written(generation),
    }
    if generation.do_sample:  # a draw depends on who is drawn for together
        run |= {"seed": args.seed, "batch_size": args.batch_size}
    texts = encode(questions, processor, model, is_shown=state.is_main_process)
    if is_finished(args.out, run):
        if state.is_main_process:
            print(f"{args.out}: its {len(questions):,} answers are there already")
        return
    done = set(read_journal(args.out))
    if state.is_main_process:
        begin(args.out, run, stored=bool(done) or (journal_of(args.out) / LEDGER).exists())
    state.wait_for_everyone()  # nobody writes before all have read

    batches = plan_batches(texts, [question.pictures for question in questions], args.batch_size)
    batches = [left for batch in batches if (left := [number for number in batch if number not in done])]
    mine = batches[state.process_index :: state.num_processes]
    started = time.monotonic()
    _answer_batches(mine, questions, texts, Features(model, processor), generation, args, state)
    state.wait_for_everyone()
    if state.is_main_process:
        answers = read_journal(args.out)
        write_answers(args.out, lines_of(questions, answers, run))
        seconds = time.monotonic() - started
        print(summary(args.out, answers, len(done), seconds, generation.max_new_tokens))


def _answer_batches(
    batches: list[list[int]],
    questions: list[Question],
    texts: list[list[int]],
    features: Features,
    generation: GenerationConfig,
    args: argparse.Namespace,
    state: PartialState,
) -> None:
    part = Part(args.out, state.process_index)
    name = "answering" if state.num_processes == 1 else f"answering, process 1 of {state.num_processes}"
    with tqdm(total=sum(map(len, batches)), desc=name, disable=not state.is_main_process, unit="") as bar:
        for batch in batches:
            if generation.do_sample:
                torch.manual_seed(seed_of(args.seed, batch))
            pictures = [picture for number in batch for picture in questions[number].pictures]
            try:
                asked = [texts[number] for number in batch]
                found = answer_batch(features, asked, pictures, generation_config=generation)
            except torch.OutOfMemoryError as error:
                raise ValueError(
                    f"The device has no memory for {len(batch)} questions at once. Nothing that was answered is lost: "
                    f"the same command with a --batch-size below {args.batch_size} goes on."
                ) from error
            part.add(entry(number, one) for number, one in zip(batch, found, strict=True))
            bar.update(len(batch))
    part.close()


def entry(number: int, one: Answer) -> dict[str, Any]:
    return {"number": number, "text": one.text, "finish_reason": one.finish_reason}


def seed_of(seed: int, batch: list[int]) -> int:
    digest = hashlib.blake2b(f"{seed} {batch}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


def summary(out: Path, answers: dict[int, dict], were_there: int, seconds: float, most: int | None) -> str:
    new = len(answers) - were_there
    cut = sum(one["finish_reason"] == "length" for one in answers.values())
    before = f" ({were_there:,} were there)" if were_there else ""
    speed = f", {new / seconds:,.1f} answers/s" if new else ""
    limit = f" at {most:,} tokens" if most else ""
    return f"{out}: {len(answers):,} answers{before}, {cut:,} cut{limit}, {seconds:,.1f} s{speed}"


def load(name: str, dtype: str) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A checkpoint of a folder or the Hub, or a folder with an adapter, folded into its base."""
    is_adapter = (Path(name) / "adapter_config.json").is_file()
    model = merge(Path(name), dtype=dtype) if is_adapter else load_llava(name, dtype=dtype)
    return model, load_processor(name)


def fingerprint(name: str, model: LlavaForConditionalGeneration) -> str:
    """Of a folder, a hash of its files, large ones by samples; of a checkpoint of the Hub its commit."""
    folder = Path(name)
    if not folder.is_dir():
        return str(model.config._commit_hash)
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(path for pattern in FILES for path in folder.glob(pattern)):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with open(path, "rb") as file:
            if size <= SAMPLES * SAMPLE:
                digest.update(file.read())
                continue
            for number in range(SAMPLES):
                file.seek((size - SAMPLE) * number // (SAMPLES - 1))
                digest.update(file.read(SAMPLE))
    if (folder / "adapter_config.json").is_file():
        digest.update(fingerprint(base_of(folder), model).encode())
    return digest.hexdigest()


def encode(
    questions: list[Question], processor: LlavaProcessor, model: LlavaForConditionalGeneration, is_shown: bool
) -> list[list[int]]:
    holds = model.config.get_text_config().max_position_embeddings
    found = []
    for question in tqdm(questions, desc="encoding", disable=not is_shown, unit="", delay=2):
        ids = processor.encode_text(question.chat, name=f"question `{question.id}`").input_ids
        if len(ids) >= holds:
            raise ValueError(
                f"Question `{question.id}` has {len(ids):,} tokens, and the model sees {holds:,} with the answer. "
                "Shorten it, or take it out."
            )
        found.append(ids)
    return found
