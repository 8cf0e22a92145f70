"""What `llava judge` is given, brought together: each question with its context and reference, and who answered it."""

from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from data_generation.judge_files import Question, read_answers, read_context, read_data, read_questions


@dataclass(frozen=True)
class Inputs:
    """
    Args:
        questions: that can be judged.
        candidates: answers by question id, by the candidate's name.
        files: of each candidate.
        missing: how many of the questions each candidate lacks an answer to.
        without_reference: questions left out because nobody gave a reference answer.
    """

    questions: list[Question]
    candidates: dict[str, dict[str, str]] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    without_reference: int = 0

    @property
    def kinds(self) -> Counter[str]:
        return Counter(question.kind for question in self.questions if question.kind)


def gather(args: Namespace) -> Inputs:
    every = read_questions(args.questions) if args.questions is not None else read_data(args.data)
    questions = with_context(every[: args.limit], args.context)
    if args.make_reference is not None:
        return Inputs(questions)
    without_reference = 0
    if args.reference is not None:
        reference = read_answers(args.reference)
        if empty := [name for name, text in reference.items() if not text.strip()]:
            raise ValueError(f"`{args.reference}`: the reference answer to `{empty[0]}` is empty. Write one.")
        without_reference = check_ids(args.reference, reference, every, questions, args.allow_missing)
        questions = [replace(one, reference=reference[one.id]) for one in questions if one.id in reference]
    candidates, files, missing = {}, {}, {}
    for name, path in names_of(args.answers).items():
        answers = read_answers(path)
        missing[name] = check_ids(path, answers, every, questions, args.allow_missing)
        candidates[name], files[name] = answers, path
    if not any(question.id in answers for answers in candidates.values() for question in questions):
        raise ValueError("No question has an answer and a reference. Check that the files belong together.")
    return Inputs(questions, candidates, files, missing, without_reference)


def with_context(questions: list[Question], path: Path | None) -> list[Question]:
    contexts = None if path is None else read_context(path)
    found = [
        replace(question, context=(contexts.find(question.pictures) if contexts else None) or question.context)
        for question in questions
    ]
    if without := [question for question in found if not question.context]:
        first = without[0]
        where = "columns `captions` or `boxes`" if path is None else f"a line of `{path}`"
        raise ValueError(
            f"{len(without):,} of {len(found):,} questions have no context, the first `{first.id}` about "
            f"{' or '.join(f'`{name}`' for name in first.pictures) or 'no picture'}; wanted {where}. "
            + ("Add them, or give --context." if path is None else "Add them, or take another file.")
        )
    return found


def check_ids(
    path: Path, answers: Mapping[str, str], every: Iterable[Question], questions: list[Question], allow_missing: bool
) -> int:
    """How many of the questions have no answer in the file."""
    known = {question.id for question in every}
    if unknown := [name for name in answers if name not in known]:
        raise ValueError(
            f"`{path}` answers {len(unknown):,} questions that are not asked, the first `{unknown[0]}`. Check that it "
            "belongs to these questions."
        )
    missing = [question.id for question in questions if question.id not in answers]
    if missing and not allow_missing:
        raise ValueError(
            f"`{path}` has no answer to {len(missing):,} of {len(questions):,} questions, the first `{missing[0]}`. "
            "Answer them, or score the rest with --allow-missing."
        )
    return len(missing)


def names_of(paths: list[Path]) -> dict[str, Path]:
    """What the table calls each file: its name, with its folder where two are called the same."""
    if doubles := [path for path, number in Counter(path.resolve() for path in paths).items() if number > 1]:
        raise ValueError(f"--answers names `{doubles[0]}` twice. Name it once.")
    stems = Counter(path.stem for path in paths)
    names = [path.stem if stems[path.stem] == 1 else f"{path.resolve().parent.name}/{path.stem}" for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    return dict(zip(names, paths, strict=True))
