"""Training as rows of trees beside TRL's default path, on the same conversations per step, alternating in one process.

    python -m benchmarks.train_speed --shape 7b --case stage2                      # CPU, "7B-like" proportions
    python -m benchmarks.train_speed --device cuda --shape 7b --image-size 336     # a GPU, true sizes, bf16

TRL's side: stock Llava, stock processor, TRL's vision collator, `assistant_only_loss`, nothing cut off. Both go
through the loop of their real trainer, opening the same JPEGs. Weights are random and the learning rate is 0, so that
all steps start from one state and every loss can be compared; Adam works all the same. A ratio is TRL / ours in time,
ours / TRL in memory.

Memory is the peak of a first step above the loaded model: activations, gradients, and Adam's state, which comes last.
Where others work on the machine too, the ratio of CPU time is the one to trust. `length-grouped` puts TRL's
conversations in order of length before it makes batches of them, all of the run at once: as little padding as can be.
"""

import argparse
import gc
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
import trl
from datasets import Dataset
from transformers import TrainerCallback
from transformers.utils import logging
from trl import SFTTrainer

from benchmarks.bars import draw_bars
from benchmarks.forward import circumstances, peak_memory
from benchmarks.train_sides import (
    CASES,
    SHAPES,
    SPECIAL_TOKENS,
    Case,
    build,
    draw_samples,
    our_trainer,
    processors,
    rows_for_trl,
    rows_for_us,
    settings,
    trl_trainer,
)
from modeling_llava import LlavaConfig
from recipes.training.throughput import Meter, count_padded


GROUPED_GOAL, MEMORY_GOAL = 1.7, 0.55


class Clock(TrainerCallback):
    """Seconds of every step, by the clock and by the processor, with the opening of its images."""

    def __init__(self):
        self.seconds: list[tuple[float, float]] = []

    def on_train_begin(self, *args, **kwargs):
        self.seconds, self.last = [], self._now()

    def on_step_end(self, *args, **kwargs):
        now = self._now()
        self.seconds.append((now[0] - self.last[0], now[1] - self.last[1]))
        self.last = now

    def _now(self) -> tuple[float, float]:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()


