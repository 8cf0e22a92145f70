"""Answers in words: TextVQA, VQAv2 and VizWiz against ten people, GQA against one answer."""

import re
from collections.abc import Sequence
from functools import lru_cache


ARTICLES = {"a", "an", "the"}
DIGITS = "zero one two three four five six seven eight nine ten"
NUMBERS = {word: str(number) for number, word in enumerate(DIGITS.split())} | {"none": "0"}
# What the benchmark writes with its apostrophes where an answer left one out.
APOSTROPHES = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've
    o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
    someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
    there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
    when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
    wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""
CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in APOSTROPHES.split()
    for place, mark in enumerate(word)
    if mark == "'"
}
PUNCTUATION = ';/[]"{}()=+\\_-><@`!'


@lru_cache(maxsize=1 << 20)
def normalize(text: str) -> str:
    r"""An answer as EvalAI's servers of VQA, TextVQA and VizWiz compare it.

    1. Lower case; commas and question marks go; "'s" becomes a word of its own; white space at the ends goes.
    2. Each of ; / [ ] " { } ( ) = + \ _ - > < @ ` ! goes wherever it stands if it stands beside a blank once, and
       otherwise becomes a blank.
    3. Full stops go unless a digit follows.
    4. Word by word: zero to ten and "none" become digits, articles go, "dont" becomes "don't".

    The benchmark's own code removes only the first 32 full stops, by a slip, and learns every word as a number that
    stands for itself; neither is repeated here.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = text.replace("\n", " ").replace("\t", " ").strip()
    before = text
    for mark in PUNCTUATION:
        text = text.replace(mark, "" if f"{mark} " in before or f" {mark}" in before else " ")
    text = re.sub(r"\.(?!\d)", "", text)
    words = (NUMBERS.get(word, word) for word in text.split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def soft(answer: str, people: Sequence[str]) -> float:
    """min(1, matches / 3) among nine of the ten people, averaged over which one is left out; normalised first.

    So 0, 1, 2, 3 and more people who said the same give 0, 0.3, 0.6, 0.9 and 1. An empty answer gets 0.
    """
    if not answer.strip():
        return 0.0
    matches, total = [normalize(one) for one in people].count(normalize(answer)), len(people)
    left_out = min(1, (matches - 1) / 3) * matches if matches else 0
    return (left_out + min(1, matches / 3) * (total - matches)) / total


def same(answer: str, truth: str) -> bool:
    """Equal after `normalize`, and not empty."""
    return bool(answer.strip()) and normalize(answer) == normalize(truth)


def gqa_form(text: str) -> str:
    """GQA: lower case, without full stops at the end; nothing else is forgiven."""
    return text.strip().rstrip(".").lower()
