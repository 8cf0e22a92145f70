"""The same small model trained as trees and as padded rows, over several seeds: do both learn alike?

    python -m benchmarks.loss_curves --out benchmarks/results

Both stages of the quickstart on drawn shapes, with three conversations about each picture. A seed has its own start
and order, the same start for both ways. Steps hold about as many conversations both ways.
"""

import argparse
import json
import random
import statistics
import tempfile
from pathlib import Path

import datasets
import torch
from transformers.utils import logging

from benchmarks.curves import draw_curves
from benchmarks.forward import circumstances
from recipes import build, quickstart
from recipes import train as training


WAYS = {
    "trees": {"packing": True, "max_length": 1024, "per_device_train_batch_size": 2},
    "padded": {"packing": False, "max_length": 1024},
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


def write_conversations(folder: Path, num_images: int, seed: int) -> None:
    """A caption and both questions about every picture, shuffled."""
    rows = []
    for number, scene in enumerate(quickstart.write_data(folder, num_images, seed)):
        caption = f"A {scene['colour']} {scene['shape']} on a {scene['ground']} ground."
        asked = {"Describe the picture.": caption}
        asked |= {question: scene[kind].capitalize() + "." for question, kind in quickstart.QUESTIONS.items()}
        for question, answer in asked.items():
            messages = quickstart.conversation(question, answer)
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
    """The last held-out loss of each way over the seeds, and how far the ways are apart, in deviations of a seed."""
    last = {way: [run["held_out"][-1][1] for run in runs if run["way"] == way] for way in WAYS}
    between = abs(statistics.mean(last["trees"]) - statistics.mean(last["padded"]))
    within = statistics.mean(statistics.stdev(losses) for losses in last.values())
    return {"last_held_out_loss": last, "apart": between, "seed_deviation": within}


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
            quickstart.write_halves(start)
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
        foot = f"{arguments.seeds} seeds each, {facts['hardware']}, {facts['date'][:10]}"
        draw_curves("Held-out loss over the run, stage 2", curves, foot, arguments.out / "loss_curves.png")


if __name__ == "__main__":
    main()
