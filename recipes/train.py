"""Trains a LLaVA, stage by stage: `pretrain`, the projector on captions; `finetune`, the language model with it.

    llava train --config recipes/tiny/pretrain.yaml
    accelerate launch -m recipes.train --config recipes/tiny/finetune.yaml

The loop is TRL's `SFTTrainer`. A YAML holds fields of `TrainConfig` (TRL's `SFTConfig` and ours) and of TRL's
`ModelConfig`; a key that none of them knows is an error, and the command line overrides the file. Started again, a run
goes on from its last complete checkpoint.
"""

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig
from torch import nn
from transformers import set_seed
from trl import ModelConfig, TrlParser, get_quantization_config

from modeling_llava import LlavaForConditionalGeneration
from modeling_llava.final_norm import expose_final_norm
from modeling_llava.modeling_llava import IdentityLinear
from processing import LlavaProcessor
from processing.collator import PaddedCollator, TreeCollator
from processing.packing import plan_rows
from processing.rows import PackedRows, encode_rows
from recipes.checkpoints import (
    FINISHED,
    RUN,
    check_same_run,
    describe_run,
    is_finished,
    last_complete_checkpoint,
    wait_for_all,
    write_atomically,
)
from recipes.projector import replace_projector
from recipes.throughput import Meter
from recipes.train_config import TrainConfig
from recipes.train_data import load_mixture
from recipes.trainer import CollateNumbered, LlavaTrainer, StopOnSignal


PARTS = ("vision_tower", "multi_modal_projector", "language_model")
ATTENTION_OF_LAYOUT = {"segments": "tree_segments", "varlen": "tree_varlen", "flex": "flex_attention", "mask": "sdpa"}


def load_model(config: TrainConfig, model_config: ModelConfig) -> LlavaForConditionalGeneration:
    quantization = get_quantization_config(model_config)
    model = LlavaForConditionalGeneration.from_pretrained(
        model_config.model_name_or_path,
        revision=model_config.model_revision,
        dtype=model_config.dtype,
        attn_implementation=model_config.attn_implementation,
        quantization_config=quantization,
        device_map=None if quantization is None else {"": PartialState().device},
    )
    if config.projector is not None:
        replace_projector(model, config.projector)
    return model


def choose_trainable(model: LlavaForConditionalGeneration, config: TrainConfig, use_peft: bool) -> None:
    """Freezes all but what the stage trains; with LoRA, peft does the rest."""
    model.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(True)
    freeze_identity(model)
    if config.stage == "finetune" and not use_peft:
        model.model.language_model.requires_grad_(True)
        model.lm_head.requires_grad_(True)
    if config.train_vision:
        train_used_part_of_tower(model)


def freeze_identity(model: nn.Module) -> None:
    """The second layer of a linear projector, also in the copy that peft makes trainable: it never gets a gradient."""
    for module in model.modules():
        if isinstance(module, IdentityLinear):
            module.requires_grad_(False)


def train_used_part_of_tower(model: LlavaForConditionalGeneration) -> None:
    """Layers above the feature layer give no features and would wait for gradients that never come."""
    tower, layers = model.model.vision_tower, model.config.vision_feature_layer
    tower.requires_grad_(True)
    blocks = next(m for m in tower.modules() if isinstance(m, nn.ModuleList) and len(m) > 1)
    deepest = max(layer % (len(blocks) + 1) for layer in ([layers] if isinstance(layers, int) else layers))
    for block in blocks[deepest:]:
        block.requires_grad_(False)
    for name, child in tower.named_children():
        if name in ("post_layernorm", "layernorm", "head"):
            child.requires_grad_(False)


