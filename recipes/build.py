"""Joins a vision tower and a language model into one LLaVA checkpoint; nothing is trained.

    llava build --vision openai/clip-vit-large-patch14-336 --language lmsys/vicuna-7b-v1.5 \
        --projector mlp --template vicuna_v1 --out checkpoints/llava-7b-start

What the parts say of themselves (patch size, tokens
per image, widths, stop tokens) is read or measured here and written once to the config and once to the processor.
"""

import argparse
from pathlib import Path

import torch
from jinja2 import TemplateError
from torch import nn
from transformers import (
    AddedToken,
    BaseImageProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from modeling_llava import LlavaConfig, LlavaForConditionalGeneration
from processing import LlavaProcessor, load_template
from processing.chat_templates import TEMPLATE_NAMES, own_template
from processing.images import image_processor_for, image_side
from recipes.building.parts import load_language_model, load_vision_tower
from recipes.building.writing import check_place, write_checkpoint
from recipes.run_folder import alone_writing


IMAGE_TOKEN = "<image>"
# Tokens a template writes that the language model may not have; where a template is not listed it ends answers with
# EOS.
TEMPLATE_TOKENS = {
    "chatml": ["<|im_start|>", "<|im_end|>"],
    "llama_3": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
}
TEMPLATE_STOPS = {"chatml": "<|im_end|>", "llama_3": "<|eot_id|>"}
OWN = "own"


def join(
    vision_tower: PreTrainedModel,
    language_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tower_image_processor: BaseImageProcessor,
    *,
    projector: str = "mlp",
    template: str = "vicuna_v1",
    aspect: str = "pad",
    vision_feature_layer: int = -2,
    vision_feature_select_strategy: str | None = None,
    system: str | None = None,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A LLaVA out of loaded parts, which become its own: the language model gets rows for new tokens, nothing is
    copied.
    """
    _check_head(language_model)
    tower_facts = measure_tower(vision_tower, tower_image_processor)

    chat_template, stop = _chat_template(tokenizer, template, system)
    _add_tokens(tokenizer, language_model, TEMPLATE_TOKENS.get(template, []))

    strategy = vision_feature_select_strategy or ("default" if tower_facts["extra_tokens"] else "full")
    image_processor = image_processor_for(tower_image_processor, aspect)
    if image_processor.crop_size is None:
        # SigLIP does not crop, but the stock processor counts image tokens from the crop size, for vLLM among others.
        height, width = image_side(image_processor)
        image_processor.crop_size, image_processor.do_center_crop = {"height": height, "width": width}, False
    processor = LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=tower_facts["patch_size"],
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=tower_facts["extra_tokens"],
        chat_template=chat_template,
        image_token=IMAGE_TOKEN,
    )
    tokenizer.chat_template = chat_template
    # Answers are generated in batches, where the prompts must end together; a training collator pads as it likes.
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"  # the second is what gets saved

    before = _text_logits(language_model)
    text_config = language_model.config
    text_config.pad_token_id = tokenizer.pad_token_id
    config = LlavaConfig(
        vision_config=vision_tower.config,
        text_config=text_config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=processor.num_image_tokens,
        projector_type=projector,
        vision_feature_layer=vision_feature_layer,
        vision_feature_select_strategy=strategy,
        tie_word_embeddings=text_config.tie_word_embeddings,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = _assemble(config, vision_tower, language_model)
    _check_same_on_text(before, _text_logits(model), language_model.config.model_type)
    _set_generation_config(model, language_model, tokenizer, stop)
    _check_encoding(processor)
    return model, processor


def _check_encoding(processor: LlavaProcessor):
    """Sends a conversation through the finished processor: a checkpoint that cannot be used is never written."""
    asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}
    answered = {"role": "assistant", "content": "A cat."}
    try:
        processor.encode_text([asked, answered], for_training=True)
        processor.encode_text([asked])
    except (ValueError, TemplateError) as error:
        raise ValueError(f"Tokenizer and chat template do not go together: {error}") from error


def measure_tower(tower: PreTrainedModel, image_processor: BaseImageProcessor) -> dict[str, int]:
    """Patch size, and how many tokens the tower puts before its patches, seen by showing it a black picture."""
    height, width = image_side(image_processor)
    patch = tower.config.patch_size
    patch = patch if isinstance(patch, int) else patch[0]
    black = torch.zeros(1, 3, height, width, dtype=tower.dtype, device=tower.device)
    try:
        with torch.no_grad():
            hidden_states = tower(black).last_hidden_state
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"The vision tower `{tower.config.model_type}` refuses the {width}x{height} pictures that its image "
            f"processor makes ({error}). Repair its preprocessor_config.json."
        ) from error
    if hidden_states.ndim != 3 or hidden_states.shape[2] != tower.config.hidden_size:
        raise ValueError(
            f"The vision tower `{tower.config.model_type}` gives features of the shape {tuple(hidden_states.shape)}, "
            f"wanted (images, tokens, {tower.config.hidden_size}). Use a vision transformer, such as CLIP or SigLIP."
        )
    tokens = hidden_states.shape[1]
    patches = (height // patch) * (width // patch)
    if tokens < patches:
        raise ValueError(
            f"The vision tower `{tower.config.model_type}` gives {tokens} tokens for a {width}x{height} picture, "
            f"wanted at least its {patches} patches of {patch} pixels. Towers that merge patches cannot be joined."
        )
    return {"patch_size": patch, "extra_tokens": tokens - patches}


def _check_head(language_model: PreTrainedModel):
    head = language_model.get_output_embeddings()
    if head is None:
        raise ValueError(
            f"`{type(language_model).__name__}` has no output embeddings. Load the language model as a causal one."
        )
    if getattr(head, "bias", None) is not None:
        raise ValueError(
            f"The output head of `{language_model.config.model_type}` has a bias, which a LLaVA checkpoint has no "
            "place for (Phi-1 and Phi-2 have one, Phi-3 has none). Choose another language model."
        )


def _chat_template(tokenizer: PreTrainedTokenizerBase, template: str, system: str | None) -> tuple[str, str]:
    """The chat template and the text of the token that ends an answer."""
    try:
        (system or "").encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"`--system` holds bytes that are no UTF-8: {error}. Write it in UTF-8.") from error
    control = {IMAGE_TOKEN, *TEMPLATE_TOKENS.get(template, []), *tokenizer.added_tokens_encoder}
    spelled = sorted(token for token in control if token.strip() and token in (system or ""))
    if spelled:
        raise ValueError(f"`--system` spells the control tokens {', '.join(spelled)}. Write it without them.")
    if template != OWN:
        stop = TEMPLATE_STOPS.get(template, tokenizer.eos_token)
        return load_template(template, system), stop
    if tokenizer.chat_template is None:
        raise ValueError(
            "`--template own` keeps the tokenizer's chat template, but this tokenizer has none. Choose one of "
            f"{', '.join(TEMPLATE_NAMES)}."
        )
    if system is not None:
        raise ValueError("`--system` goes with a template of this project, not with `--template own`. Leave it out.")
    stop = _stop_of(tokenizer)
    return own_template(tokenizer.chat_template, stop, tokenizer.special_tokens_map, IMAGE_TOKEN), stop


def _stop_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The token that the tokenizer's own template writes after an answer."""
    answer = "An answer."
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": "A question?"}, {"role": "assistant", "content": answer}], tokenize=False
        )
    except TemplateError as error:
        raise ValueError(
            f"The tokenizer's own template cannot write a question and an answer ({error}). Choose one of "
            f"{', '.join(TEMPLATE_NAMES)}."
        ) from error
    tail = text.rpartition(answer)[2].strip()
    for token in sorted(tokenizer.added_tokens_encoder, key=len, reverse=True):
        if tail.startswith(token):
            return token
    raise ValueError(
        f"The tokenizer's own template ends an answer with {tail!r}, which is no token of its own: a model could not "
        f"stop. Choose one of {', '.join(TEMPLATE_NAMES)}."
    )


def _add_tokens(tokenizer: PreTrainedTokenizerBase, language_model: PreTrainedModel, template_tokens: list[str]):
    new = [token for token in [IMAGE_TOKEN, *template_tokens] if token not in tokenizer.added_tokens_encoder]
    if tokenizer.pad_token is None:
        # Not EOS: the stop token is learned, padding never is.
        tokenizer.pad_token = tokenizer.unk_token or "<pad>"
        new += [] if tokenizer.unk_token else ["<pad>"]
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in new], special_tokens=True)

    embeddings, head = language_model.get_input_embeddings(), language_model.get_output_embeddings()
    rows = embeddings.weight.shape[0]
    means = [weight[:rows].float().mean(0) for weight in (embeddings.weight.data, head.weight.data)]
    needed = max(tokenizer.get_vocab().values()) + 1  # not its length: some tokenizers leave out numbers
    if needed > rows:
        # Whole tiles of 64 rows keep the matrix product with the head at full speed.
        language_model.resize_token_embeddings(needed, pad_to_multiple_of=64, mean_resizing=False)
    new_rows = sorted({*tokenizer.convert_tokens_to_ids(new), *range(rows, language_model.config.vocab_size)})
    if new_rows:
        tables = (language_model.get_input_embeddings(), language_model.get_output_embeddings())
        for table, mean in zip(tables, means, strict=True):
            table.weight.data[new_rows] = mean.to(table.weight.dtype)