@dataclass
class Side:
    """One way to train: a trainer, its conversations in order, and whether it recomputes activations."""

    trainer: SFTTrainer
    rows: Dataset
    batch_size: int
    checkpointing: bool
    clock: Clock
    seconds: list[tuple[float, float]] = field(default_factory=list)  # of a whole round
    losses: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    out_of_memory: bool = False

    def run(self, first: int, count: int) -> tuple[float, float]:
        """Trains on `count` steps from step `first`."""
        trainer = self.trainer
        trainer.args.activation_checkpointing = self.checkpointing
        if not self.checkpointing:
            trainer.model.activation_checkpointing_disable()
            trainer.model.disable_input_require_grads()
        trainer.args.max_steps = count
        trainer.train_dataset = self.rows.select(range(first * self.batch_size, (first + count) * self.batch_size))
        trainer.lr_scheduler = None
        trainer.train()
        self.losses += [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        # A turn of several steps is one in which worker processes open images ahead, once they are there.
        counted = self.clock.seconds[1:] if count > 1 else self.clock.seconds
        return sum(wall for wall, _ in counted), sum(cpu for _, cpu in counted)

    def first_step(self, device: str) -> None:
        self.trainer.optimizer = None
        self.trainer.accelerator.free_memory()  # it would hold on to the old one until the next training begins
        gc.collect()
        self.peak_bytes = peak_memory(lambda: self.run(0, 1), device)


@dataclass
class Load:
    """What the steps of a side bring: known from its collator, without training."""

    supervised: list[int]  # tokens, a step
    tokens: int  # of all steps, padding not counted
    places: int  # with padding
    images: int
    flops: list[float]  # that the model needs, a step
    peak_flops: float | None  # of the device in a second


def look_at(side: Side, case: Case, config: LlavaConfig, device: torch.device) -> Load:
    meter = Meter(config, case.stage, device)
    load = Load([], 0, 0, 0, [], meter.peak)
    for batch in batches(side):
        counts = batch["counts"] if "counts" in batch else count_padded(batch)
        load.supervised.append(counts.supervised)
        load.tokens += counts.tokens
        load.places += counts.places
        load.images += counts.images
        load.flops.append(meter.flops_of(counts))
    return load


def batches(side: Side) -> Iterator[dict[str, Any]]:
    for first in range(0, len(side.rows), side.batch_size):
        rows = side.rows.select(range(first, first + side.batch_size))
        yield side.trainer.data_collator([rows[i] for i in range(len(rows))])


def collation_seconds(side: Side, rounds: int) -> float:
    """CPU seconds from files and conversations to the batch of a step."""
    taken = []
    for _ in range(rounds):
        started = time.process_time()
        steps = sum(1 for _ in batches(side))
        taken.append((time.process_time() - started) / steps)
    return statistics.median(taken)


def sort_by_length(rows: Dataset, samples: list[dict]) -> Dataset:
    lengths = [sum(len(text.split()) for text in sample["texts"]) for sample in samples]
    return rows.select(sorted(range(len(rows)), key=lambda i: -lengths[i]))


def measure(name: str, models: tuple, made: tuple, arguments: argparse.Namespace, folder: Path) -> dict:
    """All sides of one case, in turns."""
    case, device = CASES[name], arguments.device
    ours, stock = models
    text = ours.config.text_config
    samples = draw_samples(name, arguments.steps, text.vocab_size - len(SPECIAL_TOKENS) - 1, folder)
    common = settings(case, device, str(folder / "run"), arguments.workers, arguments.optimizer)
    clocks = Clock(), Clock()
    trl_rows = rows_for_trl(samples)
    trl_side = trl_trainer(stock, case, trl_rows, made[1], common, clocks[0])
    our_side, encoding = our_trainer(ours, case, rows_for_us(samples), made[0], common, clocks[1])

    sides: dict[str, Side] = {}
    for word in ("off", "on") if arguments.checkpointing == "both" else (arguments.checkpointing,):
        checkpointing = word == "on"
        sides[f"trl {word}"] = Side(trl_side, trl_rows, case.samples, checkpointing, clocks[0])
        sides[f"ours {word}"] = Side(our_side, our_side.train_dataset, 1, checkpointing, clocks[1])
        if name == "stage2":
            ordered = sort_by_length(trl_rows, samples)
            sides[f"trl grouped {word}"] = Side(trl_side, ordered, case.samples, checkpointing, clocks[0])
    loads = {key: look_at(side, case, ours.config, torch.device(device)) for key, side in sides.items()}
    for key, load in loads.items():
        if sum(load.supervised) != sum(loads[next(iter(loads))].supervised):
            raise ValueError(f"{name}: `{key}` has other supervised tokens than the rest. The sides do not compare.")

    for key, side in sides.items():
        attempt(key, side, lambda side=side: side.first_step(device))
    turn = arguments.steps if arguments.workers else 1
    for number in range(arguments.rounds):
        taken = play_round(sides, arguments.steps, turn, number)
        print(f"  {name}, round {number + 1}: " + ", ".join(f"{k} {t[0]:.1f} s" for k, t in taken.items()), flush=True)

    plain = [key for key in sides if "grouped" not in key][:2]
    theirs, mine = (loads[key] for key in plain)
    collation = {key.split()[0]: collation_seconds(sides[key], arguments.rounds) for key in plain}
    counted = slice(1 if turn > 1 else 0, None)
    return {
        "case": name,
        "title": case.title,
        "samples_per_step": case.samples,
        "images_per_step": case.images,
        "padded_over_real": theirs.places / theirs.tokens,
        "sharing": theirs.tokens / mine.tokens,
        "collation_seconds": collation,
        "collation_ratio": collation["trl"] / collation["ours"],
        "encoding_seconds_per_conversation": encoding,
        "sides": {key: figures(side, loads[key], counted) for key, side in sides.items()},
        "comparisons": compare(case, sides, loads, counted, tolerance=1e-6 if device == "cpu" else 2e-2),
    }


def play_round(sides: dict[str, Side], steps: int, turn: int, number: int) -> dict[str, tuple[float, float]]:
    """Every side trains on `turn` steps, then on the next ones; the order turns around each time."""
    keys = [key for key in sides if not sides[key].out_of_memory]
    taken = {key: (0.0, 0.0) for key in keys}
    for first in range(0, steps, turn):
        for key in keys if (number + first // turn) % 2 == 0 else reversed(keys):
            wall, cpu = attempt(key, sides[key], lambda key=key, first=first: sides[key].run(first, turn)) or (0, 0)
            taken[key] = (taken[key][0] + wall, taken[key][1] + cpu)
    for key in keys:
        sides[key].seconds.append(taken[key])
    return taken


def attempt(key: str, side: Side, action: Callable[[], Any]) -> Any:
    """What `action` gives, None where the memory of the device does not suffice."""
    try:
        return action()
    except torch.OutOfMemoryError:
        print(f"  {key}: out of memory")
        side.out_of_memory = True
        side.trainer.model.zero_grad()
        gc.collect()
        torch.cuda.empty_cache()
        return None


def figures(side: Side, load: Load, counted: slice) -> dict | None:
    if side.out_of_memory:
        return None
    seconds = statistics.median(wall for wall, _ in side.seconds)
    found = {
        "supervised_tokens_per_s": sum(load.supervised[counted]) / seconds,
        "seconds": [wall for wall, _ in side.seconds],
        "cpu_seconds": [cpu for _, cpu in side.seconds],
        "peak_megabytes": side.peak_bytes / 1e6,
        "losses": side.losses,
        "padded_over_real": load.places / load.tokens,
        "images": load.images,
    }
    if load.peak_flops is not None:
        found["mfu"] = sum(load.flops[counted]) / seconds / load.peak_flops
    return found


def compare(
    case: Case, sides: dict[str, Side], loads: dict[str, Load], counted: slice, tolerance: float
) -> list[dict]:
    wanted = []
    for baseline, label, goal in (
        ("trl", "", case.goal),
        ("trl grouped", ", length-grouped", GROUPED_GOAL),
    ):
        wanted += [
            (f"checkpointing off{label}", f"{baseline} off", "ours off", goal),
            (f"checkpointing on{label}", f"{baseline} on", "ours on", goal),
            (f"each its default{label}", f"{baseline} on", "ours off", goal),
        ]
    found = []
    for label, theirs, mine, goal in wanted:
        if theirs not in sides or mine not in sides or sides[theirs].out_of_memory or sides[mine].out_of_memory:
            continue
        work = sum(loads[mine].supervised[counted]) / sum(loads[theirs].supervised[counted])
        pairs = list(zip(sides[theirs].seconds, sides[mine].seconds, strict=True))
        entry = {
            "setting": label,
            "theirs": theirs,
            "ours": mine,
            "speed_ratios": [work * a[0] / b[0] for a, b in pairs],
            "cpu_speed_ratios": [work * a[1] / b[1] for a, b in pairs],
            "speed_goal": goal,
            "memory_ratio": sides[mine].peak_bytes / sides[theirs].peak_bytes,
            "memory_goal": MEMORY_GOAL,
        }
        if "grouped" not in theirs:
            entry["loss_difference"] = max(
                abs(a - b) / abs(a) for a, b in zip(sides[theirs].losses, sides[mine].losses, strict=True)
            )
            if not entry["loss_difference"] <= tolerance:
                raise ValueError(
                    f"{case.title}, {label}: losses are {sides[theirs].losses} and {sides[mine].losses}, apart by "
                    f"{entry['loss_difference']:.1e}; wanted at most {tolerance:.0e}. The sides do not compare."
                )
        found.append(entry)
    return found


def table(results: list[dict]) -> str:
    head = ["", "TRL tok/s", "ours tok/s", "speed (least–greatest)", "CPU time", "goal", "TRL MB", "ours MB", "memory"]
    head += ["loss apart", "collation", "MFU TRL", "MFU ours"]
    lines = [head, ["---"] * len(head)]
    for result in results:
        for entry in result["comparisons"]:
            theirs, mine = (result["sides"][entry[key]] for key in ("theirs", "ours"))
            wall, cpu = entry["speed_ratios"], entry["cpu_speed_ratios"]
            lines.append(
                [
                    f"{result['title']}, {entry['setting']}",
                    *(f"{side['supervised_tokens_per_s']:.1f}" for side in (theirs, mine)),
                    f"{statistics.median(wall):.2f} ({min(wall):.2f}–{max(wall):.2f})",
                    f"{statistics.median(cpu):.2f}",
                    f"{entry['speed_goal']:.1f}",
                    *(f"{side['peak_megabytes']:.0f}" for side in (theirs, mine)),
                    f"{entry['memory_ratio']:.2f}",
                    f"{entry['loss_difference']:.0e}" if "loss_difference" in entry else "",
                    f"{result['collation_ratio']:.1f}",
                    *(f"{side['mfu']:.1%}" if "mfu" in side else "-" for side in (theirs, mine)),
                ]
            )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plot(results: list[dict], facts: dict, path: Path) -> None:
    on_cpu = facts["arguments"]["device"] == "cpu"
    key = "cpu_speed_ratios" if on_cpu else "speed_ratios"
    speed, memory = [], []
    for result in results:
        for entry in result["comparisons"]:
            label = f"{result['title']}, {entry['setting']}"
            ratios = entry[key]
            speed.append((label, statistics.median(ratios), entry["speed_goal"] if on_cpu else None))
            memory.append((label, entry["memory_ratio"], entry["memory_goal"] if on_cpu else None))
    arguments = facts["arguments"]
    where = f"{facts['hardware']}, shape {arguments['shape']}, {arguments['image_size']} px, {facts['date'][:10]}"
    title = f"Supervised tokens/s over TRL's{' (CPU time)' if on_cpu else ''}"
    draw_bars([(title, speed), ("Peak memory over the loaded model, of TRL's", memory)], where, path)


def main(words: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=("small", "0.5b", "7b"), default="small", help="on a CPU, its proportions")
    parser.add_argument("--image-size", type=int, default=224, help="224 or 336 pixels: 256 or 576 image tokens")
    parser.add_argument("--case", choices=(*CASES, "all"), default="all")
    parser.add_argument("--checkpointing", choices=("both", "on", "off"), default="both", help="of activations")
    parser.add_argument("--steps", type=int, help="different steps in a round; default: 2, on a GPU 8")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured")
    parser.add_argument("--workers", type=int, help="that open images, on both sides; default: none, on a GPU 4")
    parser.add_argument("--optimizer", help="default: adamw_torch_fused; for 7b on a GPU sgd, two Adams are too big")
    parser.add_argument(
        "--threads", type=int, default=1, help="of a CPU; two wait for each other where others work too"
    )
    parser.add_argument("--out", type=Path, help="a folder for the JSON and the plot")
    arguments = parser.parse_args(words)
    on_cpu = arguments.device == "cpu"
    if arguments.steps is None:
        arguments.steps = 2 if on_cpu else 8
    if arguments.workers is None:
        arguments.workers = 0 if on_cpu else 4
    if arguments.optimizer is None:
        arguments.optimizer = "sgd" if not on_cpu and arguments.shape == "7b" else "adamw_torch_fused"
    if arguments.workers and arguments.steps < 2:
        parser.error("with --workers the first step of a turn is not counted: give --steps 2 or more")
    if on_cpu:
        torch.set_num_threads(arguments.threads)

    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    facts = circumstances(arguments)
    facts["versions"]["trl"] = trl.__version__
    print(json.dumps(facts))
    sizes, dtype = SHAPES[arguments.device][arguments.shape], torch.float32 if on_cpu else torch.bfloat16
    models = build(sizes, arguments.image_size, arguments.device, dtype)
    made = processors(models[0].config.text_config.vocab_size, arguments.image_size)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name in CASES if arguments.case == "all" else (arguments.case,):
            results.append(measure(name, models, made, arguments, Path(folder)))
            print(table(results[-1:]), flush=True)
    if len(results) > 1:
        print(table(results))
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        stem = f"train_speed-{arguments.device}-{arguments.shape}-{arguments.image_size}"
        written = json.dumps(facts | {"results": results}, indent=2)
        (arguments.out / f"{stem}.json").write_text(written + "\n", encoding="utf-8")
        plot(results, facts, arguments.out / f"{stem}.png")


if __name__ == "__main__":
    main()
