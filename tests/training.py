"""Small data, a small checkpoint and a small configuration for tests of training."""

import json
import random
from pathlib import Path

import yaml
from PIL import Image

from recipes import train as training
from tests import tiny_text
from tests.tiny import randomize


WORDS = ["red", "blue", "green", "circle", "square", "left of", "the", "jumps", "dog", "fox", "three triangles"]
BASE = {
    "stage": "finetune",
    "model_name_or_path": "start",
    "data": ["data.jsonl"],
    "output_dir": "out",
    "max_length": 320,
    "dataloader_num_workers": 0,
    "optim": "sgd",
    "learning_rate": 0.02,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "max_grad_norm": 1e9,
    "weight_decay": 0.0,
    "num_train_epochs": 1,
    "use_cpu": True,
    "bf16": False,
    "logging_steps": 1,
    "save_strategy": "no",
    "disable_tqdm": True,
    "seed": 0,
}


def write_data(path: Path, trees: int, per_tree: int = 2, text_only: int = 0, seed: int = 0) -> None:
    """Questions about small pictures, `per_tree` about each, in shuffled order; trees of 130 to 150 tokens."""
    rng = random.Random(seed)
    rows = []
    for tree in range(trees):
        name = path.parent / f"{path.stem}-{tree}.png"
        Image.effect_noise((40, 30), 60 + tree).convert("RGB").save(name)
        rows += [(f"{tree}-{i}", [str(name)]) for i in range(per_tree)]
    rows += [(f"text-{i}", []) for i in range(text_only)]
    rng.shuffle(rows)
    with open(path, "w") as file:
        for name, images in rows:
            asked = [{"type": "image", "text": None}] * len(images) + [{"type": "text", "text": words(rng)}]
            answer = [{"type": "text", "text": words(rng)}]
            messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"id": name, "messages": messages, "images": images}) + "\n")


def words(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(3, 5)))


def write_data_and_start(folder: Path) -> None:
    write_data(folder / "data.jsonl", trees=6)
    write_start(folder / "start")


def write_start(out: Path, language: str = "llama", kind: str = "llama", text: dict | None = None, **choices) -> None:
    """A checkpoint with weights large enough that a wrong one shows; `text` changes the language model's config."""
    model, _ = tiny_text.checkpoint(out, language=language, kind=kind, **choices)
    randomize(model).save_pretrained(out)
    config = json.loads((out / "config.json").read_text())
    config["text_config"] |= text or {}
    (out / "config.json").write_text(json.dumps(config))


def write_yaml(path: Path, **changes) -> Path:
    path.write_text(yaml.safe_dump(BASE | changes))
    return path


def run(folder: Path, **changes):
    path = write_yaml(folder / "run.yaml", **changes)
    return training.train(*training.parser().parse_args_and_config(["--config", str(path)]))


def steps_of(log: list[dict]) -> list[dict]:
    return [entry for entry in log if "loss" in entry]
