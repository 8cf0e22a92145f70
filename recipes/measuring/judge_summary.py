"""`llava judge --summarize`: the table of review files, of the original's or of ours, without asking anybody."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_generation.judge_files import Review, read_reviews
from data_generation.judging import HIGHEST, LOWEST
from data_generation.relative_score import Scored, legacy_scores, relative_scores
from recipes.measuring.judge_table import aligned, describe


def summarize(paths: list[Path], is_legacy: bool, seed: int) -> None:
    found = {name: reviews for path in paths for name, reviews in by_candidate(path, len(paths) > 1).items()}
    print("\n".join(legacy_lines(found) if is_legacy else own_lines(found, seed)))


def by_candidate(path: Path, is_named: bool) -> dict[str, list[Review]]:
    """One table for each candidate of a file; the original's files are about one, and their name is its."""
    found: dict[str, list[Review]] = {}
    for review in read_reviews(path):
        name = review.candidate_name or path.stem
        name = f"{path}: {review.candidate_name}" if is_named and review.candidate_name else name
        found.setdefault(name if not is_named or review.candidate_name else str(path), []).append(review)
    return found


def own_lines(found: dict[str, list[Review]], seed: int) -> list[str]:
    candidates, notes = {}, []
    for name, reviews in found.items():
        check_once(name, reviews)
        usable = [review for review in reviews if _is_usable(review)]
        orders = len({review.order for review in reviews})
        lost = [(review.question, review.kind, review.repeat) for review in reviews if not _is_usable(review)]
        scores = relative_scores(map(_scored, usable), orders, seed, lost)
        candidates[name] = {"missing": 0, "scores": {kind: asdict(figures) for kind, figures in scores.items()}}
        reasons = Counter(review.reason or "no-scores" for review in reviews if not _is_usable(review))
        if reasons:
            words = ", ".join(f"{reason} {number:,}" for reason, number in reasons.most_common())
            notes.append(f"{name}: {reasons.total():,} of {len(reviews):,} replies had no scores that count: {words}")
    return [*describe(candidates), *notes]


def check_once(name: str, reviews: list[Review]) -> None:
    times = Counter((review.question, review.order, review.repeat) for review in reviews)
    (question, order, repeat), number = times.most_common(1)[0]
    if number > 1:
        raise ValueError(
            f"{name}: question `{question}` is reviewed {number} times ({order}, repeat {repeat}); wanted once. "
            "Remove the others, or count all of them with --legacy-scores."
        )


def legacy_lines(found: dict[str, list[Review]]) -> list[str]:
    rows: list[list[str]] = [["candidate", "kind", "score", "reference", "candidate", "reviews"]]
    for name, reviews in found.items():
        for kind, figures in legacy_scores(_pairs(reviews)).items():
            score = "-" if figures["score"] is None else f"{figures['score']:.1f}"
            means = [f"{figures['reference']:.1f}", f"{figures['candidate']:.1f}"]
            rows.append([name, kind, score, *means, f"{figures['questions']:,}"])
    return aligned(rows)


def _pairs(reviews: Iterable[Review]) -> list[tuple[str, list[float]]]:
    return [
        (review.kind, [-1.0, -1.0] if review.candidate is None else [review.reference or 0.0, review.candidate])
        for review in reviews
    ]


def _is_usable(review: Review) -> bool:
    pair: list[Any] = [review.reference, review.candidate]
    return all(score is not None and LOWEST <= score <= HIGHEST for score in pair)


def _scored(review: Review) -> Scored:
    return Scored(review.question, review.kind, review.repeat, review.order, review.reference, review.candidate)
