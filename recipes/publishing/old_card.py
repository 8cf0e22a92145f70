"""The card that a new one replaces: what a person wrote into it stays."""

import re
from typing import Any

import yaml

from data_generation.card import TO_FILL as TO_FILL_OF_DATA
from data_generation.card import YOURS
from recipes.publishing.push_files import CARD


TO_FILL = """

## Licence and terms

To be filled in by whoever publishes this:

- licence of this model (also as `license` in the header):
- terms of the base models and of the data that bind it:
"""
TO_FILL_OF_ROWS = TO_FILL.replace("of this model", "of this data set").replace(
    "the base models and of the data", "the sources"
)


def header_of(card: str) -> dict[str, Any]:
    """The YAML at the top of a card; nothing where there is none."""
    found = re.match(r"\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", card, re.DOTALL)
    if found is None:
        return {}
    try:
        header = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        raise ValueError(f"The header of a {CARD} is no YAML: {' '.join(str(error).split())}. Repair it.") from error
    return header if isinstance(header, dict) else {}


def without_header(card: str) -> str:
    return re.sub(r"\A\ufeff?---[ \t]*\r?\n.*?\r?\n---[ \t]*(\r?\n|$)", "", card, flags=re.DOTALL)


def old_words(old: str, to_fill: str = TO_FILL) -> str:
    """Below our line, what somebody wrote there; the whole text of a card that has no such line."""
    if YOURS in old:
        return old.partition(YOURS)[2]
    words = without_header(old).strip()
    return f"\n\n{words}\n" if words else to_fill


def own_words(card: str) -> str:
    """What a person wrote; nothing where there is only what we ask for."""
    words = old_words(card).strip()
    return "" if words in [asked.strip() for asked in (TO_FILL, TO_FILL_OF_ROWS, TO_FILL_OF_DATA)] else words


def joined(here: str, there: str) -> tuple[str, bool]:
    """The card of the folder with what people wrote into the Hub's, and whether other words of the Hub's are lost.

    Fields of the header are the folder's, and the Hub's where the folder's card has none. The words are the folder's
    where somebody wrote any, and else the Hub's.
    """
    if not here or not there:
        return here or there, False
    mine, theirs = own_words(here), own_words(there)
    header = header_of(there) | header_of(here)
    body = without_header(here)
    head = here.removesuffix(body)
    if header != header_of(here):
        head = f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n"
    if theirs and not mine:
        start = body.partition(YOURS)[0] if YOURS in body else ""
        return f"{head}{start}{YOURS}\n\n{theirs}\n", False
    return head + body, bool(theirs) and mine != theirs
