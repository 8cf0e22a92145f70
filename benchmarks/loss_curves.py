"""The same small model trained as trees and as padded rows, over several seeds: do both learn alike?

    python -m benchmarks.loss_curves --out benchmarks/results

Both stages on drawn shapes, with three conversations about each picture. A seed has its own start and order, the same
start for all ways. Steps hold about as many conversations. A step of trees holds all those about a picture, a padded
one any; `padded, same steps` holds what the trees did, one to a row: what it does not share with the trees is packing,
what it does not share with padded rows is grouping.
"""

import argparse
import json
import random
import statistics
import tempfile
from pathlib import Path
from unittest import mock

import datasets
import numpy as np
import torch
from transformers.utils import logging

from benchmarks import shapes
from benchmarks.curves import draw_curves
from benchmarks.forward import circumstances
from processing.collator import TreeCollator
from processing.encoding import IGNORE, expand_images
from processing.rows import Tree
from recipes import build
from recipes import train as training


WAYS = {
    "trees": {"packing": True, "max_length": 1024, "per_device_train_batch_size": 2},
    "padded": {"packing": False, "max_length": 1024},
    "padded, same steps": {"packing": True, "max_length": 1024, "per_device_train_batch_size": 2},
}
COMMON = {
    "learning_rate": 1e-3,
    "num_train_epochs": 4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.03,
    "use_cpu": True,
    "bf16": False,
    "dataloader_num_workers": 0,
    "save_strategy": "no",
    "disable_tqdm": True,
    "logging_steps": 5,
    "sample_answers": 1,
}


class ApartCollator(TreeCollator):
    """The conversations of rows of trees, each in a padded row of its own, with its own copy of the pictures."""

    def __call__(self, rows: list[dict[str, list[Tree]]]) -> dict[str, torch.Tensor]:
        image, tokens_per_image = self.processor.image_token_id, self.processor.num_image_tokens
        trees = [tree for row in rows for tree in row["trees"]]
        samples = [
            expand_images(ids, answers, image, tokens_per_image)
            for tree in trees
            for ids, answers in zip(tree.input_ids, tree.answers, strict=True)
        ]
        shape = len(samples), max(len(ids) for ids, _ in samples)
        batch = {"input_ids": np.full(shape, self.processor.tokenizer.pad_token_id), "labels": np.full(shape, IGNORE)}
        batch["attention_mask"] = np.zeros(shape, dtype=np.int64)
        for i, (ids, answers) in enumerate(samples):
            batch["input_ids"][i, : len(ids)], batch["attention_mask"][i, : len(ids)] = ids, 1
            for start, end in answers:
                batch["labels"][i, start:end] = ids[start:end]
        tensors = {name: torch.from_numpy(values) for name, values in batch.items()}
        pictures = [picture for tree in trees for _ in tree.ids for picture in tree.images]
        return tensors | ({"pixel_values": self.processor.pixel_values(pictures)} if pictures else {})


def write_conversations(folder: Path, num_images: int, seed: int) -> None:
    """A caption and both questions about every picture, shuffled."""
    rows = []
    for number, scene in enumerate(shapes.write_data(folder, num_images, seed)):
        caption = f"A {scene['colour']} {scene['shape']} on a {scene['ground']} ground."
        asked = {"Describe the picture.": caption}
        asked |= {question: scene[kind].capitalize() + "." for question, kind in shapes.QUESTIONS.items()}
        for question, answer in asked.items():
            messages = shapes.conversation(question, answer)
            images = [str(folder / "images" / scene["image"])]
            rows.append({"id": f"{number}-{len(rows)}", "images": images, "messages": messages})
    random.Random(seed).shuffle(rows)
    (folder / "all.jsonl").write_text("\n".join(map(json.dumps, rows)))