def _assemble(
    config: LlavaConfig, vision_tower: PreTrainedModel, language_model: PreTrainedModel
) -> LlavaForConditionalGeneration:
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    wanted, given = type(model.model.language_model), type(language_model.base_model)
    if wanted is not given:
        raise ValueError(
            f"`{type(language_model).__name__}` wraps a `{given.__name__}`, wanted a `{wanted.__name__}`. Use a "
            "language model that `AutoModelForCausalLM` loads."
        )
    model.model.vision_tower = vision_tower
    model.model.language_model = language_model.base_model
    model.lm_head = language_model.get_output_embeddings()

    projector = model.model.multi_modal_projector.to_empty(device=language_model.device)
    for layer in projector.children():
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()  # torch's own initial values, as in the original
    projector.to(language_model.dtype)
    if config.projector_type == "linear":
        nn.init.eye_(projector.linear_2.weight)
        nn.init.zeros_(projector.linear_2.bias)
    vision_tower.to(language_model.dtype)
    model.config.dtype = language_model.dtype
    model.tie_weights()
    return model.eval()


@torch.no_grad()
def _text_logits(model: PreTrainedModel) -> torch.Tensor:
    ids = torch.arange(5, 13, device=model.device)[None] % model.get_input_embeddings().weight.shape[0]
    return model(input_ids=ids, use_cache=False).logits.float()


