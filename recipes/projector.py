"""Takes the projector of one checkpoint into another model: how stage 2 starts from another run's stage 1."""

from pathlib import Path

from modeling_llava import LlavaConfig, LlavaForConditionalGeneration
from modeling_llava.convert_original import load_projector, original_projector
from recipes.original_files import locate, read_tensors, weight_files


def replace_projector(model: LlavaForConditionalGeneration, source: str) -> None:
    """`source`: a checkpoint of ours or of stock, or an original `mm_projector.bin`, alone or in its directory."""
    path = Path(source)
    if path.is_file():
        load_projector(model, read_tensors([path]), source)
        return
    directory = locate(source)
    if (directory / "mm_projector.bin").is_file():
        load_projector(model, read_tensors([directory / "mm_projector.bin"]), source)
        return
    config = LlavaConfig.from_pretrained(directory)
    mark = "multi_modal_projector."
    tensors = read_tensors(weight_files(directory), keep=lambda name: mark in name)
    own_names = {name.split(mark)[1]: tensor for name, tensor in tensors.items()}
    load_projector(model, original_projector(own_names, config.projector_hidden_act, source), source)
