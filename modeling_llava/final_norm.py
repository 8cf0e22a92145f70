"""Shows accelerate's FSDP2 where the language model's final norm is, without a new name in any checkpoint."""

from torch import nn

from .modeling_llava import LlavaModel


def expose_final_norm(model: LlavaModel):
    """
    Makes the language model's final norm a child of `model` too, for training with FSDP2.

    accelerate keeps the output head and the final norm in one group, gathered when the norm runs, but it looks for the
    norm among the children of the backbone alone. Not found, TRL's loss gathers the head by itself, and its gradient
    stays that of one rank.
    """
    norms = [name for name, child in model.language_model.named_children() if "Norm" in type(child).__name__]
    if not norms:
        raise ValueError(
            f"`{type(model.language_model).__name__}` has no final norm among its children, which FSDP2 needs to keep "
            "the gradient of the output head right. Train it with DDP or ZeRO instead."
        )
    model.final_norm = model.language_model.get_submodule(norms[-1])
    own_prefix = f"language_model.{norms[-1]}."

    def drop_second_name(module: nn.Module, state_dict: dict, prefix: str, local_metadata: dict):
        for name in [name for name in state_dict if name.startswith(f"{prefix}final_norm.")]:
            del state_dict[name]

    def add_second_name(module: nn.Module, state_dict: dict, prefix: str, *args):
        for name in [name for name in state_dict if name.startswith(prefix + own_prefix)]:
            state_dict[f"{prefix}final_norm.{name.removeprefix(prefix + own_prefix)}"] = state_dict[name]

    model.register_state_dict_post_hook(drop_second_name)
    model.register_load_state_dict_pre_hook(add_second_name)
