"""The tokenizer of the micro halves: byte-level BPE, learned from the micro world's own sentences."""

import random
from collections.abc import Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from data_generation.microworld.questions import all_questions
from data_generation.microworld.scene import scenes
from data_generation.microworld.words import captions


SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
LEARNED = 600  # tokens beyond bytes at most; the words of the world need fewer


def sentences(count: int) -> Iterator[str]:
    rng = random.Random("vocabulary")
    for scene in scenes("train", count):
        yield from captions(scene.things, rng)
        for question in rng.sample(found := all_questions(scene.things), min(20, len(found))):
            yield f"USER: {question.text} ASSISTANT: {question.answer}"


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Every word of the world is one token, and any text can be written."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=len(SPECIAL) + 256 + LEARNED,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=SPECIAL,
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(2000), trainer)
    unk, bos, eos, pad = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=unk, bos_token=bos, eos_token=eos, pad_token=pad
    )
