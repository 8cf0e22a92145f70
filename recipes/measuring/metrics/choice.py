"""Multiple choice by letter: MMBench, SEED-Bench."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence


def letter(text: str, options: Mapping[str, str]) -> str | None:
    """The option that an answer chooses, or None. The first of these that holds decides:

    1. The text is a letter, with brackets or a mark around it: "B", "b", "(B)", "B.", "B)".
    2. It begins with a capital letter, a mark and a blank: "B. a cup", "(B) a cup", "B: a cup".
    3. It names exactly one capital letter in the form "answer is B", "answer: B" or "option B".
    4. It is the text of exactly one option, whatever the case and a full stop at the end.

    A letter that is no option is never chosen.
    """
    text = text.strip()
    whole = re.fullmatch(r"\(?([A-Za-z])[).:]*", text)
    if whole and whole[1].upper() in options:
        return whole[1].upper()
    start = re.match(r"\(?([A-Z])[).:]+\s", text)
    if start and start[1] in options:
        return start[1]
    form = r"(?i:\banswer is|\banswer:|\boption)\s+(?i:option\s+)?\(?([A-Z])\b"
    named = {found for found in re.findall(form, text) if found in options}
    # A letter that more words follow may be an article: "the answer is A cup".
    if len(named) == 1 and re.search(form + r"(?=[).,;:!]|\s*$)", text):
        return named.pop()
    plain = text.rstrip(".").lower()
    same = [name for name, option in options.items() if option.strip().rstrip(".").lower() == plain and plain]
    return same[0] if len(same) == 1 else None


def rotated(options: Mapping[str, str], rounds: int) -> dict[str, str]:
    """The options as the round shows them: each moves up one letter a round, the first goes to the end."""
    texts = list(options.values())
    rounds %= len(texts)
    return dict(zip(options, texts[rounds:] + texts[:rounds], strict=True))


def unrotated(shown: str, options: Mapping[str, str], rounds: int) -> str:
    """The letter that an option has in round 0, of the letter that the round shows it with."""
    letters: Sequence[str] = list(options)
    return letters[(letters.index(shown) + rounds) % len(letters)]


def circular(answers: Iterable[tuple[str, int, bool]]) -> dict[str, bool]:
    """A question is right if it is right in every rotation of its options. Those that lack a rotation are left out.

    Args:
        answers: the question, the number of its options, and whether one rotation of it was answered rightly.
    """
    rights: dict[tuple[str, int], list[bool]] = defaultdict(list)
    for name, num_options, right in answers:
        rights[name, num_options].append(right)
    return {name: all(found) for (name, num_options), found in rights.items() if len(found) == num_options}
