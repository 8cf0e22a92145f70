"""ScienceQA as rows: multiple-choice questions with a lecture and a solution, about half of them with a picture.

A format `IN-OUT` says what is asked and answered, by letters: Question, Context, Multiple options, Lecture,
Explanation (the solution), Answer; `LEPA` is the paper's lecture, solution, then the answer behind a mark.

    question, answer = write_turn(problem, "QCM-LEA")

Formats and marks are those of the original's converter, so that its files and ours agree; only a space that it leaves
in front of an answer without a lecture is gone. Scoring needs more
than the words, so rows also have `answer` (a letter), `choices`, `subject`, `grade` and `has_hint`.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from .rejections import Counts, Rejected
from .rows import TEXT, Row, messages_of, row_features
from .sources import check_unicode, shown
from .tables import picture_of


LETTERS = "ABCDE"
INPUTS = ("CQM", "QCM", "QCML", "QCME", "QCMLE", "QCLM", "QCEM", "QCLEM")
OUTPUTS = ("A", "AL", "AE", "ALE", "AEL", "LA", "EA", "LEA", "ELA", "LEPA")
# What evaluation asks of a model that was not trained on ScienceQA; these very words are in LLaVA-1.5's training data.
LETTER_ONLY = "Answer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Problem:
    id: str
    question: str
    choices: tuple[str, ...]
    answer: int
    hint: str
    lecture: str
    solution: str
    subject: str
    grade: str
    image: str | bytes | None = None  # a path, or the encoded picture


def scienceqa_features(embedded: bool) -> datasets.Features:
    more = {"answer": TEXT, "choices": datasets.List(TEXT), "subject": TEXT, "grade": TEXT}
    return row_features(embedded, **more, has_hint=datasets.Value("bool"))


def check_format(format: str) -> None:
    asked, _, answered = format.partition("-")
    if asked not in INPUTS or answered not in OUTPUTS:
        raise ValueError(
            f"`{format}` is no format of ScienceQA. Join one of {', '.join(INPUTS)} and one of {', '.join(OUTPUTS)} "
            "with `-`: `QCM-LEA` is the default of the original, `QCM-LEPA` the paper's, `CQM-A` LLaVA-1.5's."
        )


def write_turn(problem: Problem, format: str) -> tuple[str, str]:
    """The question and the answer as the format has them."""
    check_format(format)
    asked, _, answered = format.partition("-")
    because = {"L": problem.lecture, "E": problem.solution}
    options = " ".join(f"({LETTERS[k]}) {choice}" for k, choice in enumerate(problem.choices))
    lines = {
        "Q": f"Question: {problem.question}",
        "C": f"Context: {problem.hint.strip() or 'N/A'}",
        "M": f"Options: {options}",
    }
    # A lecture and a solution next to each other share one line.
    blocks = re.findall("[LE]+|.", asked)
    question = "\n".join(
        lines[block] if block in lines else "BECAUSE: " + " ".join(because[letter] for letter in block)
        for block in blocks
    )
    answer = _tidy(_answer(problem, answered)).removeprefix("Answer: ").lstrip()
    return _tidy(question).removeprefix("Question: "), answer


def _answer(problem: Problem, answered: str) -> str:
    letter = LETTERS[problem.answer]
    if answered == "LEPA":
        lecture = f"LECTURE: {problem.lecture}\n" if problem.lecture.strip() else ""
        solution = f"SOLUTION: {problem.solution}\n" if problem.solution.strip() else ""
        return f"{lecture}{solution}###\nANSWER: {letter}."
    because = {"L": problem.lecture, "E": problem.solution}
    if answered in ("AL", "AE"):  # the original's converter has these two the other way round
        because = {"L": problem.solution, "E": problem.lecture}
    before, _, behind = answered.partition("A")
    words = [because[one] for one in before] + [f"The answer is {letter}."]
    return " ".join(["Answer:", *words, *(["BECAUSE:"] if behind else []), *(because[one] for one in behind)])


def _tidy(text: str) -> str:
    """Double spaces are halved once, as in the original: four become two."""
    text = text.replace("  ", " ").strip()
    return text.removesuffix("BECAUSE:").strip()


def problem_of(name: str, entry: Mapping[str, Any], image: str | bytes | None) -> Problem:
    """The problem, or `Rejected`; texts that are missing are empty, except the question."""
    texts = {key: entry.get(key) or "" for key in ("question", "hint", "lecture", "solution", "subject", "grade")}
    choices, answer = entry.get("choices"), entry.get("answer")
    odd = [key for key, text in texts.items() if not isinstance(text, str)]
    if odd or not texts["question"].strip():
        key = odd[0] if odd else "question"
        raise Rejected("odd-text", f"`{key}` is {shown(entry.get(key))}, wanted words.")
    if not isinstance(choices, (list, tuple)) or not 2 <= len(choices) <= len(LETTERS):
        raise Rejected("odd-choices", f"`choices` is {shown(choices)}, wanted two to {len(LETTERS)} texts.")
    if not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise Rejected("odd-choices", f"`choices` is {shown(choices)}, wanted texts.")
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise Rejected(
            "odd-answer", f"`answer` is {shown(answer)}, wanted the number of one of {len(choices)} choices."
        )
    for text in (*texts.values(), *choices):
        check_unicode(text)
    return Problem(name, choices=tuple(choices), answer=answer, image=image, **texts)


def read_problems(counts: Counts, folder: Path, split: str, image_root: Path | None = None) -> Iterator[Problem]:
    """As `read_split`, of the folder that both files are in."""
    return read_split(counts, folder / "problems.json", folder / "pid_splits.json", split, image_root)


def read_split(
    counts: Counts, problems_file: Path, splits_file: Path, split: str, image_root: Path | None = None
) -> Iterator[Problem]:
    """Problems of a split from problems.json and pid_splits.json, in the split's order.

    Args:
        split: `train`, `val`, `test`, `minival`, `minitest`, or what else the file has.
        image_root: holds `<split>/<id>/<name>` or `<id>/<name>`; paths are kept as they are under it. Without it no
            picture is looked for.
    """
    problems, splits = _load(problems_file), _load(splits_file)
    if split not in splits:
        raise ValueError(f"`{splits_file}` has no split `{split}`, but {', '.join(list(splits)[:10])}.")
    if not isinstance(splits[split], list):
        raise ValueError(f"`{splits_file}` has for `{split}` {shown(splits[split])}, wanted a list of ids.")
    for name in map(str, splits[split]):
        try:
            entry = problems.get(name)
            if not isinstance(entry, Mapping):
                raise Rejected("no-problem", "in the split, but not in problems.json.")
            image = _find_image(name, entry, image_root) if entry.get("image") else None
            problem = problem_of(name, entry, image)
        except Rejected as rejection:
            counts.reject(name, rejection)
            continue
        counts.keep()
        yield problem


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ValueError(f"`{path}` does not exist. Give the folder that holds ScienceQA's text files.") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"`{path}` is no JSON: {error}. Download it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"`{path}` holds {shown(content)}, wanted an object by ids or splits.")
    return content


def _find_image(name: str, entry: Mapping[str, Any], root: Path | None) -> str:
    file = str(entry["image"])
    if root is None:
        return f"{name}/{file}"
    # minival and minitest are parts of splits that have folders; each problem names its own.
    candidates = [f"{name}/{file}", f"{entry.get('split')}/{name}/{file}"]
    found = next((one for one in candidates if (root / one).is_file()), None)
    if found is None:
        raise Rejected("missing-file", f"neither `{candidates[0]}` nor `{candidates[1]}` in `{root}`.")
    return found


def read_table(counts: Counts, rows: Iterable[Mapping[str, Any]], split: str) -> Iterator[Problem]:
    """Problems of a data set with the columns of `derek-thomas/ScienceQA`; it has no ids, so rows are numbered."""
    if isinstance(rows, (datasets.Dataset, datasets.IterableDataset)):
        missing = {"question", "choices", "answer", "image"} - set(rows.column_names or [])
        if missing and rows.column_names is not None:
            raise ValueError(f"The data set has no column {', '.join(sorted(missing))}; wanted ScienceQA's.")
        rows = rows.cast_column("image", datasets.Image(decode=False)) if rows.features else rows
    for number, entry in enumerate(rows):
        name = f"{split}-{number:05d}"
        try:
            image = None if entry.get("image") is None else picture_of(entry["image"], None)
            problem = problem_of(name, entry, image if isinstance(image, bytes) or image is None else str(image))
        except Rejected as rejection:
            counts.reject(name, rejection)
            continue
        counts.keep()
        yield problem


def problem_rows(
    problems: Iterable[Problem], format: str, source: str, letter_only: bool = False, images_first: bool = True
) -> Iterator[Row]:
    """Rows of one question and answer each.

    Args:
        letter_only: add the sentence that asks for the letter alone, as the evaluation of LLaVA-1.5 does.
        images_first: the original's files have the picture behind the question, and its training moves it before.
    """
    for problem in problems:
        question, answer = write_turn(problem, format)
        question = f"{question}\n{LETTER_ONLY}" if letter_only else question
        image = {"bytes": problem.image, "path": None} if isinstance(problem.image, bytes) else problem.image
        yield {
            "id": problem.id,
            "images": [] if image is None else [image],
            "messages": messages_of([(question, answer)], 0 if image is None else 1, images_first),
            "kind": "scienceqa",
            "source": source,
            "image_id": [] if image is None else [problem.id],
            "answer": LETTERS[problem.answer],
            "choices": list(problem.choices),
            "subject": problem.subject,
            "grade": problem.grade,
            "has_hint": bool(problem.hint.strip()),
        }
