"""Trains a LLaVA, stage by stage: `pretrain`, the projector on captions; `finetune`, the language model with it.

    llava train --config recipes/micro/pretrain.yaml
    accelerate launch -m recipes.train --config recipes/micro/finetune.yaml

The loop is TRL's `SFTTrainer`. A YAML holds fields of `TrainConfig` (TRL's `SFTConfig` and ours) and of TRL's
`ModelConfig`; a key that none of them knows is an error, and the command line overrides the file. Started again, a run
goes on from its last complete checkpoint.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import set_seed
from trl import ModelConfig, TrlParser, get_quantization_config

from data_generation.replacing import write_atomically
from modeling_llava import LlavaForConditionalGeneration
from modeling_llava.final_norm import expose_final_norm
from processing import LlavaProcessor
from processing.collator import PaddedCollator, TreeCollator
from recipes.building.parts import load_llava, load_processor
from recipes.circumstances import PACKAGE, commit, hardware, now, versions
from recipes.publishing.push_while_training import PushCheckpoints, check_push, prepare_push, push_result
from recipes.run_folder import alone_in, told_when_full
from recipes.training.checkpoints import (
    FINISHED,
    RUN,
    check_same_run,
    describe_run,
    given_checkpoint,
    is_finished,
    last_complete_checkpoint,
    wait_for_all,
)
from recipes.training.feature_cache import cache_features, format_facts
from recipes.training.projector import replace_projector
from recipes.training.samples import SamplesPage
from recipes.training.throughput import Meter
from recipes.training.train_checks import paths_with_home
from recipes.training.train_config import TrainConfig
from recipes.training.train_rows import (
    CollateNumbered,
    Encoded,
    Streamed,
    encode_data,
    load_data,
    longest,
    plan,
    stream_rows,
)
from recipes.training.trainable import (
    choose_trainable,
    format_table,
    freeze_identity,
    keep_trained_weights_in_float32,
    lora_config,
    trainable_table,
)
from recipes.training.trainer import LlavaTrainer
from recipes.training.trainer_callbacks import EpochEnds


ATTENTION_OF_LAYOUT = {"segments": "tree_segments", "varlen": "tree_varlen", "flex": "flex_attention", "mask": "sdpa"}


def load_model(config: TrainConfig, model_config: ModelConfig) -> LlavaForConditionalGeneration:
    quantization = get_quantization_config(model_config)
    model = load_llava(
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


def choose_layout(config: TrainConfig, model: LlavaForConditionalGeneration) -> str:
    """The form in which rows are laid out; also tells the language model how to attend to it."""
    layout = config.attention
    if layout == "auto":
        layout = "varlen" if torch.cuda.is_available() and not config.use_cpu else "segments"
    model.set_attn_implementation({"text_config": ATTENTION_OF_LAYOUT[layout]})
    return layout if layout in ("segments", "varlen") else "end"


def train(config: TrainConfig, model_config: ModelConfig) -> LlavaTrainer | None:
    """Trains, and leaves in `output_dir` a complete checkpoint (with LoRA, the adapter) and `training.json`.

    A run that had ended is left as it is, and nothing is returned.
    """
    model_config.model_name_or_path = paths_with_home(model_config.model_name_or_path)
    check_choices(config, model_config)
    with alone_in(Path(config.output_dir), PartialState().is_main_process):
        return _train(config, model_config)


def _train(config: TrainConfig, model_config: ModelConfig) -> LlavaTrainer | None:
    started = time.time()
    processor = load_processor(model_config.model_name_or_path)
    data = load_data(config, processor)
    held_out = encode_data(config, processor, config.eval_data, None) if config.eval_data else None
    rows_per_step = config.world_size * config.per_device_train_batch_size * config.gradient_accumulation_steps
    run = describe_run(config, model_config, data.identity, rows_per_step)
    check_same_run(config.output_dir, run)
    if is_finished(config.output_dir):
        if PartialState().is_main_process:
            print(f"{config.output_dir} holds the result of this run already. Delete it to train again.")
        return None
    checkpoint = find_checkpoint(config, run)
    wait_for_all()  # all have looked before one writes
    if PartialState().is_main_process:
        if config.push_to_hub:
            prepare_push(config)
        write_atomically(Path(config.output_dir) / RUN, json.dumps(run, indent=1))

    set_seed(config.seed)
    model = load_model(config, model_config)
    choose_trainable(model, config, model_config.use_peft)
    facts: dict[str, Any] = {"stage": config.stage, "model": model_config.model_name_or_path, "data": data.as_dict()}
    facts["config"] = config.to_dict() | asdict(model_config)
    trainer = make_trainer(config, model_config, model, processor, data, held_out, rows_per_step, facts)
    if checkpoint is not None and trainer.stream is not None:
        trainer.position.load(checkpoint, config.process_index, trainer.stream)
    facts["trainable"] = trainable_table(trainer.model, config)
    if config.push_to_hub:
        trainer.add_callback(PushCheckpoints(config, facts))
    if trainer.is_world_process_zero():
        print(f"{config.stage} of {model_config.model_name_or_path}: {data}")
        if held_out is not None:
            print(f"held out: {held_out}")
        print(format_table(facts["trainable"]))
        print("\n".join(facts["notes"]))
        if checkpoint is not None:
            print(f"going on from {checkpoint}")
    with trainer.stop_on_signal:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if trainer.state.global_step < trainer.state.max_steps:
        return trainer  # stopped by a signal; the checkpoint is there
    with told_when_full(Path(config.output_dir)):
        trainer.save_model()
    if trainer.is_world_process_zero():
        facts |= circumstances(config) | {"seconds": round(time.time() - started, 1), "log": trainer.state.log_history}
        facts["resumed_from"] = None if checkpoint is None else checkpoint.name
        if trainer.stream is not None:
            facts["data"]["dropped_by_this_process"] = trainer.position.all_rejected
            facts["data"]["cut_by_this_process"] = cut = trainer.position.num_cut
            print(f"{cut:,} conversations that this process read were longer than {longest(config):,} tokens and cut")
        write_atomically(Path(config.output_dir) / FINISHED, json.dumps(facts, indent=1, default=str))
        if config.push_to_hub:
            push_result(config)
    return trainer


def make_trainer(
    config: TrainConfig,
    model_config: ModelConfig,
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    data: Encoded | Streamed,
    held_out: Encoded | None,
    rows_per_step: int,
    facts: dict[str, Any],
) -> LlavaTrainer:
    """Rows, collators and trainer; changes `config` to what TRL is to do, and adds to `facts`."""
    peft_config = lora_config(model, model_config) if model_config.use_peft else None
    packing, epochs, cached, stream = config.packing, 1, None, None
    trees = TreeCollator(processor, choose_layout(config, model)) if packing or held_out else None
    facts["notes"], callbacks = [], []
    if isinstance(data, Streamed):
        rows, collator, stream = None, trees, stream_rows(config, data, processor)
    elif packing:
        epochs = int(config.num_train_epochs)
        rows, collator = plan(config, data, processor, rows_per_step, epochs), trees
        facts["plan"] = asdict(rows.plan.summary)
        facts["notes"].append(str(rows.plan.summary))
        callbacks.append(EpochEnds(rows.plan))
        config.num_train_epochs, config.train_sampling_strategy = 1, "sequential"
    else:
        rows, collator = data.rows.select(data.usable), PaddedCollator(processor, longest(config))
    if config.cache_image_features:
        cached, facts["image_features"] = cache_features(config, rows, model, processor)
        collator = replace(collator, features=cached)
        facts["notes"].append(format_facts(facts["image_features"]))
    collate, eval_dataset = CollateNumbered(rows, collator), None
    if held_out:
        config.per_device_eval_batch_size = config.per_device_train_batch_size
        rows_at_once = config.world_size * config.per_device_eval_batch_size
        collate.held_out, collate.held_out_collator = plan(config, held_out, processor, rows_at_once, 1), trees
        eval_dataset = Dataset.from_dict({"row": range(n := len(collate.held_out)), "held_out": [True] * n})
        callbacks.append(SamplesPage(held_out, processor, config.sample_answers))
        facts["held_out"] = held_out.as_dict()

    # The collator makes ids and labels: TRL's own preparation, packing and column filter have nothing to do.
    config.packing, config.remove_unused_columns = False, False
    config.dataset_kwargs = {"skip_prepare_dataset": True}
    if config.ddp_find_unused_parameters is None and packing:
        config.ddp_find_unused_parameters = False  # every trained parameter takes part in every batch
    trainer = LlavaTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_dict({"row": range(1 if rows is None else len(rows))}),
        eval_dataset=eval_dataset,
        processing_class=processor,
        data_collator=collate,
        peft_config=peft_config,
        callbacks=callbacks,
        epochs_in_plan=epochs,
        stream=stream,
        meter=Meter(model.config, config.stage, config.device, 3 if config.tune_vision_tower else int(cached is None)),
    )
    freeze_identity(trainer.model)
    if trainer.is_fsdp_enabled:
        if model_config.use_peft and any(p.requires_grad for p in model.lm_head.parameters()):
            raise ValueError(
                "`lora_modules_to_save` has `lm_head`, whose gradient FSDP2 would not add up over processes: it does "
                "not find the final norm within PEFT. Leave it out, or launch with recipes/accelerate/ddp.yaml."
            )
        expose_final_norm(model.model)
    elif not trainer.is_deepspeed_enabled:
        keep_trained_weights_in_float32(trainer.model)
    return trainer


def circumstances(config: TrainConfig) -> dict[str, Any]:
    names = (PACKAGE, "torch", "transformers", "trl", "peft", "accelerate", "datasets")
    return {
        "versions": versions(names),
        "commit": commit(),
        "hardware": hardware(config.device),
        "processes": config.world_size,
        "ended": now(),
    }


def check_choices(config: TrainConfig, model_config: ModelConfig) -> None:
    if config.stage == "pretrain" and model_config.use_peft:
        raise ValueError("`use_peft` goes with `stage: finetune`; in stage 1 the projector alone learns, in full.")
    if config.tune_vision_tower and model_config.use_peft:
        raise ValueError(
            "`tune_vision_tower` goes without `use_peft`, which freezes the tower. Leave one of them out."
        )
    check_push(config, model_config.use_peft)
    if model_config.model_name_or_path is None:
        raise ValueError("`model_name_or_path` is missing. Give the checkpoint of `llava build` or of stage 1.")
    if Path(model_config.model_name_or_path, "adapter_config.json").is_file():
        raise ValueError(
            f"`model_name_or_path` is `{model_config.model_name_or_path}`, a LoRA adapter and no model: fold it into "
            f"its base with `llava merge --adapter {model_config.model_name_or_path} --out DIR`, and give DIR."
        )
    if config.attention in ("varlen", "flex") and config.device.type == "cpu":
        raise ValueError(
            f"`attention: {config.attention}` needs a GPU, and this run is on the CPU. Leave it out (`auto` chooses "
            "`segments` here), or give `segments` or `mask`."
        )
    if Path(model_config.model_name_or_path).resolve() == Path(config.output_dir).resolve():
        raise ValueError(f"`output_dir` is `{config.output_dir}`, the checkpoint to start from. Give another place.")


def find_checkpoint(config: TrainConfig, run: dict[str, Any]) -> Path | None:
    given = config.resume_from_checkpoint
    if given is not None and str(given).lower() not in ("true", "false"):
        return given_checkpoint(Path(given), run)
    found = last_complete_checkpoint(config.output_dir)
    if found is not None and str(given).lower() == "false":
        raise ValueError(
            f"`resume_from_checkpoint` is false, and `{found}` is there, from which this run would go on. To begin "
            "anew, delete it or give another `output_dir`; to go on, leave `resume_from_checkpoint` out."
        )
    return found


def parser() -> argparse.ArgumentParser:
    """TRL takes `--config` out before it parses the rest, so that its help does not name it."""
    return TrlParser(
        (TrainConfig, ModelConfig),
        prog="llava train",
        usage="llava train --config FILE.yaml [--FIELD VALUE ...]",
        description="Train the projector (stage 1), or projector and language model (stage 2). The YAML holds fields "
        "of those below, which also stand for themselves on the command line and override it there; recipes are in "
        "recipes/*/*.yaml. On several devices: `accelerate launch -m recipes.train --config FILE.yaml`.",
    )


def main(argv: list[str] | None = None) -> None:
    config, model_config = parser().parse_args_and_config(argv)
    trainer = train(config, model_config)
    if trainer is not None and trainer.stop_on_signal.stopped_by and config.world_size == 1:
        # As a shell has it. Among several processes, a launcher would take it for a failure, and kill the others.
        sys.exit(128 + trainer.stop_on_signal.stopped_by)


if __name__ == "__main__":
    main()
