"""How many ScienceQA problems a file of answers gets right, in all and for each column of the paper's table.

    answers = read_predictions(Path("answers.jsonl"))
    missing = check_ids(answers, problems, allow_missing=False, name="answers.jsonl")
    print(format_table([("ours", count_right(problems, choices_of(problems, answers)))]))

Nothing is asked here, and nothing written.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .rejections import Rejected
from .scienceqa import LETTERS, Problem
from .sources import shown
from .tables import json_row


SUBJECTS = {"natural science": "NAT", "social science": "SOC", "language science": "LAN"}
SUBSETS = ("NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12")
AVERAGE = "avg"
NAMED = 10  # ids in a message

Form = Literal["letter", "label", "sentence", "loose", "nothing", "several", "no-option"]

# What the original's scorer reads, in its order; then what only ours does.
LABEL = re.compile(r"([A-Z])\.\s+\S")
SENTENCE = re.compile(r"\bThe answer is ([A-Z])\.")
LETTER_ALONE = re.compile(r"\(?([A-Z])\)?\.?")
LOOSE_SENTENCE = re.compile(r"\b(?:The answer is|ANSWER:) \(?([A-Z])\b\)?(?=\s*$|[.,;:!\n])")


@dataclass(frozen=True)
class Choice:
    """What an answer chose: a letter, or None where `form` says why there is none.

    Forms: `letter` is `B`; `label` is `B. its words`; `sentence` has `The answer is B.` once; `loose` is what the
    original's scorer cannot read: `B.` or `(B)` alone, or once `The answer is B` with another end, or `ANSWER: B`.
    Without a letter: `nothing` of these, `several` sentences, or `no-option`, a letter that the problem does not have.
    """

    letter: str | None
    form: Form


def read_letter(text: str, num_choices: int) -> Choice:
    """The option an answer names. Forms are tried in order, and the first that is there decides."""
    text = text.strip()
    if text in LETTERS and len(text) == 1:
        return _option(text, "letter", num_choices)
    if label := LABEL.match(text):
        return _option(label[1], "label", num_choices)
    for form, pattern in (("sentence", SENTENCE), ("loose", LOOSE_SENTENCE)):
        found = pattern.findall(text)
        if len(found) > 1:
            return Choice(None, "several")
        if found:
            return _option(found[0], "sentence" if form == "sentence" else "loose", num_choices)
    if alone := LETTER_ALONE.fullmatch(text):
        return _option(alone[1], "loose", num_choices)
    return Choice(None, "nothing")


def _option(letter: str, form: Form, num_choices: int) -> Choice:
    return Choice(letter, form) if letter in LETTERS[:num_choices] else Choice(None, "no-option")


def choices_of(problems: Iterable[Problem], texts: Mapping[str, str]) -> dict[str, Choice]:
    return {problem.id: read_letter(texts[problem.id], len(problem.choices)) for problem in problems}


def subsets_of(problem: Problem) -> tuple[str, ...]:
    """The columns that a problem counts in: its subject, its context (text and picture can be both), its grade."""
    grade = re.fullmatch(r"grade([1-9]|1[0-2])", problem.grade)
    if problem.subject not in SUBJECTS or grade is None:
        raise ValueError(
            f"Problem `{problem.id}` has the subject {shown(problem.subject)} and the grade {shown(problem.grade)}; "
            f"wanted one of {', '.join(SUBJECTS)}, and grade1 to grade12. Take ScienceQA's own problems.json."
        )
    context = [name for name, there in (("TXT", problem.hint), ("IMG", problem.image is not None)) if there]
    return SUBJECTS[problem.subject], *(context or ["NO"]), "G1-6" if int(grade[1]) <= 6 else "G7-12"


@dataclass
class Tally:
    problems: int = 0
    right: int = 0

    @property
    def accuracy(self) -> float | None:
        """In percent; None without problems."""
        return 100 * self.right / self.problems if self.problems else None

    def as_json(self) -> dict[str, Any]:
        return {"problems": self.problems, "right": self.right, "accuracy": self.accuracy}


def count_right(problems: Iterable[Problem], chosen: Mapping[str, Choice]) -> dict[str, Tally]:
    """A tally for every column, the average last: over problems, not over columns. No letter is a wrong one."""
    tallies = {name: Tally() for name in (*SUBSETS, AVERAGE)}
    for problem in problems:
        for name in (*subsets_of(problem), AVERAGE):
            tallies[name].problems += 1
            tallies[name].right += chosen[problem.id].letter == LETTERS[problem.answer]
    return tallies


def format_table(rows: Sequence[tuple[str, Mapping[str, Tally]]]) -> str:
    """Percentages of each row, and below how many problems they are of."""
    columns = (*SUBSETS, AVERAGE)
    width = max(len(name) for name in (*(name for name, _ in rows), "problems"))
    lines = [" " * width + "".join(f"{column:>8}" for column in columns)]
    for name, tallies in rows:
        accuracies = (tallies[column].accuracy for column in columns)
        lines.append(f"{name:<{width}}" + "".join(f"{'-' if a is None else f'{a:.2f}':>8}" for a in accuracies))
    counts = rows[0][1]
    lines.append(f"{'problems':<{width}}" + "".join(f"{counts[column].problems:>8}" for column in columns))
    return "\n".join(lines)


# -- files of answers --


def read_predictions(path: Path) -> dict[str, str]:
    """Answers by problem: lines with `question_id` and `text`, or the original's `{"outputs": {id: text}}`."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ValueError(f"`{path}` cannot be read: {error.strerror}. Name the file of answers.") from error
    if not raw.strip():
        raise ValueError(f"`{path}` is empty. Wanted one answer a line, with `question_id` and `text`.")
    answers: dict[str, str] = {}
    for place, name, text in _outputs(raw, path) or _lines(raw, path):
        if isinstance(name, bool) or not isinstance(name, (str, int)) or name == "":
            raise ValueError(f"`{path}`, {place}: the id is {shown(name)}, wanted a problem's id. Repair the file.")
        if not isinstance(text, str):
            raise ValueError(f"`{path}`, {place}: the answer is {shown(text)}, wanted words. Repair the file.")
        if str(name) in answers:
            raise ValueError(f"`{path}`, {place}: problem `{name}` is answered a second time. Remove one of the two.")
        answers[str(name)] = text
    return answers


