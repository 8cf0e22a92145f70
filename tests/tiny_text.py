"""Tiny tokenizers of the kinds that matter, trained in code on a few sentences, and a tiny processor."""

import copy
import json
from functools import cache

import torch
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    CLIPImageProcessorPil,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
)

from processing import LlavaProcessor, load_template
from recipes import build
from recipes.building.writing import write_checkpoint
from tests.tiny import IMAGE_SIZE, NUM_PATCHES, PATCH_SIZE, text_config, vision_config


SENTENCES = [
    "USER: What is in the image? ASSISTANT: A red circle is left of a blue square.",
    "A chat between a person and an assistant. The assistant answers politely.",
    "Human: How many triangles are there? Assistant: There are three green triangles.\n### [INST] system [/INST]",
    "the quick brown fox jumps over the lazy dog, 0123456789; (a) [b] {c} <d> e/f 'g' \"h\"!",
] * 4
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _special(*tokens: str) -> list[AddedToken]:
    return [AddedToken(token, special=True, normalized=False) for token in tokens]


def _llama() -> Tokenizer:
    """SentencePiece-like, as Llama 2 and Vicuna: `▁` for a space, one put before the text, bytes for unknown
    characters.
    """
    control = ["<unk>", "<s>", "</s>"]
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trained.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    learned = json.loads(trained.to_str())["model"]
    pieces = control + [f"<0x{byte:02X}>" for byte in range(256)] + sorted(learned["vocab"], key=learned["vocab"].get)
    merges = [tuple(merge) for merge in learned["merges"]]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(_special(*control))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", vocab["<s>"])]
    )
    return tokenizer


def _byte_level(split: str | None, trim_offsets: bool, control: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    if split is None:
        tokenizer.pre_tokenizer = byte_level
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(split), behavior="isolated"), byte_level]
        )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.add_special_tokens(_special(*control))
    return tokenizer


@cache
def tokenizer(kind: str = "llama", with_image_token: bool = True) -> PreTrainedTokenizerFast:
    """`llama` (Llama 2, Vicuna, Mistral), `qwen` (no BOS) or `llama_3`."""
    if kind == "llama":
        made = PreTrainedTokenizerFast(
            tokenizer_object=_llama(), bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
        )
    elif kind == "qwen":
        control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        made = PreTrainedTokenizerFast(
            tokenizer_object=_byte_level(QWEN_SPLIT, False, control), eos_token="<|im_end|>", pad_token="<|endoftext|>"
        )
    else:
        control = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|pad|>"]
        made = PreTrainedTokenizerFast(
            tokenizer_object=_byte_level(None, True, control),
            bos_token="<|begin_of_text|>",
            eos_token="<|eot_id|>",
            pad_token="<|pad|>",
        )
    if with_image_token:
        made.add_tokens(_special("<image>"), special_tokens=True)
    return made


def normalizing_tokenizer() -> PreTrainedTokenizerFast:
    """As `llama`, but with NFKC and without zero-width characters, and special tokens that are found after both."""
    backend = _llama()
    strip = normalizers.Replace(Regex("[\u200b-\u200d]"), "")
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), strip, backend.normalizer])
    special = [AddedToken(t, special=True, normalized=True) for t in ("<unk>", "<s>", "</s>", "<image>")]
    backend.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )


def clip_image_processor() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )


def siglip_image_processor() -> SiglipImageProcessorPil:
    return SiglipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})


def processor(kind: str = "llama", template: str = "vicuna_v1") -> LlavaProcessor:
    made = LlavaProcessor(
        image_processor=clip_image_processor(),
        tokenizer=tokenizer(kind),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=load_template(template),
    )
    assert made.num_image_tokens == NUM_PATCHES
    return made


def language_model_for(kind: str, language: str, seed: int = 0):
    """A tiny causal language model with the rows of that tokenizer, and a copy of the tokenizer without an image
    token.
    """
    torch.manual_seed(seed)
    made = copy.deepcopy(tokenizer(kind, with_image_token=False))
    config = text_config(
        language,
        vocab_size=len(made),
        bos_token_id=made.bos_token_id,
        eos_token_id=made.eos_token_id,
        pad_token_id=made.pad_token_id,
    )
    return AutoModelForCausalLM.from_config(config), made


def checkpoint(out, tower: str = "clip", language: str = "llama", kind: str = "llama", **choices):
    """A complete checkpoint of tiny parts, joined and written by `recipes.build`."""
    language_model, made = language_model_for(kind, language)
    torch.manual_seed(0)
    image_processor = siglip_image_processor() if tower == "siglip" else clip_image_processor()
    model, joined = build.join(
        AutoModel.from_config(vision_config(tower)), language_model, made, image_processor, **choices
    )
    write_checkpoint(model, joined, out)
    return model, joined