def lora_config(model: LlavaForConditionalGeneration, model_config: ModelConfig) -> LoraConfig:
    """LoRA on the linear layers of the language model, never on the tower; the projector is trained in full."""
    targets = model_config.lora_target_modules
    if targets is None or targets == "all-linear":
        linear = {
            name.split(".")[-1]
            for name, module in model.model.language_model.named_modules()
            if isinstance(module, nn.Linear) or "Linear" in type(module).__name__
        }
        targets = rf".*language_model.*\.({'|'.join(sorted(linear))})"
    return LoraConfig(
        r=model_config.lora_r,
        lora_alpha=model_config.lora_alpha,
        lora_dropout=model_config.lora_dropout,
        target_modules=targets,
        modules_to_save=["multi_modal_projector", *(model_config.lora_modules_to_save or [])],
        use_rslora=model_config.use_rslora,
        use_dora=model_config.use_dora,
        task_type="CAUSAL_LM",
    )


def choose_layout(config: TrainConfig, model: LlavaForConditionalGeneration) -> str:
    """The form in which rows are laid out; also tells the language model how to attend to it."""
    layout = config.attention
    if layout == "auto":
        layout = "varlen" if torch.cuda.is_available() and not config.use_cpu else "segments"
    model.set_attn_implementation({"text_config": ATTENTION_OF_LAYOUT[layout]})
    return layout if layout in ("segments", "varlen") else "end"


def trainable_table(model: nn.Module, config: TrainConfig) -> list[dict]:
    rates = {"multi_modal_projector": config.projector_lr, "vision_tower": config.vision_lr}
    rows = []
    for part in (*PARTS, "lm_head"):
        found = [p for name, p in model.named_parameters() if part in name]
        trained = sum(p.numel() for p in found if p.requires_grad)
        rate = (rates.get(part) or config.learning_rate) if trained else None
        rows.append(
            {"module": part, "parameters": sum(p.numel() for p in found), "trained": trained, "learning_rate": rate}
        )
    return rows


def format_table(rows: list[dict]) -> str:
    lines = [f"{'module':<24}{'parameters':>16}{'trained':>16}{'learning rate':>16}"]
    for row in rows:
        rate = "-" if row["learning_rate"] is None else f"{row['learning_rate']:g}"
        lines.append(f"{row['module']:<24}{row['parameters']:>16,}{row['trained']:>16,}{rate:>16}")
    return "\n".join(lines)


