"""The tokenizer of the micro halves: each word of the micro world is one token, any other text is bytes.

A word carries the space before it, as in most tokenizers, so that `USER:`, ` ASSISTANT:`, ` circle` and ` top-left`
are one token each. Nothing is learned: the vocabulary is what the world's sentences and the chat template are made of.
"""

from itertools import product

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from data_generation.microworld.scene import CELLS, COLOURS, SHAPES, SIZES
from data_generation.microworld.words import vocabulary


SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")
ROLES = ("USER:", " ASSISTANT:")
LESSON_WORDS = ("again",)  # of the language model's lessons alone
# Words with their hyphens are whole. A line end is a token of its own before any word.
PIECES = r" ?[A-Z]+:| ?[A-Za-z]+(?:[-'][A-Za-z]+)*| ?[^\sA-Za-z]|\s+(?!\S)|\s"
NOTHING = "empty"


def cell_word(cell: int, looks: tuple[str, str, str] | None) -> str:
    """A cell and what is in it as one word: `top-left-large-red-circle`, `centre-empty`."""
    return "-".join((CELLS[cell], *(looks or (NOTHING,))))


def cell_words() -> dict[str, tuple[str, ...]]:
    """Every word for a cell, with the words that it is made of."""
    contents = [None, *product(SIZES, COLOURS, SHAPES)]
    return {
        cell_word(cell, looks): (CELLS[cell], *(looks or (NOTHING,)))
        for cell in range(len(CELLS))
        for looks in contents
    }


def new_tokenizer() -> PreTrainedTokenizerFast:
    words = [*vocabulary(), *LESSON_WORDS, NOTHING, *cell_words()]
    # Without a space before them stand marks, and what can begin a text.
    bare = [word for word in words if not word[0].isalpha() or word[0].isupper()]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    whole = [to_bytes.pre_tokenize_str(text)[0][0] for text in (*ROLES, *bare, *(f" {word}" for word in words))]
    tokens = dict.fromkeys((*SPECIAL, *sorted(to_bytes.alphabet()), *whole))
    tokenizer = Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[], ignore_merges=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PIECES), "isolated"), to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    unk, bos, eos, pad = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=unk, bos_token=bos, eos_token=eos, pad_token=pad
    )
