"""The noun phrases of captions, by one of three extractors:

- `textblob`: parts of speech from textblob's lexicon and suffix rules, phrases by a pattern over them. English.
- `stopwords`: what stands between function words and frequent verbs. Needs nothing, and is worse. English.
- `spacy:<model>`: spaCy's parser, which the paper used, with a model by name or path.

Phrases are in lower case, without articles and numbers, with a singular head: "two red buses" gives `red bus`.
"""

import importlib
import re
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any


Extractor = Callable[[list[str]], list[list[str]]]  # phrases of each caption, each phrase once

TOKEN = re.compile(r"\w+(?:[-‐]\w+)*|['’]s\b|[^\w\s]")
# One letter per word: Noun, aDjective, deTerminer, Conjunction, Participle, x for others. A participle counts as an
# adjective behind an article only ("a parked car", but "people walking dogs").
PHRASE = re.compile(r"(?:(?<=T)P)?(?:D(?:CD)?)*N+")
LETTERS = {"NN": "N", "JJ": "D", "DT": "T", "CD": "T", "PDT": "T", "PRP$": "T", "CC": "C", "VBN": "P", "VBG": "P"}
# The lexicon takes these for adjectives.
QUANTIFYING_WORDS = "many several few other more most various such much own same another each every all both"
QUANTIFIERS = frozenset(QUANTIFYING_WORDS.split())

FUNCTION_WORDS = """
    a about above across after against ago all along also although am among an and another any are around as at
    away back be because been before behind being below beneath beside besides between beyond both but by can could
    did do does doing done down during each either else every few for from get gets getting got had has have having
    he her here hers him his how however i if in inside into is it its itself just many may me might more most much
    must my near no nor not of off on one onto or other others our out outside over own past per she should since
    so some such than that the their them themselves then there these they this those through to together too
    toward towards two three four five six seven eight nine ten under until up upon us very was we were what when
    where which while who whom whose why will with within without would you your sit sits sitting stand stands
    standing walk walks walking ride rides riding hold holds holding wear wears wearing look looks looking lie lies
    lying lay lays laying run runs running play plays playing eat eats eating fly flies flying jump jumps jumping
    drive drives driving show shows showing shown make makes making made take takes taking taken stare stares
    staring carry carries carrying talk talks talking smile smiles smiling pose poses posing hang hangs hanging
    fill filled filling cover covered covering surround surrounded surrounding attend attends attending perform
    performs performing arrive arrives arriving watch watches watching cross crosses crossing enjoy enjoys enjoying
    several various next front
"""


def make_extractor(name: str) -> Extractor:
    if name == "textblob":
        return _textblob()
    if name == "stopwords":
        return _stopwords
    if name.startswith("spacy:"):
        return _spacy(name.removeprefix("spacy:"))
    raise ValueError(f"`{name}` is no extractor of noun phrases; wanted textblob, stopwords or spacy:<model>.")


def describe_extractor(name: str) -> str:
    """The extractor with the version of its library, for the record."""
    library = name.partition(":")[0]
    try:
        return f"{name} {version(library)}"
    except PackageNotFoundError:
        return name


def load_optional(module: str, remedy: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"`{module}` cannot be imported: {error}. {remedy}") from error


def _textblob() -> Extractor:
    remedy = 'pip install "visual-instruction-tuning[concepts]", or take the extractor `stopwords`.'
    english = load_optional("textblob.en", remedy)
    inflect = load_optional("textblob.en.inflect", remedy)
    # Neither depends on the words around: each word is looked up once.
    singular = cache(inflect.singularize)

    @cache
    def letter(word: str) -> str:
        if word in QUANTIFIERS:
            return "T"
        tag = english.parser.find_tags([word])[0][1] or "NN"
        return "N" if tag.startswith("NNP") else LETTERS.get(tag.rstrip("SR") if tag[:2] in ("NN", "JJ") else tag, "x")

    def extract(captions: list[str]) -> list[list[str]]:
        found = []
        for caption in captions:
            words = TOKEN.findall(caption.lower())
            letters = "".join([letter(word) if word[0].isalnum() else "x" for word in words])
            phrases: dict[str, None] = {}
            for match in PHRASE.finditer(letters):
                start, end = match.span()
                phrases[" ".join([*words[start : end - 1], singular(words[end - 1])])] = None
            found.append(list(phrases))
        return found

    return extract


STOPWORDS = frozenset(FUNCTION_WORDS.split())


def _stopwords(captions: list[str]) -> list[list[str]]:
    found = []
    for caption in captions:
        phrases: dict[str, None] = {}
        run: list[str] = []
        for word in [*TOKEN.findall(caption.lower()), "."]:
            if word[0].isalpha() and word not in STOPWORDS:
                run.append(word)
            elif run:
                phrases[" ".join([*run[:-1], _singular(run[-1])])] = None
                run = []
        found.append(list(phrases))
    return found


def _singular(word: str) -> str:
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is", "as", "os")):
        return word
    if word.endswith("ies"):
        return f"{word[:-3]}y"
    return word[:-2] if word.endswith(("ches", "shes", "xes", "sses")) else word[:-1]


def _spacy(model: str) -> Extractor:
    spacy: Any = load_optional("spacy", "pip install spacy, and get a model with a parser, such as en_core_web_sm.")
    try:
        nlp = spacy.load(model, exclude=["ner"])
    except OSError as error:
        raise ValueError(f"spaCy has no model `{model}`: {error} Install it, or give the path of one.") from error
    if "parser" not in nlp.pipe_names:
        raise ValueError(f"The spaCy model `{model}` has no parser, and noun phrases need one. Take another model.")

    def extract(captions: list[str]) -> list[list[str]]:
        found = []
        for document in nlp.pipe(captions, batch_size=256):
            phrases: dict[str, None] = {}
            for chunk in document.noun_chunks:
                words = [token for token in chunk if token.pos_ not in ("DET", "NUM", "PRON", "PUNCT")]
                if words:
                    phrases[" ".join([*(word.lower_ for word in words[:-1]), words[-1].lemma_.lower()])] = None
            found.append(list(phrases))
        return found

    return extract
