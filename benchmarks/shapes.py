"""Drawn shapes and two small halves that have learned nothing: data and models for measurements and tests."""

import json
import random
from pathlib import Path

from PIL import Image, ImageDraw
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    PreTrainedTokenizerFast,
)


SIDE, PATCH = 32, 8
COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "triangle")
GROUNDS = ("white", "grey", "black")
QUESTIONS = {"What colour is the shape?": "colour", "What colour is the ground?": "ground"}


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
