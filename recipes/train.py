"""Trains a LLaVA, stage by stage: `pretrain`, the projector on captions; `finetune`, the language model with it.

    llava train --config recipes/tiny/pretrain.yaml
    accelerate launch -m recipes.train --config recipes/tiny/finetune.yaml

The loop is TRL's `SFTTrainer`. A YAML holds the fields of `TrainArguments` below and of TRL's `SFTConfig`; a key that
neither knows is an error, and the command line overrides the file.
"""

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from datasets import Dataset, Image, List, load_dataset, load_from_disk
from torch import nn
from trl import SFTConfig, SFTTrainer, TrlParser

from modeling_llava import LlavaForConditionalGeneration
from processing import ConversationTooLong, LlavaProcessor
from processing.collator import PaddedCollator


@dataclass
class TrainArguments:
    model: str = field(metadata={"help": "Checkpoint to start from: a directory or Hub id, made by `llava build`."})
    data: str = field(
        metadata={
            "help": "Rows with `messages`, `images` and `id`: a .jsonl or .parquet file, a saved data set, a Hub id."
        }
    )
    stage: Literal["pretrain", "finetune"] = field(
        metadata={"help": "pretrain: the projector alone learns. finetune: projector and language model learn."}
    )
    image_root: str | None = field(default=None, metadata={"help": "Folder that image paths in the data start from."})


def load_rows(data: str, image_root: str | None = None) -> Dataset:
    path = Path(data)
    if path.suffix in (".jsonl", ".json", ".parquet"):
        if not path.is_file():
            raise ValueError(f"`data` names `{data}`, which is no file. Check the path.")
        kind = "parquet" if path.suffix == ".parquet" else "json"
        rows = load_dataset(kind, data_files=str(path), split="train")
    elif path.is_dir():
        rows = load_from_disk(path)
    else:
        rows = load_dataset(data, split="train")

    missing = {"messages"} - set(rows.column_names)
    if missing or not len(rows):
        raise ValueError(
            f"`{data}` has {len(rows)} rows with the columns {', '.join(rows.column_names) or 'none'}; wanted rows "
            "with `messages`, and `images` where there are pictures."
        )
    if image_root is not None and "images" in rows.column_names:
        rows = rows.map(lambda row: {"images": [str(Path(image_root, image)) for image in row["images"]]})
    if "images" in rows.column_names:
        rows = rows.cast_column("images", List(Image(decode=False)))  # opened by the collator, with care
    return rows


def drop_too_long(rows: Dataset, processor: LlavaProcessor, max_length: int | None) -> Dataset:
    """The rows whose first question fits; every other row that cannot be encoded is an error that names it."""
    if max_length is None:
        return rows
    kept, dropped = [], []
    for index, messages in enumerate(rows["messages"]):
        name = str(rows[index]["id"]) if "id" in rows.column_names else str(index)
        try:
            processor.encode_text(messages, for_training=True, max_length=max_length, name=f"sample `{name}`")
            kept.append(index)
        except ConversationTooLong:
            dropped.append(name)
    if dropped:
        print(
            f"dropped {len(dropped)} of {len(rows)} rows: first question longer than {max_length} tokens: "
            f"{dropped[:20]}"
        )
    if not kept:
        raise ValueError(f"All {len(rows)} rows are too long for `max_length: {max_length}`. Raise it.")
    return rows.select(kept)


def choose_trainable(model: LlavaForConditionalGeneration, stage: str) -> list[nn.Module]:
    """Freezes all but what the stage trains, and returns the modules that learn."""
    parts = [model.model.multi_modal_projector]
    if stage == "finetune":
        parts += [model.model.language_model, model.lm_head]
    model.requires_grad_(False)
    for part in parts:
        part.requires_grad_(True)
    if model.config.projector_type == "linear":
        model.model.multi_modal_projector.linear_2.requires_grad_(False)  # an identity, and it stays one
    return parts


def trainable_table(model: nn.Module) -> str:
    lines = [f"{'module':<24}{'parameters':>14}{'trained':>14}"]
    for name, module in (
        ("vision_tower", model.model.vision_tower),
        ("multi_modal_projector", model.model.multi_modal_projector),
        ("language_model", model.model.language_model),
        ("lm_head", model.lm_head),
    ):
        counts = [(p.numel(), p.requires_grad) for p in module.parameters()]
        lines.append(f"{name:<24}{sum(n for n, _ in counts):>14,}{sum(n for n, trained in counts if trained):>14,}")
    return "\n".join(lines)


def train(arguments: TrainArguments, config: SFTConfig) -> list[dict]:
    """Trains, writes a complete checkpoint to `config.output_dir`, and returns the log."""
    processor = LlavaProcessor.from_pretrained(arguments.model)
    model = LlavaForConditionalGeneration.from_pretrained(arguments.model, dtype=torch.float32)
    choose_trainable(model, arguments.stage)
    rows = drop_too_long(load_rows(arguments.data, arguments.image_root), processor, config.max_length)

    # The collator makes ids and labels; TRL's own preparation and column filter have nothing to do.
    config.remove_unused_columns = False
    config.dataset_kwargs = {"skip_prepare_dataset": True}
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=rows,
        processing_class=processor,
        data_collator=PaddedCollator(processor, config.max_length),
    )
    if trainer.is_world_process_zero():
        print(
            f"{arguments.stage} of {arguments.model} on {len(rows)} rows of {arguments.data}\n{trainable_table(model)}"
        )
    trainer.train()
    trainer.save_model()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    if trainer.is_world_process_zero():
        (Path(config.output_dir) / "training_log.json").write_text(json.dumps(log, indent=1))
    return log


def parser() -> argparse.ArgumentParser:
    return TrlParser((TrainArguments, SFTConfig), prog="llava train")


def main(argv: list[str] | None = None) -> None:
    arguments, config = parser().parse_args_and_config(argv)
    train(arguments, config)


if __name__ == "__main__":
    main()
