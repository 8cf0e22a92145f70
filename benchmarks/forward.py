"""Time and memory of our LLaVA beside the stock class of transformers, with the same weights, in one process.

    python -m benchmarks.forward                              # one CPU core, two to three minutes
    python -m benchmarks.forward --shape 0.5b --out out.json  # a GPU; or --shape 7b

The two alternate, ours first in one round and second in the next, and every round gives one ratio, stock / ours: above
1 ours is faster, or needs less. The table has their median, least and greatest, and the ratio of the fastest runs.
Where others use the machine too, these move by a tenth and more, while the ratio of the operations (FLOPs of products
and attention, counted by torch) does not. Memory is the peak above the loaded model.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedModel, Qwen2Config
from transformers import LlavaConfig as StockConfig
from transformers import LlavaForConditionalGeneration as StockLlava

from modeling_llava import LlavaConfig, LlavaForConditionalGeneration
from recipes.circumstances import commit, hardware, now, versions


IMAGE_TOKEN_ID = 3
VIT_L_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
# The tower, the class of the language model and its fields, samples in a batch, words beside the image of each.
SHAPES = {
    "tiny": (
        {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        LlamaConfig,
        {
            "vocab_size": 128,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        },
        *(2, 8),
    ),
    "cpu": (
        {
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_hidden_layers": 12,
            "num_attention_heads": 4,
            "image_size": 224,
            "patch_size": 14,
        },
        LlamaConfig,
        {
            "vocab_size": 8000,
            "hidden_size": 256,
            "intermediate_size": 688,
            "num_hidden_layers": 8,
            "num_attention_heads": 4,
        },
        *(2, 128),
    ),
    "0.5b": (
        VIT_L_336,
        Qwen2Config,
        {
            "vocab_size": 151936,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
        },
        *(8, 256),
    ),
    "7b": (
        VIT_L_336,
        LlamaConfig,
        {
            "vocab_size": 32064,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
        },
        *(4, 256),
    ),
}

# What is trained, and whether activations are checkpointed.
TRAINING = {
    "stage 1: projector": (("multi_modal_projector",), False),
    "stage 1, checkpointing": (("multi_modal_projector",), True),
    "stage 2: projector and LM": (("multi_modal_projector", "language_model", "lm_head"), False),
    "stage 2, checkpointing": (("multi_modal_projector", "language_model", "lm_head"), True),
    "everything": (("",), False),
}


def build(shape: str, device: str, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Both models, on the same memory for their weights."""
    vision, language_config, language, *_ = SHAPES[shape]
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision),
        text_config=language_config(**language),
        image_token_index=IMAGE_TOKEN_ID,
        image_seq_length=patches,
    )
    torch.manual_seed(0)
    with torch.device(device):
        ours = LlavaForConditionalGeneration._from_config(config, dtype=dtype)
        stock = StockLlava._from_config(StockConfig.from_dict(config.to_dict()), dtype=dtype)
    stock.load_state_dict(ours.state_dict(), assign=True)
    return ours, stock


