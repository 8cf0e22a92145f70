"""Takes the projector of one checkpoint into another model: how stage 2 starts from another run's stage 1."""

from pathlib import Path

import torch
from transformers.integrations import is_deepspeed_zero3_enabled

from modeling_llava import LlavaConfig, LlavaForConditionalGeneration
from modeling_llava.convert_original import load_projector, original_projector
from recipes.building.original_files import locate, read_tensors, weight_files


def replace_projector(model: LlavaForConditionalGeneration, source: str) -> None:
    """`source`: a checkpoint of ours or of stock, or an original `mm_projector.bin`, alone or in its directory."""
    tensors = read_projector(source)
    if not is_deepspeed_zero3_enabled():
        load_projector(model, tensors, source)
        return
    import deepspeed

    # ZeRO-3 leaves empty tensors in place of its parts; gathered, rank 0 fills them for all.
    with deepspeed.zero.GatheredParameters(list(model.model.multi_modal_projector.parameters()), modifier_rank=0):
        load_projector(model, tensors, source)


def read_projector(source: str) -> dict[str, torch.Tensor]:
    """The projector's tensors under the names of the original."""
    path = Path(source)
    if path.is_file():
        return read_tensors([path])
    directory = locate(source)
    if (directory / "mm_projector.bin").is_file():
        return read_tensors([directory / "mm_projector.bin"])
    config = LlavaConfig.from_pretrained(directory)
    mark = "multi_modal_projector."
    tensors = read_tensors(weight_files(directory), keep=lambda name: mark in name)
    own_names = {name.split(mark)[1]: tensor for name, tensor in tensors.items()}
    return original_projector(own_names, config.projector_hidden_act, source)
