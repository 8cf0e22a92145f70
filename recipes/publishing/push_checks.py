"""What refuses to be published: a checkpoint that stock transformers does not load."""

from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors import safe_open

from recipes.building.parts import check_finite, read_json
from recipes.publishing.push_files import Upload


def check_loads(folder: Path, uploads: list[Upload]) -> int:
    """Loads what would be published with stock transformers, weights without memory; gives the number of parameters.

    In a folder of its own, where there is nothing but that: whatever is missing there will be missing for others.
    """
    config = read_json(folder / "config.json")
    if config.get("model_type") != "llava":
        raise ValueError(
            f"`{folder / 'config.json'}` has the `model_type` {config.get('model_type')!r}, wanted `llava`. "
            "`llava convert` makes such a checkpoint of an original one."
        )
    if "auto_map" in config:
        raise ValueError(f"`{folder / 'config.json'}` has an `auto_map`: it needs code of its own. Remove that field.")
    if not any(upload.name.endswith(".safetensors") for upload in uploads):
        raise ValueError(f"`{folder}` has no model.safetensors. Give a checkpoint with its weights.")
    with TemporaryDirectory() as place:
        for upload in uploads:
            if "/" in upload.name:
                continue
            if isinstance(upload.source, bytes):
                Path(place, upload.name).write_bytes(upload.source)
            else:
                Path(place, upload.name).symlink_to(upload.source.resolve())
        parameters = load_stock_model(folder, place)
        load_stock_processor(folder, place, config)
    for upload in uploads:
        if upload.name.endswith(".safetensors") and "/" not in upload.name:
            with safe_open(upload.source, "pt") as file:
                check_finite(((name, file.get_tensor(name)) for name in file.keys()), str(upload.source))  # noqa: SIM118
    return parameters


def load_stock_model(folder: Path, place: str) -> int:
    from transformers import LlavaForConditionalGeneration
    from transformers.utils import logging

    shows_bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # our one line says what its report would
    try:
        model, report = LlavaForConditionalGeneration.from_pretrained(
            place, device_map={"": "meta"}, output_loading_info=True, local_files_only=True
        )
    except Exception as error:
        # Whatever transformers, safetensors or torch raise: to whoever would load it, it is all the same.
        raise ValueError(
            f"Stock transformers does not load `{folder}`: {first_line(error, place, folder)}. It was cut off, "
            "damaged or made for another class: write it again."
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        if shows_bars:
            logging.enable_progress_bar()
    for kind, words in (("missing_keys", "lacks"), ("unexpected_keys", "has, besides those of the model,")):
        if names := sorted(map(str, report[kind])):
            raise ValueError(
                f"`{folder}` {words} {len(names)} weights, such as `{names[0]}`: stock transformers would not load "
                "the model that was trained. Write the checkpoint again."
            )
    return sum(parameter.numel() for parameter in model.parameters())


def load_stock_processor(folder: Path, place: str, config: dict) -> None:
    from PIL import Image
    from transformers import AutoProcessor, LlavaProcessor

    content = [{"type": "image", "image": Image.new("RGB", (32, 24))}, {"type": "text", "text": "What is this?"}]
    try:
        processor = AutoProcessor.from_pretrained(place, local_files_only=True)
        if not isinstance(processor, LlavaProcessor):
            raise ValueError(f"its processor is a {type(processor).__name__}, wanted a LlavaProcessor")
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=True, return_dict=True, add_generation_prompt=True
        )
    except Exception as error:
        # As above.
        raise ValueError(
            f"Stock transformers does not load the processor of `{folder}`: {first_line(error, place, folder)}. "
            "Wanted processor_config.json, tokenizer files and a chat template, as `llava build` writes them."
        ) from error
    found = inputs["input_ids"][0].count(config["image_token_index"])
    if found != config["image_seq_length"]:
        raise ValueError(
            f"`{folder}`: the processor makes {found} image tokens of a picture, and the model wants "
            f"{config['image_seq_length']}. Processor and model are of two checkpoints."
        )


def first_line(error: Exception, place: str, folder: Path) -> str:
    """Of the folder that was given, not of the one that it was tried in."""
    lines = [line for line in str(error).replace(place, str(folder)).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(". ")[:300]
