"""Watching a run learn: its answers to held-out questions, with their pictures, on one HTML page."""

import html
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from data_generation.page import document
from data_generation.pictures import data_url
from data_generation.replacing import write_atomically
from processing import LlavaProcessor, open_image
from processing.conversation import count_images, text_of
from processing.rows import own_bytes, picture_column, read_pictures
from recipes.training.train_config import TrainConfig
from recipes.training.train_rows import Encoded


PAGE, RECORD = "samples.html", "samples.json"
MAX_NEW_TOKENS = 128
NEWEST = 4  # answers to a question that are seen at once


class SamplesPage(TrainerCallback):
    """Every process generates, since parts of the model may lie on each; the first one writes."""

    def __init__(self, held_out: Encoded, processor: LlavaProcessor, count: int):
        self.processor = processor
        self.samples = choose(held_out, count)
        self.evaluations: list[dict[str, Any]] = []

    def on_train_begin(self, args: TrainConfig, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        record = Path(args.output_dir, RECORD)
        if record.is_file():  # of the run that this one continues
            found = json.loads(record.read_text())
            self.evaluations = [entry for entry in found if entry["step"] <= state.global_step]

    def on_evaluate(
        self,
        args: TrainConfig,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        metrics: dict,
        **kwargs,
    ) -> None:
        answers = self.answer(model, args)
        entry = {"step": state.global_step, "loss": metrics["eval_loss"], "answers": answers}
        self.evaluations = [old for old in self.evaluations if old["step"] != entry["step"]] + [entry]
        if state.is_world_process_zero:
            write_atomically(Path(args.output_dir) / RECORD, json.dumps(self.evaluations))
            learned = [(log["step"], log["loss"]) for log in state.log_history if "loss" in log]
            write_atomically(Path(args.output_dir) / PAGE, page(self.samples, self.evaluations, learned, args))

    @torch.no_grad()
    def answer(self, model: nn.Module, args: TrainConfig) -> list[str]:
        answers = []
        was_training = model.training
        model.eval()
        dtype = torch.bfloat16 if args.bf16 else torch.float16
        with torch.autocast(args.device.type, dtype, enabled=args.bf16 or args.fp16):
            for sample in self.samples:
                inputs = self.processor.encode(
                    sample["asked"], sample["images"], name=f"conversation `{sample['id']}`"
                )
                length = inputs["input_ids"].shape[1]
                ids = model.generate(**inputs.to(args.device), max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
                answers.append(self.processor.decode(ids[0, length:], skip_special_tokens=True).strip())
        model.train(was_training)
        return answers


def choose(held_out: Encoded, count: int) -> list[dict[str, Any]]:
    """Conversations from all over the data, up to their first answer."""
    usable = held_out.usable
    count = min(count, len(usable))
    chosen = [usable[i * len(usable) // count] for i in range(count)]
    texts, pictures = held_out.rows.select_columns(["messages"]), picture_column(held_out.rows)
    samples = []
    for number in chosen:
        messages = texts[number]["messages"]
        first = next(i for i, message in enumerate(messages) if message["role"] == "assistant")
        asked = messages[:first]
        images = (read_pictures(pictures, [number])[0] or [])[: count_images(asked)]
        images = list(map(own_bytes, images))
        name = held_out.encoded[number]["id"]
        samples.append({"id": name, "asked": asked, "answer": text_of(messages[first]), "images": images})
    return samples


STYLE = """
.picture img { min-width: 7rem; margin-bottom: .5rem; }
td:first-child { color: var(--faint); font-variant-numeric: tabular-nums; width: 3rem; }
"""


def page(samples: list[dict], evaluations: list[dict], learned: list[tuple[int, float]], args: TrainConfig) -> str:
    """All of it in one file, pictures included."""
    last = evaluations[-1]
    held_out = [(entry["step"], entry["loss"]) for entry in evaluations]
    title = f"{args.stage}: {args.output_dir}"
    shown = "\n".join(
        article(sample, [(entry["step"], entry["answers"][i]) for entry in reversed(evaluations)])
        for i, sample in enumerate(samples)
    )
    body = f"""<h1>{html.escape(title)}</h1>
<p>Step {last["step"]}: loss on held-out conversations {last["loss"]:.4f}. Answers are greedy, the newest on top.</p>
{chart(learned, held_out)}
{shown}"""
    return document(title, body, STYLE)


def article(sample: dict, answers: list[tuple[int, str]]) -> str:
    pictures = "".join(f'<img src="{data_url(open_image(image))}" alt="">' for image in sample["images"])
    asked = "\n".join(f"{message['role']}: {text_of(message)}" for message in sample["asked"])
    rows = [f"<tr><td>{step}</td><td>{html.escape(answer)}</td></tr>" for step, answer in answers]
    older = f"<details><summary>older</summary><table>{''.join(rows[NEWEST:])}</table></details>"
    return f"""<article><div class="picture">{pictures}</div><div class="words">
<p><b>{html.escape(asked)}</b></p>
<p class="faint">{html.escape(sample["id"])}, in the data: {html.escape(sample["answer"])}</p>
<table>{"".join(rows[:NEWEST])}</table>{older if rows[NEWEST:] else ""}</div></article>"""


def chart(learned: list[tuple[int, float]], held_out: list[tuple[int, float]]) -> str:
    """Both losses by step, as SVG."""
    width, height, left, bottom = 720, 240, 48, 24
    both = [*learned, *held_out]
    last, top = max(step for step, _ in both), max(loss for _, loss in both) * 1.05
    bottom_loss = min(loss for _, loss in both) * 0.95

    def place(step: int, loss: float) -> str:
        x = left + (width - left - 8) * step / max(last, 1)
        y = (height - bottom) * (1 - (loss - bottom_loss) / max(top - bottom_loss, 1e-9))
        return f"{x:.1f},{y:.1f}"

    marks = "".join(
        '<circle r="4" fill="var(--blue)" cx="{}" cy="{}"/>'.format(*place(*point).split(",")) for point in held_out
    )
    return f"""<svg viewBox="0 0 {width} {height}" width="100%" role="img" aria-label="loss by step">
<polyline fill="none" stroke="var(--faint)" points="{" ".join(place(*p) for p in learned)}"/>
<polyline fill="none" stroke="var(--blue)" stroke-width="2" points="{" ".join(place(*p) for p in held_out)}"/>{marks}
<line x1="{left}" x2="{width - 8}" y1="{height - bottom}" y2="{height - bottom}" stroke="var(--line)"/>
<g fill="var(--faint)" font-size="12"><text x="0" y="12">{top:.2f}</text>
<text x="0" y="{height - bottom}">{bottom_loss:.2f}</text>
<text x="{width - 8}" y="{height - 6}" text-anchor="end">step {last}</text>
<text x="{left + 8}" y="14">grey: training{"; blue: held out" if held_out else ""}</text></g></svg>"""