def inputs_for(shape: str, device: str) -> dict[str, torch.Tensor]:
    vision, _, language, samples, words = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    image = torch.full((samples, (vision["image_size"] // vision["patch_size"]) ** 2), IMAGE_TOKEN_ID)
    text = torch.randint(4, language["vocab_size"], (samples, words), generator=generator)
    ids = torch.cat([text[:, : words // 4], image, text[:, words // 4 :]], dim=1)
    pixels = torch.randn(samples, 3, vision["image_size"], vision["image_size"], generator=generator)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    return {key: value.to(device) for key, value in inputs.items()}


def train(model: PreTrainedModel, inputs: dict) -> torch.Tensor:
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE_TOKEN_ID, -100)
    loss = model(**inputs, labels=labels, use_cache=False).loss
    loss.backward()
    model.zero_grad(set_to_none=True)
    return loss.detach()


@torch.no_grad()
def forward(model: PreTrainedModel, inputs: dict) -> torch.Tensor:
    return model(**inputs, use_cache=False).logits


def generate(model: PreTrainedModel, inputs: dict) -> torch.Tensor:
    return model.generate(**inputs, do_sample=False, min_new_tokens=32, max_new_tokens=32)


def prepare(model: PreTrainedModel, trained: tuple[str, ...], checkpointing: bool):
    model.train(bool(trained))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.removeprefix("model.").startswith(trained) if trained else False)
    # As transformers' Trainer does. Switching on also makes the embeddings' outputs require a gradient, those of the
    # tower too; switching off would leave that so, and slow the stock class in every row that follows.
    model.activation_checkpointing_disable()
    model.disable_input_require_grads()
    if checkpointing:
        model.activation_checkpointing_enable()


def peak_memory(step: Callable[[], object], device: str) -> int:
    """Bytes above what was there before."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler announces every start and stop
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


def operations(step: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def timed(step: Callable[[], object], device: str) -> tuple[float, float]:
    """Seconds by the clock and by the processor."""
    if device == "cuda":
        torch.cuda.synchronize()
    clock, processor = time.perf_counter(), time.process_time()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - clock, time.process_time() - processor


def compare(name: str, step: Callable, models: dict, inputs: dict, rounds: int, device: str) -> dict:
    steps = {key: lambda model=model: step(model, inputs) for key, model in models.items()}
    ours, stock = (
        steps[key]() for key in ("ours", "stock")
    )  # the first run warms up, and shows that both do the same
    torch.testing.assert_close(ours, stock)
    del ours, stock

    memory = {key: peak_memory(run, device) for key, run in steps.items()}
    flops = {key: operations(run) for key, run in steps.items()}
    times = {"ours": [], "stock": []}
    for i in range(rounds):
        for key in ("ours", "stock") if i % 2 == 0 else ("stock", "ours"):
            times[key].append(timed(steps[key], device))
    ratios, cpu_ratios = (
        [stock[i] / ours[i] for ours, stock in zip(times["ours"], times["stock"], strict=True)] for i in (0, 1)
    )
    return {
        "name": name,
        "seconds": {key: statistics.median(clock for clock, _ in pairs) for key, pairs in times.items()},
        "time_ratios": ratios,
        "fastest_ratio": min(clock for clock, _ in times["stock"]) / min(clock for clock, _ in times["ours"]),
        "cpu_time_ratios": cpu_ratios,
        "gigaflops": {key: value / 1e9 for key, value in flops.items()},
        "operations_ratio": flops["stock"] / flops["ours"],
        "megabytes": {key: value / 1e6 for key, value in memory.items()},
        "memory_ratio": memory["stock"] / memory["ours"],
    }


def run(shape: str, rounds: int, device: str) -> list[dict]:
    ours, stock = build(shape, device, torch.bfloat16 if device == "cuda" else torch.float32)
    models, inputs = {"ours": ours, "stock": stock}, inputs_for(shape, device)
    text_only = {key: value for key, value in inputs.items() if key != "pixel_values"}
    text_only["input_ids"] = text_only["input_ids"].masked_fill(text_only["input_ids"] == IMAGE_TOKEN_ID, 4)

    rows = []
    for model in models.values():
        prepare(model, trained=(), checkpointing=False)
    for name, step, batch in (
        ("forward", forward, inputs),
        ("forward, no image", forward, text_only),
        ("generate 32 tokens", generate, inputs),
    ):
        rows.append(compare(name, step, models, batch, rounds, device))
    for name, (trained, checkpointing) in TRAINING.items():
        for model in models.values():
            prepare(model, trained, checkpointing)
        rows.append(compare(name, train, models, inputs, rounds, device))
    return rows


def table(rows: list[dict]) -> str:
    head = ["", "ours s", "stock s", "time ratio (least–greatest)", "fastest", "CPU time", "operations"]
    head += ["ours MB", "stock MB", "memory"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        spread, cpu = row["time_ratios"], row["cpu_time_ratios"]
        cells = [row["name"], *(f"{row['seconds'][key]:.3f}" for key in ("ours", "stock"))]
        cells.append(f"{statistics.median(spread):.2f} ({min(spread):.2f}–{max(spread):.2f})")
        cells += [f"{row['fastest_ratio']:.2f}", f"{statistics.median(cpu):.2f}", f"{row['operations_ratio']:.3f}"]
        cells += [*(f"{row['megabytes'][key]:.0f}" for key in ("ours", "stock")), f"{row['memory_ratio']:.2f}"]
        lines.append(cells)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def circumstances(arguments: argparse.Namespace) -> dict:
    at = commit() or ""
    return {
        "date": now(),
        "commit": at.removesuffix("-dirty") or None,
        "uncommitted_changes": at.endswith("-dirty"),
        "versions": versions(["torch", "transformers"]),
        "hardware": hardware(arguments.device),
        "threads": torch.get_num_threads(),
        "arguments": vars(arguments) | {"out": str(arguments.out) if arguments.out else None},
    }


def main(words: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="cpu", help="sizes of tower, language model and batch")
    parser.add_argument("--rounds", type=int, default=7, help="how often each row is measured")
    parser.add_argument(
        "--threads", type=int, default=1, help="of a CPU; two wait for each other where others work too"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one, for big shapes")
    parser.add_argument("--out", type=Path, help="a JSON file for every number")
    arguments = parser.parse_args(words)
    if arguments.device is None:
        big = arguments.shape in ("0.5b", "7b")
        arguments.device = "cuda" if big and torch.cuda.is_available() else "cpu"

    torch.set_num_threads(arguments.threads)
    facts = circumstances(arguments)
    print(json.dumps(facts))
    rows = run(arguments.shape, arguments.rounds, arguments.device)
    print(table(rows))
    if arguments.out:
        arguments.out.write_text(json.dumps(facts | {"rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