def _outputs(raw: bytes, path: Path) -> list[tuple[str, Any, Any]]:
    """Of one object with `outputs`; nothing, where the file is something else."""
    try:
        # As pairs: a problem that is there twice would lose its first answer in a dict.
        content = json.loads(raw, object_pairs_hook=list)
    except (ValueError, RecursionError):
        return []
    pairs = content if isinstance(content, list) and all(isinstance(pair, tuple) for pair in content) else []
    outputs = [value for name, value in pairs if name == "outputs"]
    if not outputs:
        return []
    if len(outputs) > 1 or not isinstance(outputs[0], list) or not all(isinstance(one, tuple) for one in outputs[0]):
        raise ValueError(f"`{path}`: `outputs` is no object from ids to answers. Repair the file.")
    if not outputs[0]:
        raise ValueError(f"`{path}`: `outputs` holds no answer. Check how it was written.")
    return [("`outputs`", name, text) for name, text in outputs[0]]


def _lines(raw: bytes, path: Path) -> Iterable[tuple[str, Any, Any]]:
    for number, line in enumerate(raw.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json_row(line)
        except Rejected as rejection:
            raise ValueError(
                f"`{path}`, line {number}: {rejection.detail} Wanted lines with `question_id` and `text`, or one "
                'object `{"outputs": {id: text}}`.'
            ) from rejection
        if missing := {"question_id", "text"} - row.keys():
            raise ValueError(
                f"`{path}`, line {number}: there is no `{min(missing)}`, but {some(list(row)) or 'nothing'}. Wanted "
                "`question_id` and `text`."
            )
        yield f"line {number}", row["question_id"], row["text"]


def check_ids(answers: Collection[str], problems: Sequence[Problem], allow_missing: bool, name: str) -> list[str]:
    """The problems without an answer; an error if there are any that may not be, or answers of other problems."""
    ids = {problem.id for problem in problems}
    if unknown := [one for one in answers if one not in ids]:
        raise ValueError(
            f"`{name}` answers {len(unknown):,} problems that the split does not have: {some(unknown)}. Is it for "
            "this split?"
        )
    missing = [problem.id for problem in problems if problem.id not in answers]
    if missing and (not allow_missing or len(missing) == len(problems)):
        raise ValueError(
            f"`{name}` lacks {len(missing):,} of {len(problems):,} problems: {some(missing)}. Answer them, or score "
            "the others with --allow-missing."
        )
    return missing


def some(ids: Sequence[str]) -> str:
    """The first of them, for a message."""
    return ", ".join(f"`{one}`" for one in ids[:NAMED]) + (", ..." if len(ids) > NAMED else "")