def train(config: TrainConfig, model_config: ModelConfig) -> LlavaTrainer | None:
    """Trains, and leaves in `output_dir` a complete checkpoint (with LoRA, the adapter) and `training.json`.

    A run that had ended is left as it is, and nothing is returned.
    """
    check_choices(config, model_config)
    started = time.time()
    processor = LlavaProcessor.from_pretrained(model_config.model_name_or_path)
    rows, sources = load_mixture(config.data, config.data_weights, config.image_root, config.seed)
    encoded, report = encode_rows(rows, processor, config.max_length, skip_invalid=config.skip_invalid)
    rows_per_step = config.world_size * config.per_device_train_batch_size * config.gradient_accumulation_steps
    run = describe_run(config, model_config, encoded, rows_per_step)
    check_same_run(config.output_dir, run)
    if is_finished(config.output_dir):
        if PartialState().is_main_process:
            print(f"{config.output_dir} holds the result of this run already. Delete it to train again.")
        return None
    checkpoint = find_checkpoint(config)
    wait_for_all()  # all have looked before one writes
    if PartialState().is_main_process:
        Path(config.output_dir).mkdir(parents=True, exist_ok=True)
        write_atomically(Path(config.output_dir) / RUN, json.dumps(run, indent=1))

    set_seed(config.seed)
    model = load_model(config, model_config)
    choose_trainable(model, config, model_config.use_peft)
    peft_config = lora_config(model, model_config) if model_config.use_peft else None
    epochs, planned = config.num_train_epochs, None
    if config.packing:
        planned = plan_rows(
            encoded,
            max_length=config.max_length,
            max_images=config.max_images_per_row,
            seed=config.seed,
            epochs=int(epochs),
            rows_per_step=rows_per_step,
            tokens_per_image=processor.num_image_tokens,
        )
        train_rows, collator = (
            PackedRows(rows, encoded, planned),
            TreeCollator(processor, choose_layout(config, model)),
        )
        config.num_train_epochs, config.train_sampling_strategy = 1, "sequential"
    else:
        usable = [i for i, reason in enumerate(encoded["rejected"]) if not reason]
        train_rows, collator, epochs = rows.select(usable), PaddedCollator(processor, config.max_length), 1

    # The collator makes ids and labels: TRL's own preparation, packing and column filter have nothing to do.
    config.packing, config.remove_unused_columns = False, False
    config.dataset_kwargs = {"skip_prepare_dataset": True}
    if config.ddp_find_unused_parameters is None and planned is not None:
        config.ddp_find_unused_parameters = False  # every trained parameter takes part in every batch
    stop = StopOnSignal()
    trainer = LlavaTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_dict({"row": range(len(train_rows))}),
        processing_class=processor,
        data_collator=CollateNumbered(train_rows, collator),
        peft_config=peft_config,
        callbacks=[stop],
        epochs_in_plan=int(epochs),
        name_rows=lambda numbers: [name for n in numbers for name in ids_of_row(train_rows, n)],
        meter=Meter(model.config, config.stage, config.train_vision),
    )
    freeze_identity(trainer.model)
    if trainer.is_fsdp_enabled:
        expose_final_norm(model.model)
    elif not trainer.is_deepspeed_enabled:
        keep_trained_weights_in_float32(trainer.model)
    table = trainable_table(trainer.model, config)
    if trainer.is_world_process_zero():
        print(f"{config.stage} of {model_config.model_name_or_path}: {report}")
        print(format_table(table))
        if planned is not None:
            print(planned.summary)
        if checkpoint is not None:
            print(f"going on from {checkpoint}")
    with stop:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if trainer.state.global_step < trainer.state.max_steps:
        return trainer  # stopped by a signal; the checkpoint is there
    trainer.save_model()
    if trainer.is_world_process_zero():
        facts = {
            "stage": config.stage,
            "model": model_config.model_name_or_path,
            "data": sources,
            "trainable": table,
            "config": config.to_dict(),
            "versions": {
                name: version(name) for name in ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
            },
            "seconds": round(time.time() - started, 1),
            "log": trainer.state.log_history,
        }
        write_atomically(Path(config.output_dir) / FINISHED, json.dumps(facts, indent=1, default=str))
    return trainer


def keep_trained_weights_in_float32(model: nn.Module) -> None:
    """The steps of a small learning rate vanish in bfloat16. FSDP2 and DeepSpeed keep a copy in float32 themselves."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()


def ids_of_row(rows: Dataset | PackedRows, number: int) -> list[str]:
    return rows.ids(number) if isinstance(rows, PackedRows) else [str(rows[number].get("id", number))]


def check_choices(config: TrainConfig, model_config: ModelConfig) -> None:
    if config.stage == "pretrain" and model_config.use_peft:
        raise ValueError("`use_peft` goes with `stage: finetune`; in stage 1 the projector alone learns, in full.")
    if config.train_vision and model_config.use_peft:
        raise ValueError("`train_vision` goes without `use_peft`, which freezes the tower. Leave one of them out.")
    if config.packing and config.num_train_epochs != int(config.num_train_epochs):
        raise ValueError(
            f"`num_train_epochs` is {config.num_train_epochs}. With `packing` give whole epochs, or `max_steps`."
        )
    if model_config.model_name_or_path is None:
        raise ValueError("`model_name_or_path` is missing. Give the checkpoint of `llava build` or of stage 1.")
    if Path(model_config.model_name_or_path).resolve() == Path(config.output_dir).resolve():
        raise ValueError(f"`output_dir` is `{config.output_dir}`, the checkpoint to start from. Give another place.")


def find_checkpoint(config: TrainConfig) -> Path | None:
    given = config.resume_from_checkpoint
    if isinstance(given, str) and given.lower() not in ("true", "false"):
        return Path(given)
    return last_complete_checkpoint(config.output_dir)


def parser() -> argparse.ArgumentParser:
    return TrlParser((TrainConfig, ModelConfig), prog="llava train")


def main(argv: list[str] | None = None) -> None:
    config, model_config = parser().parse_args_and_config(argv)
    train(config, model_config)


if __name__ == "__main__":
    main()
