"""Runs the vision tower as far as its features are used, and with a graph only when something wants a gradient."""

import torch
from torch import nn
from transformers import CLIPVisionModel, Dinov2Model, Dinov2WithRegistersModel, SiglipVisionModel
from transformers.utils import is_torchdynamo_compiling


# class of a tower -> names of what runs between the embeddings and the layers, and of the list of layers.
# Exactly these are walked layer by layer and stop early; anything else, wrappers of these included, runs whole.
WALKABLE_TOWERS = {
    CLIPVisionModel: ("pre_layrnorm", "layers"),
    SiglipVisionModel: (None, "layers"),
    Dinov2Model: (None, "layer"),
    Dinov2WithRegistersModel: (None, "layer"),
}


def tower_grad_mode(tower: nn.Module, pixel_values: torch.Tensor):
    """A context without gradients when the tower is frozen.

    Gradient checkpointing makes the embeddings of every sub-model require a gradient, the frozen tower's too; it would
    then be kept in memory, recomputed and differentiated for nothing.
    """
    trainable = pixel_values.requires_grad or any(p.requires_grad for p in tower.parameters())
    return torch.set_grad_enabled(torch.is_grad_enabled() and trainable)


def tower_hidden_states(tower: nn.Module, pixel_values: torch.Tensor, layers: list[int]) -> list[torch.Tensor]:
    """The outputs of `layers`, each (images, 1 + patches, width), without running the layers above them."""
    # What others put around the tower only works when the tower itself is called: hooks (FSDP, DeepSpeed, a user's
    # own), a replaced `forward` (accelerate's device placement) and `tower.compile()`.
    wrapped = tower._forward_hooks or tower._forward_pre_hooks or "forward" in tower.__dict__
    wrapped = wrapped or tower._compiled_call_impl is not None or type(tower) not in WALKABLE_TOWERS
    # transformers' own hooks on the layers, there once it has captured hidden states, can be traced from within the
    # tower only. What nothing uses is left out of a graph anyway.
    hooked_inside = getattr(tower, "_output_capturing_hooks_installed", False)
    if wrapped or (hooked_inside and is_torchdynamo_compiling()):
        hidden_states = tower(pixel_values, output_hidden_states=layers, return_dict=True).hidden_states
        return [hidden_states[layer] for layer in layers]

    norm_name, list_name = WALKABLE_TOWERS[type(tower)]
    blocks = getattr(tower.encoder, list_name)
    wanted = [layer % (len(blocks) + 1) for layer in layers]  # -2 of 24 layers: the output of the 23rd
    hidden_states = tower.embeddings(pixel_values)
    if norm_name is not None:
        hidden_states = getattr(tower, norm_name)(hidden_states)
    outputs = [hidden_states]
    for block in blocks[: max(wanted)]:
        outputs.append(block(outputs[-1], None))
    return [outputs[layer] for layer in wanted]


def select_features(hidden_states: list[torch.Tensor], strategy: str) -> torch.Tensor:
    """One tensor of features: `default` drops the class token, several layers are concatenated in width."""
    if strategy == "default":
        hidden_states = [h[:, 1:] for h in hidden_states]
    return hidden_states[0] if len(hidden_states) == 1 else torch.cat(hidden_states, dim=-1)
