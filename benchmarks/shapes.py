"""The whole method in miniature, on two CPU cores and without a network: build, two stages, answers, stock loading.

    make quickstart

Drawn shapes stand for photographs and two small halves that have learned nothing stand for CLIP and Vicuna, so the
second stage has to teach the language too. Everything else is what a full-size run does, through the same code.
"""

import argparse
import json
import random
import shutil
import time
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from recipes import build
from recipes import train as training


SIDE, PATCH = 32, 8
COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "triangle")
GROUNDS = ("white", "grey", "black")
QUESTIONS = {"What colour is the shape?": "colour", "What colour is the ground?": "ground"}
RECIPES = Path(__file__).parent / "micro"


def draw(scene: dict, rng: random.Random) -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), scene["ground"])
    colour, shape = scene["colour"], scene["shape"]
    size = rng.uniform(0.45, 0.7) * SIDE
    x, y = rng.uniform(0, SIDE - size), rng.uniform(0, SIDE - size)
    box = (x, y, x + size, y + size)
    pen = ImageDraw.Draw(image)
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    else:
        pen.polygon([(x, y + size), (x + size, y + size), (x + size / 2, y)], fill=colour)
    return image


def write_data(folder: Path, num_images: int, seed: int) -> list[dict]:
    """Pictures, captions for stage 1, questions for stage 2; returns what each picture shows."""
    rng = random.Random(seed)
    (folder / "images").mkdir(parents=True)
    scenes = []
    with open(folder / "captions.jsonl", "w") as captions, open(folder / "questions.jsonl", "w") as questions:
        for number in range(num_images):
            scene = {"colour": rng.choice(COLOURS), "shape": rng.choice(SHAPES), "ground": rng.choice(GROUNDS)}
            scene["image"] = f"{number:05}.png"
            draw(scene, rng).save(folder / "images" / scene["image"])
            scenes.append(scene)
            row = {"id": f"caption-{number}", "images": [scene["image"]]}
            caption = f"A {scene['colour']} {scene['shape']} on a {scene['ground']} ground."
            captions.write(json.dumps(row | {"messages": conversation("Describe the picture.", caption)}) + "\n")
            question = rng.choice(list(QUESTIONS))
            row["id"] = f"question-{number}"
            answer = scene[QUESTIONS[question]].capitalize() + "."
            questions.write(json.dumps(row | {"messages": conversation(question, answer)}) + "\n")
    return scenes


def conversation(question: str, answer: str) -> list[dict]:
    asked = [{"type": "image"}, {"type": "text", "text": question}]
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]


def write_halves(folder: Path):
    """A vision tower and a language model in the layout of the Hub, with initial weights."""
    tower = CLIPVisionConfig(
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        image_size=SIDE,
        patch_size=PATCH,
    )
    CLIPVisionModel(tower).save_pretrained(folder / "vision")
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(
        folder / "vision"
    )

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    answers = [word.capitalize() for word in COLOURS + GROUNDS]
    words = [*QUESTIONS, *COLOURS, *SHAPES, *GROUNDS, *answers, "USER: ASSISTANT: A on a ground."]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, initial_alphabet=alphabet, special_tokens=["<s>", "</s>", "<pad>"], show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(words)] * 20, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.save_pretrained(folder / "language")
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=6,
        intermediate_size=256,
        max_position_embeddings=512,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "language")


@torch.no_grad()
def ask(checkpoint: Path, pictures: list[tuple[Path, str]]) -> list[str]:
    """Answers of stock transformers: neither our model nor our processor is used here."""
    processor = AutoProcessor.from_pretrained(checkpoint)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint).eval()
    chats = [
        [{"role": "user", "content": [{"type": "image", "path": str(path)}, {"type": "text", "text": question}]}]
        for path, question in pictures
    ]
    inputs = processor.apply_chat_template(
        chats,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        processor_kwargs={"padding": True},
    )
    ids = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    return [
        text.strip()
        for text in processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    ]


def draw_answers(rows: list[tuple[Path, str, str, bool]], out: Path):
    """A sheet of held-out pictures with question and answer, to look at."""
    scale, font = 5, ImageFont.load_default(size=15)
    tile = SIDE * scale
    sheet = Image.new("RGB", (4 * (tile + 150), (len(rows) + 3) // 4 * (tile + 20)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (path, question, answer, right) in enumerate(rows):
        x, y = number % 4 * (tile + 150), number // 4 * (tile + 20)
        with Image.open(path) as picture:
            sheet.paste(picture.resize((tile, tile), Image.Resampling.LANCZOS), (x, y))
        asked = question.replace(" the ", "\nthe ").replace(" colour ", "\ncolour ")
        pen.text(
            (x + tile + 10, y + 20), f"{asked}\n\n{answer}", fill="darkgreen" if right else "firebrick", font=font
        )
    sheet.save(out)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m recipes.quickstart", description="The whole method in miniature.")
    parser.add_argument("--num-images", type=int, default=1200, help="pictures to draw and learn from (%(default)s)")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    folder, started = Path("outputs/quickstart"), time.time()
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(0)
    write_data(folder, args.num_images, seed=0)
    held_out = write_data(folder / "held_out", 64, seed=1)
    write_halves(folder)
    halves = ["--vision", f"{folder}/vision", "--language", f"{folder}/language"]
    build.main([*halves, "--projector", "linear", "--out", f"{folder}/start"])
    for stage in ("pretrain", "finetune"):
        training.main(["--config", str(RECIPES / f"{stage}.yaml")])

    asked = [(scene, question, kind) for scene in held_out for question, kind in QUESTIONS.items()]
    pictures = [(folder / "held_out/images" / scene["image"], question) for scene, question, _ in asked]
    answers = ask(folder / "stage2", pictures)
    right = [answer == scene[kind].capitalize() + "." for answer, (scene, _, kind) in zip(answers, asked, strict=True)]
    rows = [
        (path, question, answer, ok) for (path, question), answer, ok in zip(pictures, answers, right, strict=True)
    ]
    draw_answers(rows[:16], folder / "answers.png")
    print(
        f"\n{sum(right)} of {len(right)} questions about {len(held_out)} unseen pictures answered right by stock "
        f"transformers (guessing: {(1 / len(COLOURS) + 1 / len(GROUNDS)) / 2:.0%})\n"
        f"checkpoint {folder}/stage2, pictures {folder}/answers.png, {time.time() - started:.0f} s"
    )


if __name__ == "__main__":
    main()
