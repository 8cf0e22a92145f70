"""Tokenizer and chat template of an original LLaVA: a converted model is fed what the original was, to the token."""

from transformers import PreTrainedTokenizerBase

from processing import LlavaProcessor
from recipes.build import IMAGE_TOKEN
from recipes.building.original_files import Original


IMAGE_PATCH, IMAGE_START, IMAGE_END = "<im_patch>", "<im_start>", "<im_end>"
# What the released models were trained with; the templates of this project have words of their own.
ORIGINAL_SYSTEM = {
    template: f"A chat between a curious {role} and an artificial intelligence assistant. "
    f"The assistant gives helpful, detailed, and polite answers to the {role}'s questions."
    for template, role in (("vicuna_v1", "user"), ("llava_v0", "human"))
}
# The original tokenizes the text before and after an image apart, so both begin with the space that the tokenizer puts
# before a text. Within one text it may put none there (`legacy` false), and the template has to write it: at these
# places (of the templates in processing/templates), with a space.
SPACED = [
    ('{{- bos_token or "" -}}', '{{- bos_token ~ " " if bos_token else "" -}}'),
    ('(bos_token or "") ~ "[INST] "', '(bos_token or "") ~ (" " if loop.first else "") ~ "[INST] "'),
    (f"{IMAGE_TOKEN}\\n", f"{IMAGE_TOKEN} \\n"),
    ('{{- turn["text"] ~ "\\n" -}}', '{{- " " ~ turn["text"] ~ "\\n" -}}'),
]
PROBE = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
    {"role": "user", "content": [{"type": "text", "text": "Why?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "It purrs."}]},
]


def add_image_tokens(tokenizer: PreTrainedTokenizerBase, config: dict, rows: int):
    """The tokens that the original adds while loading, where tokenizer files were saved without them."""
    wanted = [IMAGE_PATCH] if config.get("mm_use_im_patch_token", True) else []
    wanted += [IMAGE_START, IMAGE_END] if config.get("mm_use_im_start_end") else []
    missing = [token for token in wanted if token not in tokenizer.get_vocab()]
    if len(tokenizer) + len(missing) <= rows:
        tokenizer.add_tokens(missing, special_tokens=True)
    elif IMAGE_START in missing or IMAGE_END in missing:
        raise ValueError(
            f"config.json says `mm_use_im_start_end: true`, but the {rows} rows of the language model leave no place "
            f"for `{IMAGE_START}` and `{IMAGE_END}` beside the tokenizer's {len(tokenizer)} tokens. Give matching "
            "files."
        )


def keep_prompts_as_trained(original: Original, processor: LlavaProcessor, name: str):
    """Makes the chat template write what the original fed this model, to the token; `name` is the template's."""
    template = processor.chat_template
    probe = PROBE[:2] if name == "plain" else PROBE  # which is for one image and its caption
    if original.facts.has_image_start_end:
        template = template.replace(f"{IMAGE_TOKEN}\\n", f"{IMAGE_START}{IMAGE_TOKEN}{IMAGE_END}\\n")
    candidates = [template]
    for place, spaced in SPACED:
        candidates += [candidate.replace(place, spaced) for candidate in candidates if place in candidate]

    wanted = ids_of_original(processor, template, probe)
    exact = [candidate for candidate in candidates if ids_of(processor, candidate, probe) == wanted]
    if not exact:
        original.notes.append("around images, prompts are tokenized a little differently than in the original")
    ids = ids_of(processor, (exact or candidates)[0], probe)
    if original.facts.has_image_start_end:
        start, end = processor.tokenizer.convert_tokens_to_ids([IMAGE_START, IMAGE_END])
        first = ids.index(processor.image_token_id)
        if (ids[first - 1], ids[first + processor.num_image_tokens]) != (start, end):
            raise ValueError(
                f"`{original.source}` was trained with `{IMAGE_START}` and `{IMAGE_END}` around each image, and this "
                "template cannot be made to write them. Choose another, such as `--template llava_v0`."
            )
        original.notes.append(
            f"the template writes `{IMAGE_START}` and `{IMAGE_END}` around each image, as in training"
        )
        if name != "llava_v0":
            original.notes.append("models with these tokens are of the first release, whose format is `llava_v0`")


def ids_of(processor: LlavaProcessor, template: str, probe: list[dict]) -> list[int]:
    processor.chat_template = processor.tokenizer.chat_template = template
    return processor.encode_text(probe, for_training=True).input_ids


def ids_of_original(processor: LlavaProcessor, template: str, probe: list[dict]) -> list[int]:
    """Ids of a conversation in the original's way: text cut at the images, each piece tokenized as its own text."""
    tokenizer = processor.tokenizer
    text = tokenizer.apply_chat_template(probe, chat_template=template, tokenize=False)
    start = [tokenizer.bos_token_id] if tokenizer.bos_token and text.startswith(tokenizer.bos_token) else []
    pieces = text.removeprefix(tokenizer.bos_token or "").split(IMAGE_TOKEN)
    ids = [tokenizer(piece, add_special_tokens=False).input_ids for piece in pieces]
    image = [processor.image_token_id] * processor.num_image_tokens
    return sum((image + piece for piece in ids[1:]), start + ids[0])
