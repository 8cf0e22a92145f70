"""Turns checkpoints of the original LLaVA into checkpoints of this project, and a projector back.

    llava convert --from liuhaotian/llava-v1.5-7b --out checkpoints/llava-1.5-7b
    llava convert --from DIR --base lmsys/vicuna-7b-v1.5 --out checkpoints/mine
    llava convert --to-original checkpoints/mine --out mm_projector.bin

What DIR is (a full checkpoint, a stage-1 projector, a LoRA adapter, a delta) follows from its files. Names and
arithmetic of tensors are in `modeling_llava/convert_original.py`, reading the files in
`recipes/building/original_files.py`, tokenizer and prompts in `recipes/building/original_prompts.py`; here the parts
are loaded, joined and reported.
"""

import argparse
from collections import Counter
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from data_generation.replacing import replacing
from modeling_llava import LlavaForConditionalGeneration
from modeling_llava.convert_original import (
    Tensors,
    add_delta,
    check_names,
    check_projector_fits,
    check_shapes,
    is_original,
    language_config,
    listed,
    load_projector,
    looks_like_delta,
    original_projector,
    split,
)
from processing.chat_templates import TEMPLATE_NAMES
from recipes.build import OWN, join
from recipes.building.original_files import (
    KINDS,
    Original,
    locate,
    no_pickled_code,
    read_tensors,
    weight_files,
)
from recipes.building.original_prompts import (
    IMAGE_END,
    IMAGE_START,
    ORIGINAL_SYSTEM,
    add_image_tokens,
    keep_prompts_as_trained,
)
from recipes.building.parts import find_file, load_tokenizer, load_vision_tower, load_whole, read_json
from recipes.building.writing import check_place, write_checkpoint
from recipes.run_folder import alone_writing, told_when_full


def convert(
    source: str,
    out: str | Path,
    base: str | None = None,
    vision: str | None = None,
    template: str = "vicuna_v1",
    system: str | None = None,
    dtype: str = "auto",
) -> str:
    """Converts `source`, writes the checkpoint `out`, and returns the report."""
    check_place(out)
    original = Original(source, base)
    facts = original.facts
    tower, image_processor, tower_from = load_tower(original, vision)
    text_width = (read_base_config(base) if base else original.config).get("hidden_size")
    if text_width is not None:
        width = tower.config.hidden_size
        check_projector_fits(original.projector, width, text_width, source, tower_from, base or source)

    language_model, tokenizer = load_language(original, dtype)
    if facts.max_length:
        tokenizer.model_max_length = facts.max_length
    model, processor = join(
        tower,
        language_model,
        tokenizer,
        image_processor,
        projector=original.projector_type,
        template=template,
        aspect=facts.aspect,
        vision_feature_layer=facts.vision_feature_layer,
        vision_feature_select_strategy="full" if facts.keeps_class_token else None,
        system=ORIGINAL_SYSTEM.get(template) if system is None else system,
    )
    keep_prompts_as_trained(original, processor, template)
    load_projector(model, original.parts.projector, source)
    write_checkpoint(model, processor, out)
    return report(original, out, model, template, tower_from)


def load_tower(original: Original, vision: str | None):
    name = vision or original.facts.vision_tower
    if name is None:
        raise ValueError(
            f"`{original.source}` does not name its vision tower. Add `--vision` with a Hub id or directory."
        )
    try:
        with no_pickled_code(name):
            tower, image_processor = load_vision_tower(name, "auto")
    except OSError as error:
        hint = "" if vision else " It is the `mm_vision_tower` of config.json; give another place with `--vision`."
        raise OSError(f"The vision tower `{name}` cannot be loaded: {error}.{hint}") from error

    given = original.parts.vision
    if not given:
        return tower, image_processor, name
    wanted = tower.state_dict()
    check_names(given, wanted, original.source, "vision tower", f", compared with `{name}`")
    check_shapes(given, {key: t.shape for key, t in wanted.items()}, original.source, "vision tower", f"`{name}`")
    tower.load_state_dict(given)
    return tower, image_processor, original.source