def train(folder: Path, way: str, seed: int) -> dict:
    """Losses of the second stage by step; padded rows take as many conversations a step as trees had."""
    common = COMMON | WAYS[way] | {"seed": seed, "data": [str(folder / "all.jsonl")]}
    if way == "padded":
        plan = json.loads((folder / f"trees-{seed}-finetune/training.json").read_text())["plan"]
        common["per_device_train_batch_size"] = round(plan["samples_per_step"])
    made = []
    joined, stage_1 = folder / f"start-{seed}/joined", folder / f"{way}-{seed}-pretrain"
    for stage, start in (("pretrain", joined), ("finetune", stage_1)):
        changes = {
            "stage": stage,
            "model_name_or_path": str(start),
            "output_dir": str(folder / f"{way}-{seed}-{stage}"),
        }
        if stage == "finetune":
            changes |= {"eval_data": [str(folder / "held_out/all.jsonl")], "eval_steps": 0.05}
        flags = [str(word) for name, value in (common | changes).items() for word in _flag(name, value)]
        collator = ApartCollator if way == "padded, same steps" else TreeCollator
        with mock.patch.object(training, "TreeCollator", collator):
            made.append(training.train(*training.parser().parse_args_and_config(flags)))
    log = made[-1].state.log_history
    steps = made[-1].state.max_steps
    return {
        "way": way,
        "seed": seed,
        "steps": steps,
        "learned": [(entry["step"] / steps, entry["loss"]) for entry in log if "loss" in entry],
        "held_out": [(entry["step"] / steps, entry["eval_loss"]) for entry in log if "eval_loss" in entry],
    }


def _flag(name: str, value) -> list:
    return [f"--{name}", *(value if isinstance(value, list) else [value])]


def summary(runs: list[dict]) -> dict:
    """The last held-out loss of each way over the seeds, how far from the trees it is, and how far seeds are apart."""
    last = {way: [run["held_out"][-1][1] for run in runs if run["way"] == way] for way in WAYS}
    means = {way: statistics.mean(losses) for way, losses in last.items()}
    apart = {way: abs(means["trees"] - means[way]) for way in WAYS if way != "trees"}
    within = statistics.mean(statistics.stdev(losses) for losses in last.values())
    return {"last_held_out_loss": last, "apart_from_trees": apart, "seed_deviation": within}


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each way (%(default)s)")
    parser.add_argument("--num-images", type=int, default=600, help="pictures to learn from (%(default)s)")
    parser.add_argument("--out", type=Path, help="a folder for the JSON and the plot")
    parser.set_defaults(device="cpu")
    arguments = parser.parse_args(words)
    if arguments.seeds < 2:
        parser.error("give --seeds 2 or more: what one seed makes of a loss is not known from one")
    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    facts = circumstances(arguments)
    runs = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_conversations(folder, arguments.num_images, seed=0)
        write_conversations(folder / "held_out", 64, seed=1)
        for seed in range(arguments.seeds):
            start = folder / f"start-{seed}"
            torch.manual_seed(seed)
            shapes.write_halves(start)
            halves = ["--vision", f"{start}/vision", "--language", f"{start}/language"]
            build.main([*halves, "--projector", "linear", "--out", f"{start}/joined"])
            for way in WAYS:
                runs.append(train(folder, way, seed))
                print(
                    f"{way}, seed {seed}: {runs[-1]['held_out'][-1][1]:.4f} held out after {runs[-1]['steps']} steps"
                )
    found = summary(runs)
    print(json.dumps(found, indent=1))
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        written = json.dumps(facts | found | {"runs": runs}, indent=1, default=str)
        (arguments.out / "loss_curves.json").write_text(written + "\n", encoding="utf-8")
        curves = [(run["way"], run["held_out"]) for run in runs]
        foot = f"{arguments.seeds} seeds each, {facts['hardware']}, {facts['date'][:10]}; same steps: as the trees'"
        draw_curves("Held-out loss over the run, stage 2", curves, foot, arguments.out / "loss_curves.png")


if __name__ == "__main__":
    main()