def _check_same_on_text(before: torch.Tensor, after: torch.Tensor, model_type: str):
    if not torch.allclose(before, after, atol=1e-4, rtol=1e-3):
        raise ValueError(
            f"Joined, `{model_type}` gives other logits on text (difference {(before - after).abs().max():.2g}): it "
            "changes them after its output head, as Gemma 2 and Cohere do, and the stock LLaVA class does not. "
            "Choose another language model."
        )


def _set_generation_config(
    model, language_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stop: str | None
):
    generation = language_model.generation_config
    if not generation.do_sample:
        # Vicuna ships a temperature without sampling, a mix that transformers refuses to save.
        generation.temperature = generation.top_p = generation.top_k = None
    eos = generation.eos_token_id if isinstance(generation.eos_token_id, list) else [generation.eos_token_id]
    stops = {tokenizer.convert_tokens_to_ids(stop)} if stop else set()
    generation.eos_token_id = sorted({*stops, *(token for token in eos if token is not None)})
    generation.pad_token_id = tokenizer.pad_token_id
    model.generation_config = generation


def summary(model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> str:
    config = model.config
    height, width = image_side(processor.image_processor)
    parts = [
        ("vision tower", model.model.vision_tower, f"{config.vision_config.model_type}, {width}x{height} pixels"),
        ("projector", model.model.multi_modal_projector, f"{config.projector_type}"),
        (
            "language model",
            model.model.language_model,
            f"{config.text_config.model_type}, {len(processor.tokenizer)} tokens",
        ),
    ]
    lines = [f"  {name:<15}{_millions(part):>10}  {words}" for name, part, words in parts]
    lines.append(f"  {'an image':<15}{processor.num_image_tokens:>10}  tokens in the text")
    return "\n".join(lines)


def _millions(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f} M"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llava build", description="Join two pretrained halves into one checkpoint.")
    parser.add_argument("--vision", required=True, help="vision tower: Hub id or directory (CLIP, SigLIP, DINOv2)")
    parser.add_argument("--language", required=True, help="language model: Hub id or directory of a causal text model")
    parser.add_argument("--out", required=True, type=Path, help="directory of the new checkpoint")
    parser.add_argument(
        "--projector", choices=["linear", "mlp"], default="mlp", help="linear: LLaVA; mlp: LLaVA-1.5 (%(default)s)"
    )
    parser.add_argument(
        "--template",
        choices=[*TEMPLATE_NAMES, OWN],
        default="vicuna_v1",
        help="chat format (%(default)s); own: the tokenizer's",
    )
    parser.add_argument("--system", help="system prompt written into the template; empty for none")
    parser.add_argument(
        "--aspect", choices=["pad", "square"], default="pad", help="pad to a square, or resize and crop (%(default)s)"
    )
    parser.add_argument(
        "--vision-feature-layer", type=int, default=-2, help="-2: before the last layer, -1: the last (%(default)s)"
    )
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "float16"],
        default="auto",
        help="auto: as the language model",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the projector's initial values (%(default)s)")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    with alone_writing(check_place(args.out)):
        build(args)


def build(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    language_model, tokenizer = load_language_model(args.language, args.dtype)
    tower, image_processor = load_vision_tower(args.vision, language_model.dtype)
    model, processor = join(
        tower,
        language_model,
        tokenizer,
        image_processor,
        projector=args.projector,
        template=args.template,
        aspect=args.aspect,
        vision_feature_layer=args.vision_feature_layer,
        system=args.system,
    )
    write_checkpoint(model, processor, args.out)
    print(f"{args.out}\n{summary(model, processor)}")


if __name__ == "__main__":
    main()
