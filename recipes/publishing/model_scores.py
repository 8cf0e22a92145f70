"""Scores for a card, from the files that `llava score`, `judge`, `scienceqa score` and `quickstart` write."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.measuring.metrics.intervals import share


NAMES = {
    "pope": "POPE",
    "textvqa": "TextVQA",
    "vqav2": "VQAv2",
    "vizwiz": "VizWiz",
    "gqa": "GQA",
    "mmbench": "MMBench",
    "seed": "SEED-Bench",
}
MICRO = {"stage 2": "all kinds", "black picture": "a black picture", "another scene's": "another scene's picture"}
METRICS = {"soft": "VQA accuracy", "exact": "exact match"}


@dataclass(frozen=True)
class Score:
    """In per cent, with the ends of the 95 % interval where there is one."""

    data: str
    group: str
    metric: str
    value: float
    low: float | None
    high: float | None
    questions: int
    is_control: bool = False  # shown beside the model's scores, but none of its
    is_part: bool = False  # of what another of its scores sums up

    @property
    def shown(self) -> str:
        interval = "" if self.low is None or self.high is None else f" [{self.low:.1f}, {self.high:.1f}]"
        return f"{self.value:.1f}{interval}"


def read_scores(path: Path, candidate: str) -> list[Score]:
    """`candidate` is the model's name among those of a judge's file, where it has several."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"--scores `{path}` cannot be read: {error.strerror}. Check the path.") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"--scores `{path}` is no JSON: {error}. Give the file that a scoring command wrote."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"--scores `{path}` holds a {type(content).__name__}, wanted an object. Check the file.")
    try:
        found = list(_scores(content, path, candidate))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"--scores `{path}` is not as it was written: `{error}` is missing or of another kind. Score again."
        ) from error
    if not found:
        raise ValueError(f"--scores `{path}` has no score. Check how it was written.")
    return found


def _scores(content: dict[str, Any], path: Path, candidate: str) -> Iterator[Score]:
    if "benchmark" in content:
        yield from _benchmark(content)
    elif "candidates" in content and "judge" in content:
        yield from _judged(content, path, candidate)
    elif "problems" in content and "forms" in content:
        for group, tally in content["scores"].items():
            yield _share("ScienceQA", group, "accuracy", tally["right"], tally["problems"])
    elif "questions_per_kind" in content:
        yield from _micro(content)
    else:
        raise ValueError(
            f"--scores `{path}` is of no kind that is known here: wanted what `llava score --out`, `llava judge` "
            "(results.json), `llava scienceqa score --out` or `llava quickstart` (results.json) wrote."
        )


def _benchmark(content: dict[str, Any]) -> Iterator[Score]:
    data = NAMES.get(content["benchmark"], content["benchmark"])
    for group, found in content["scores"].items():
        for metric, estimate in found.items():
            if metric == "answers" or estimate["value"] is None:
                continue
            low, high = (None if estimate[end] is None else 100 * estimate[end] for end in ("low", "high"))
            yield Score(data, group, METRICS.get(metric, metric), 100 * estimate["value"], low, high, found["answers"])


def _judged(content: dict[str, Any], path: Path, candidate: str) -> Iterator[Score]:
    names = list(content["candidates"])
    name = candidate if candidate in names else names[0]
    if candidate not in names and len(names) > 1:
        raise ValueError(
            f"--scores `{path}` has the candidates {', '.join(names)}, none of which is called `{candidate}` as the "
            "model. Judge it alone, or give its answers that name."
        )
    data = f"{Path(content['questions']['from']).name}, judged by {content['judge']['model']}"
    for group, figures in content["candidates"][name]["scores"].items():
        yield Score(
            data, group, "relative score", figures["score"], figures["low"], figures["high"], figures["questions"]
        )


def _micro(content: dict[str, Any]) -> Iterator[Score]:
    for condition, found in content["scores"].items():
        is_control = condition not in ("stage 2", "dialogues", "new combinations")
        group = MICRO.get(condition, condition)
        yield _share(
            "micro world",
            group,
            "exact match",
            round(found["right"] * found["questions"]),
            found["questions"],
            is_control,
        )
        if condition == "stage 2":
            for kind, part in found["by_kind"].items():
                number = content["questions_per_kind"]
                yield _share("micro world", kind, "exact match", round(part * number), number, is_part=True)


def _share(
    data: str, group: str, metric: str, right: int, total: int, is_control: bool = False, is_part: bool = False
) -> Score:
    found = share(right, total)
    if found.value is None:
        return Score(data, group, metric, 0.0, None, None, 0, is_control, is_part)
    low, high = 100 * found.low, 100 * found.high
    return Score(data, group, metric, 100 * found.value, low, high, total, is_control, is_part)
