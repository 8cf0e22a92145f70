"""Which parts of a model learn, and at what rate: by stage, with LoRA or in full."""

import re

import torch
from peft import LoraConfig
from torch import nn
from trl import ModelConfig

from modeling_llava import LlavaForConditionalGeneration
from modeling_llava.modeling_llava import IdentityLinear
from recipes.training.train_config import TrainConfig


PARTS = ("vision_tower", "multi_modal_projector", "language_model")


def choose_trainable(model: LlavaForConditionalGeneration, config: TrainConfig, use_peft: bool) -> None:
    """Freezes all but what the stage trains; with LoRA, peft does the rest."""
    model.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(True)
    freeze_identity(model)
    if config.stage == "finetune" and not use_peft:
        model.model.language_model.requires_grad_(True)
        model.lm_head.requires_grad_(True)
    if config.tune_vision_tower:
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
    if targets is None or targets == "all-linear" or isinstance(targets, list) or re.fullmatch(r"[\w.]+", targets):
        targets = _in_language_model(model, targets)  # a regular expression is taken as it is
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


def _in_language_model(model: LlavaForConditionalGeneration, names: list[str] | str | None) -> str:
    """The layers of these names, or all linear ones, but none of the tower, whose layers are called the same."""
    modules = dict(model.model.language_model.named_modules())
    linear = {
        name.split(".")[-1]
        for name, module in modules.items()
        if isinstance(module, nn.Linear) or "Linear" in type(module).__name__
    }
    chosen = linear if names in (None, "all-linear") else {names} if isinstance(names, str) else set(names)
    unknown = {n for n in chosen if not any(f".{name}".endswith(f".{n}") for name in modules)}
    if unknown:
        raise ValueError(
            f"`lora_target_modules` has `{min(unknown)}`, which no layer of the language model is called. Its linear "
            f"layers are {', '.join(sorted(linear))}."
        )
    return rf".*language_model.*\.({'|'.join(re.escape(name) for name in sorted(chosen))})"


def trainable_table(model: nn.Module, config: TrainConfig) -> list[dict]:
    rates = {"multi_modal_projector": config.projector_lr, "vision_tower": config.vision_lr}
    rows = []
    for part in (*PARTS, "lm_head"):
        found = [p for name, p in model.named_parameters() if part in name and ".original_module." not in name]
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


def keep_trained_weights_in_float32(model: nn.Module) -> None:
    """The steps of a small learning rate vanish in bfloat16. FSDP2 and DeepSpeed keep a copy in float32 themselves."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()