def load_language(original: Original, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The language model and its tokenizer, whole: difference added, adapter merged, rows of `<im_start>` in place."""
    source, base, tensors = original.source, original.base, original.parts.language
    if original.kind in ("full", "delta"):
        if original.kind == "full" and looks_like_delta(tensors):
            raise ValueError(
                f"The weights of `{source}` are a difference to a base model (their final norm is about 0), useless "
                "alone. Add `--base` with the LLaMA that it was made from."
            )
        if original.kind == "delta":
            if not looks_like_delta(tensors):
                raise ValueError(
                    f"`{source}` is a full checkpoint and no difference to `{base}`: its final norm is not about 0. "
                    "Leave out `--base`."
                )
            tensors = add_delta(tensors, load_plain_base(base, "auto").state_dict(), source, base)
        return language_from_tensors(original.config, tensors, original.directory, source, dtype)

    model, tokenizer = load_base(base, dtype)
    use_trained_rows(original, model, tokenizer)
    if original.kind == "lora":
        model = merge_adapter(original, model)
    return model, tokenizer


def language_from_tensors(config: dict, tensors: Tensors, directory: Path, source: str, dtype: str):
    text_config = language_config(config, source)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(text_config)
    wanted = {key: tensor.shape for key, tensor in skeleton.state_dict().items()}
    if text_config.tie_word_embeddings and "lm_head.weight" not in tensors:
        wanted.pop("lm_head.weight")
    check_names(tensors, wanted, source, "language model")
    check_shapes(tensors, wanted, source, "language model")
    torch_dtype = tensors["model.embed_tokens.weight"].dtype if dtype == "auto" else getattr(torch, dtype)
    model = type(skeleton).from_pretrained(None, config=text_config, state_dict=tensors, dtype=torch_dtype)
    if (directory / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(directory)

    tokenizer = load_tokenizer(str(directory), text_config)
    add_image_tokens(tokenizer, config, text_config.vocab_size)
    if len(tokenizer) > text_config.vocab_size:
        raise ValueError(
            f"The tokenizer of `{source}` has {len(tokenizer)} tokens, but its language model has "
            f"{text_config.vocab_size} rows. Give the tokenizer files that belong to the weights."
        )
    return model, tokenizer


def read_base_config(name: str) -> dict:
    file = find_file(name, "config.json")
    if file is None:
        raise FileNotFoundError(
            f"The base `{name}` has no config.json. Give a Hub id or directory of a language model."
        )
    return read_json(file)


def load_base(name: str, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A language model, or the one inside an original LLaVA, on which the original's LoRA runs were often started."""
    config = read_base_config(name)
    if is_original(config):
        directory = locate(name)
        files = weight_files(directory)
        if not files:
            raise FileNotFoundError(
                f"The base `{name}` is an original LLaVA without full weights. Give a complete one."
            )
        return language_from_tensors(config, split(read_tensors(files)).language, directory, name, dtype)
    return load_plain_base(name, dtype), load_tokenizer(name)


def load_plain_base(name: str, dtype: str) -> PreTrainedModel:
    config = read_base_config(name)
    if is_original(config) or "text_config" in config:
        raise ValueError(f"The base `{name}` is more than a language model. Give the language model alone.")
    with no_pickled_code(name):
        return load_whole(AutoModelForCausalLM, name, dtype=dtype)


def use_trained_rows(original: Original, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
    """Embeddings in the file beside the projector: trained ones of `<im_start>` and `<im_end>`, or a mere copy."""
    tensors, source = dict(original.parts.language), original.source
    rows = tensors.pop("model.embed_tokens.weight", None)
    check_names(tensors, [], source, "file", " beside the projector")
    table = model.get_input_embeddings().weight.data
    if not original.facts.has_image_start_end:
        if rows is None:
            return
        same = min(len(rows), len(table))
        if rows.shape[1] != table.shape[1] or not is_near(rows[:same], table[:same]):
            raise ValueError(
                f"`{source}` comes with embeddings that are not those of `{original.base}`. Give the base it was "
                "trained on."
            )
        original.parts.left_out["model.embed_tokens.weight"] = "embeddings, the same as the base's"
        return
    if rows is None:
        if IMAGE_START in tokenizer.get_vocab():
            return  # the base is an original LLaVA that has them
        raise ValueError(
            f"`{source}` says `mm_use_im_start_end: true`, but its files lack `model.embed_tokens.weight`, so what it "
            f"learned for `{IMAGE_START}` and `{IMAGE_END}` is lost. Give a full checkpoint of this model."
        )

    old = len(table)
    add_image_tokens(tokenizer, original.config, rows=len(tokenizer) + 3)
    if len(rows) not in (2, len(tokenizer)) or rows.shape[1] != table.shape[1]:
        raise ValueError(
            f"`model.embed_tokens.weight` of `{source}` is {tuple(rows.shape)}, wanted ({len(tokenizer)}, "
            f"{table.shape[1]}) or (2, {table.shape[1]}), for the {len(tokenizer)} tokens of `{original.base}` with "
            f"`{IMAGE_START}` and `{IMAGE_END}`."
        )
    model.resize_token_embeddings(max(len(tokenizer), old), mean_resizing=False)
    places = tokenizer.convert_tokens_to_ids([IMAGE_START, IMAGE_END])
    inputs, outputs = model.get_input_embeddings().weight.data, model.get_output_embeddings().weight.data
    for weight in (inputs, outputs):
        weight[old:] = weight[:old].mean(0)  # as in the original, which never trains the rows of the head
    inputs[places] = rows[-2:].to(inputs.dtype)


def is_near(given: torch.Tensor, wanted: torch.Tensor) -> bool:
    """The same but for the rounding of 16-bit numbers."""
    return bool((given.float() - wanted.float()).norm() <= 0.01 * wanted.float().norm())


def merge_adapter(original: Original, model: PreTrainedModel) -> PreTrainedModel:
    source, adapter = original.source, original.adapter
    config = PeftConfig.from_pretrained(original.directory)
    if not isinstance(config, LoraConfig):
        raise ValueError(f"The adapter of `{source}` is a {config.peft_type.value}, wanted LORA.")
    elsewhere = [key for key in adapter if ".vision_tower." in key or ".mm_projector." in key]
    if elsewhere:
        raise ValueError(
            f"The adapter of `{source}` also changes {len(elsewhere)} tensors outside the language model "
            f"({listed(elsewhere)}). The original does so by accident when the tower is in memory before the adapter, "
            "and drops them when it loads the model again: which of the two models is meant cannot be known."
        )
    config.base_model_name_or_path = None  # where the base lay on another machine
    wrapped = get_peft_model(model, config)
    wanted = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    check_names(adapter, wanted, source, "adapter", f", compared with `{original.base}` and adapter_config.json")
    check_shapes(adapter, {key: t.shape for key, t in wanted.items()}, source, "adapter", "adapter_config.json")
    set_peft_model_state_dict(wrapped, adapter)
    return wrapped.merge_and_unload(progressbar=True, safe_merge=True)


def report(original: Original, out: Path, model: LlavaForConditionalGeneration, template: str, tower_from: str) -> str:
    """What was converted, what came from elsewhere, what was left out and why."""
    source, parts, facts = original.source, original.parts, original.facts
    language = {
        "full": f"`{source}`",
        "delta": f"`{source}` added to `{original.base}`",
        "projector": f"`{original.base}`",
        "lora": f"`{original.base}`, {len(original.adapter)} adapter tensors of `{source}` merged",
    }[original.kind]
    rows = [
        (
            "language model",
            [key for key in model.state_dict() if "language_model." in key or "lm_head." in key],
            language,
        ),
        ("projector", parts.projector, f"`{source}`, {original.projector_type}"),
        ("vision tower", model.model.vision_tower.state_dict(), f"`{tower_from}`"),
    ]
    lines = [f"Converted the {KINDS[original.kind]} `{source}` to `{out}` ({str(model.dtype).removeprefix('torch.')})"]
    lines += [f"  {part:<15}{len(tensors):>5} tensors  from {place}" for part, tensors, place in rows]
    lines += [
        f"  {'left out':<15}{number:>5} tensors  {why}" for why, number in Counter(parts.left_out.values()).items()
    ]
    feature = "class token and patches" if facts.keeps_class_token else "patches"
    lines.append(f"  {feature} of layer {facts.vision_feature_layer}, aspect {facts.aspect}, template {template}")
    return "\n".join(lines + [f"  note: {note}" for note in original.notes])


def to_original(source: str, out: str | Path) -> str:
    """Writes the projector of one of our (or a stock) checkpoint as the original's mm_projector.bin."""
    out = Path(out)
    if out.exists():
        raise ValueError(f"`{out}` exists. Choose another name, or remove it.")
    directory = locate(source)
    config_file = directory / "config.json"
    if not config_file.exists():
        raise FileNotFoundError(f"`{source}` has no config.json. Give the directory of a checkpoint.")
    config = read_json(config_file)
    if "text_config" not in config:
        raise ValueError(f"`{source}` is no checkpoint of this project or of stock transformers: no `text_config`.")
    if isinstance(config.get("vision_feature_layer"), list):
        raise ValueError(
            f"The projector of `{source}` takes features of several layers ({config['vision_feature_layer']}); the "
            "original's takes those of one."
        )
    name = "multi_modal_projector."
    found = read_tensors(weight_files(directory), keep=lambda key: name in key)
    projector = {key.rpartition(name)[2]: tensor for key, tensor in found.items()}
    tensors = original_projector(projector, config.get("projector_hidden_act", "gelu"), source)

    with told_when_full(out, "Nothing is left of it. Make space, or give another --out."), replacing(out) as file:
        torch.save({key: tensor.clone() for key, tensor in tensors.items()}, file)
    rows, columns = projector["linear_1.weight"].shape
    return f"Wrote the projector of `{source}` ({columns} to {rows} wide) to `{out}`: {', '.join(tensors)}"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llava convert",
        description="Turn checkpoints of the original LLaVA into this format, or a projector back.",
    )
    direction = parser.add_mutually_exclusive_group(required=True)
    direction.add_argument(
        "--from",
        dest="source",
        metavar="DIR",
        help="original checkpoint: directory, Hub id, or a projector's .bin file",
    )
    direction.add_argument("--to-original", metavar="DIR", help="checkpoint of this project whose projector to write")
    parser.add_argument("--out", required=True, type=Path, help="new directory; with --to-original, new .bin file")
    parser.add_argument("--base", help="language model (Hub id or directory) under a stage-1 projector, LoRA or delta")
    parser.add_argument("--vision", help="vision tower (Hub id or directory), if not the one that config.json names")
    parser.add_argument(
        "--template",
        choices=[*TEMPLATE_NAMES, OWN],
        default="vicuna_v1",
        help="chat format the model was trained with; llava_v0 for the first models (%(default)s)",
    )
    parser.add_argument(
        "--system", help="system prompt the model was trained with, if not the original's; empty: none"
    )
    parser.add_argument(
        "--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto", help="auto: as the weights"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    with alone_writing(args.out):
        if args.to_original:
            print(to_original(args.to_original, args.out))
            return
        words = {"system": args.system, "dtype": args.dtype}
        print(convert(args.source, args.out, args.base, args.vision, args.template, **words))


if __name__ == "__main__":
    main()
