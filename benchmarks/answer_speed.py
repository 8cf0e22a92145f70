"""`llava answer`'s batches beside a loop over the questions with the stock classes, on the same weights, in turn.

    python -m benchmarks.answer_speed --out benchmarks/results

The stock side is what a script of a page does: for each question `processor.apply_chat_template` with its picture, and
`model.generate`, one at a time. Ours pads questions of about one length to batches, and looks at each picture once. In
every round one answers first, in the next the other; both have as many tokens to say, and what they say is compared.
Where others use the machine too, the ratio of CPU time moves less than that of the clock.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig, PreTrainedTokenizerFast
from transformers import LlavaForConditionalGeneration as StockLlava
from transformers import LlavaProcessor as StockProcessor

from benchmarks.bars import draw_bars
from benchmarks.forward import circumstances
from modeling_llava import LlavaConfig, LlavaForConditionalGeneration
from processing import LlavaProcessor, load_template
from recipes.measuring.answering import Features, answer_batch, plan_batches
from recipes.measuring.questions import Question, read_questions


GOAL, GOAL_AT = 3.0, 16
SENTENCE = "what is on the table beside a red cup and how many people stand near the old bridge in this picture"
# Side and patch of a picture, tower width and layers, language width, feed-forward and layers.
SHAPES = {
    "tiny": (28, 14, 32, 2, 32, 64, 2),
    "cpu": (112, 14, 256, 8, 768, 2048, 12),  # 85 M parameters in the language model, 64 image tokens
}


def build(shape: str, folder: Path) -> None:
    """A checkpoint with random weights, whose tokenizer knows the words of `SENTENCE` and bytes."""
    side, patch, tower, tower_layers, width, inner, layers = SHAPES[shape]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>", "<image>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    # With the words of the template, as every real tokenizer has them: a letter a token would make prompts long.
    tokenizer.train_from_iterator([SENTENCE, load_template("vicuna_v1")] * 20, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    tokens = (side // patch) ** 2
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=tower,
            intermediate_size=4 * tower,
            num_hidden_layers=tower_layers,
            num_attention_heads=4,
            image_size=side,
            patch_size=patch,
        ),
        text_config=LlamaConfig(
            vocab_size=len(fast),  # all of them can be said
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=width // 16 if width < 64 else width // 64,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
            initializer_range=0.1,  # so that different questions have different answers
        ),
        image_token_index=3,
        image_seq_length=tokens,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    model.save_pretrained(folder)
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}),
        tokenizer=fast,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=load_template("vicuna_v1"),
    ).save_pretrained(folder)


def write_questions(folder: Path, questions: int, pictures: int) -> Path:
    """As many about each picture, of 4 to 24 words."""
    pick = random.Random(0)
    for number in range(pictures):
        Image.effect_noise((320, 240), 20 + 5 * number).convert("RGB").save(folder / f"{number}.jpg", quality=90)
    path = folder / "questions.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for number in range(questions):
            text = " ".join(pick.choices(SENTENCE.split(), k=pick.randint(4, 24)))
            file.write(json.dumps({"question_id": number, "text": text, "image": f"{number % pictures}.jpg"}) + "\n")
    return path


def answer_stock(model: StockLlava, processor: StockProcessor, questions: list[Question], **options: Any) -> list[str]:
    found = []
    for question in questions:
        chat = [dict(message) for message in question.chat]
        picture = {"type": "image", "path": question.pictures[0].source}
        chat[-1]["content"] = [picture, *(part for part in chat[-1]["content"] if part["type"] == "text")]
        inputs = processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        said = model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]
        found.append(processor.decode(said, skip_special_tokens=True).strip())
    return found


def answer_ours(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    questions: list[Question],
    batch_size: int,
    **options: Any,
) -> list[str]:
    texts = [processor.encode_text(question.chat).input_ids for question in questions]
    features, found = Features(model, processor), [""] * len(questions)
    for batch in plan_batches(texts, [question.pictures for question in questions], batch_size):
        pictures = [picture for number in batch for picture in questions[number].pictures]
        answers = answer_batch(features, [texts[number] for number in batch], pictures, **options)
        for number, one in zip(batch, answers, strict=True):
            found[number] = one.text
    return found


def measure(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    build(arguments.shape, folder)
    questions = read_questions(write_questions(folder, arguments.questions, arguments.pictures), str(folder))
    ours, stock = (kind.from_pretrained(folder).eval() for kind in (LlavaForConditionalGeneration, StockLlava))
    own, theirs = (kind.from_pretrained(folder) for kind in (LlavaProcessor, StockProcessor))
    options = {"do_sample": False, "min_new_tokens": arguments.tokens, "max_new_tokens": arguments.tokens}
    sides = {"stock": lambda: answer_stock(stock, theirs, questions, **options)}
    for size in arguments.batch_sizes:
        sides[f"ours, {size}"] = lambda size=size: answer_ours(ours, own, questions, size, **options)
    answer_stock(stock, theirs, questions[:2], **options)  # warms up
    answer_ours(ours, own, questions[:4], 4, **options)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in sides}
    said: dict[str, list[str]] = {}
    for number in range(arguments.rounds):
        for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
            began, cpu_began = time.perf_counter(), time.process_time()
            said[name] = sides[name]()
            seconds[name].append(time.perf_counter() - began)
            cpu_seconds[name].append(time.process_time() - cpu_began)
            shown = f"{seconds[name][-1]:.1f} s, {cpu_seconds[name][-1]:.1f} s of CPU"
            print(f"  round {number + 1}, {name}: {shown}", flush=True)
    return [
        {
            "batch_size": size,
            "seconds": seconds[f"ours, {size}"],
            "stock_seconds": seconds["stock"],
            "ratios": [a / b for a, b in zip(seconds["stock"], seconds[f"ours, {size}"], strict=True)],
            "cpu_ratios": [a / b for a, b in zip(cpu_seconds["stock"], cpu_seconds[f"ours, {size}"], strict=True)],
            "equal_answers": sum(a == b for a, b in zip(said["stock"], said[f"ours, {size}"], strict=True)),
            "different_answers_of_stock": len(set(said["stock"])),
            "questions": len(questions),
            "goal": GOAL if size == GOAL_AT else None,
        }
        for size in arguments.batch_sizes
    ]


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        "| batch | ours s | stock s | stock/ours (least–greatest) | CPU time | goal | equal answers |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in results:
        spread, ours, stock = one["ratios"], one["seconds"], one["stock_seconds"]
        cells = [f"{one['batch_size']}", f"{statistics.median(ours):.1f}", f"{statistics.median(stock):.1f}"]
        cells.append(f"{statistics.median(spread):.2f} ({min(spread):.2f}–{max(spread):.2f})")
        cells += [
            f"{statistics.median(one['cpu_ratios']):.2f}",
            f"{one['goal'] or ''}",
            f"{one['equal_answers']} of {one['questions']}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(results: list[dict[str, Any]], facts: dict[str, Any], path: Path) -> None:
    given = facts["arguments"]
    title = f"{given['questions']} questions about {given['pictures']} pictures, {given['tokens']} tokens each: "
    charts = []
    for words, key in (("CPU time", "cpu_ratios"), ("time by the clock", "ratios")):
        bars = [(f"batches of {one['batch_size']}", statistics.median(one[key]), one["goal"]) for one in results]
        charts.append((f"{title}{words}", bars))
    where = f"{facts['hardware']}, 1 thread, {facts['date'][:10]}"
    draw_bars(charts, where, path, one="a loop with stock classes")


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="cpu")
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32, help="of every answer")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, help="a folder for the JSON and the plot")
    arguments = parser.parse_args(words)

    torch.set_num_threads(1)
    facts = circumstances(argparse.Namespace(device="cpu", **vars(arguments)))
    print(json.dumps(facts))
    with tempfile.TemporaryDirectory() as folder:
        results = measure(arguments, Path(folder))
    print(table(results))
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        written = json.dumps(facts | {"results": results}, indent=2)
        (arguments.out / "answer_speed.json").write_text(written + "\n", encoding="utf-8")
        plot(results, facts, arguments.out / "answer_speed.png")


if __name__ == "__main__":
    main()
