"""What a good reply may not be: cut short, a refusal, empty, too short or long, or telling of captions and boxes."""

import re
from dataclasses import dataclass

from .rejections import Rejected


@dataclass(frozen=True)
class Limits:
    """Bounds, both ends allowed; lengths in characters, which mean something in every language."""

    turns: tuple[int, int]
    question: tuple[int, int]
    answer: tuple[int, int]


LIMITS = {
    "conversation": Limits(turns=(1, 20), question=(4, 600), answer=(1, 4000)),
    "detail": Limits(turns=(1, 1), question=(0, 600), answer=(80, 8000)),
    "reasoning": Limits(turns=(1, 1), question=(8, 800), answer=(40, 8000)),
}

# As servers say it that speak the OpenAI API more or less; some give no reason.
FINISHED = {"stop", "eos", "eos_token", "end_turn", "stop_sequence", None}
CUT = {"length", "max_tokens"}

REFUSAL = re.compile(
    r"\W*(?:(?:i[’']?m|i am) (?:really |very |so )?(?:sorry|unable|not able)\b|sorry,? (?:but )?(?:i|as)\b"
    r"|my apologies|i (?:can(?:no|['’])?t|do(?: not|n['’]t)) (?:see|view|access|open|display|assist|help|fulfil"
    r"|provide|comply|process|create|generate|have access)|as an? (?:ai|artificial|text|large|language)\b"
    r"|(?:there is )?no image (?:was|is|has been) (?:provided|attached|given|shown))",
    re.IGNORECASE,
)
MACHINE = re.compile(r"\bas an? (?:ai|artificial intelligence|large language model|language model)\b", re.IGNORECASE)

# Sources the teacher was told not to name. Each wants words that only point at the annotations: a poster may have a
# caption, and clothes may coordinate.
_SOURCE = r"(?:captions?|bounding[ -]?box(?:es)?|bbox(?:es)?|annotations?|object (?:list|labels)|coordinates)"
_GIVEN = r"(?:given|provided|supplied|listed|above|following|accompanying|these|those|available)"
_SAYS = r"(?:say|mention|state|describe|note|suggest|indicate|tell|specif|show|impl|do(?:es)? not|don['’]t|doesn['’]t)"
LEAKS = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\bbounding[ -]?box(?:es)?\b|\bbbox(?:es)?\b",
        rf"\b{_GIVEN} (?:\w+ )?(?:{_SOURCE}|(?:image |scene |text(?:ual)? )?descriptions?|sentences?)\b",
        rf"\b(?:according to|based on|from|judging by|as per|per|in|by) (?:all |both |some of |one of )?the "
        rf"(?:\w+ )?{_SOURCE}\b(?! (?:of|on|under|below|above|beneath)\b)",
        rf"\bthe {_SOURCE} (?:all |also |clearly |both )?{_SAYS}\w*",
        rf"\b(?:{_SAYS}\w*|given|written|mentioned|described) (?:in|by) (?:the )?{_SOURCE}\b(?! (?:of|on|under)\b)",
        r"\b(?:normali[sz]ed|box|x|y|pixel) coordinates\b",
        # 0.123, 0.456: nobody reads that off a picture
        r"[\[(]?\b[01]\.\d{2,3}\s*,\s*[01]\.\d{1,3}\b",
    )
]


def check_reply(text: str | None, finish_reason: str | None) -> str:
    """The reply's text, stripped, with plain line ends."""
    if finish_reason in CUT:
        raise Rejected("truncated", "the reply was cut at the limit of tokens. Raise the limit or ask again.")
    if finish_reason == "content_filter":
        raise Rejected("filtered", "the server's content filter stopped the reply.")
    if finish_reason not in FINISHED:
        raise Rejected("odd-finish", f"the reply ended with {finish_reason!r}, wanted 'stop'.")
    if text is None or not text.strip():
        raise Rejected("empty-reply", "the reply has no words.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Rejected("bad-unicode", f"half a surrogate pair at character {error.start} of the reply.") from error
    text = text.replace("\r\n", "\n").replace("\r", "\n").strip()
    if REFUSAL.match(text):
        raise Rejected("refusal", f"the reply begins with {text[:80]!r}.")
    return text


def check_turns(kind: str, turns: list[tuple[str, str]]) -> None:
    limits = LIMITS[kind]
    _check_number("turns", len(turns), limits.turns, ("too-few-turns", "too-many-turns"))
    asked: set[str] = set()
    for number, (question, answer) in enumerate(turns, 1):
        where = f"of turn {number}"
        if not answer or (not question and limits.question[0] > 0):
            raise Rejected("empty-turn", f"the {'question' if answer else 'answer'} {where} has no words.")
        _check_number(f"characters of the question {where}", len(question), limits.question, LENGTH_REASONS)
        _check_number(f"characters of the answer {where}", len(answer), limits.answer, LENGTH_REASONS)
        try:
            f"{question}{answer}".encode()
        except UnicodeEncodeError as error:  # JSON can spell what text cannot hold
            raise Rejected("bad-unicode", f"half a surrogate pair in turn {number}.") from error
        refusal = REFUSAL.match(answer) or MACHINE.search(answer)
        if refusal:
            raise Rejected("refusal", f"the answer {where} says {refusal[0].strip()!r}.")
        for text in (question, answer):
            leak = next((found for pattern in LEAKS if (found := pattern.search(text))), None)
            if leak:
                raise Rejected("names-its-source", f"turn {number} says {leak[0]!r}, which is not in the picture.")
        key = " ".join(question.lower().split())
        if key in asked:
            raise Rejected("repeated-question", f"turn {number} asks {question[:80]!r} again.")
        asked.add(key)


LENGTH_REASONS = ("too-short", "too-long")


def _check_number(what: str, found: int, bounds: tuple[int, int], reasons: tuple[str, str]) -> None:
    if not bounds[0] <= found <= bounds[1]:
        raise Rejected(reasons[found > bounds[1]], f"{found:,} {what}, wanted {bounds[0]:,} to {bounds[1]:,}.")
