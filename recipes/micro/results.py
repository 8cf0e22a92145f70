"""The figures of a quickstart: `results.json` for a program, a table for the terminal.

docs/quickstart.md says what its fields are.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from data_generation.replacing import write_atomically
from recipes.micro import exam
from recipes.training.checkpoints import FINISHED


def write_results(folder: Path, path: Path) -> dict[str, Any]:
    results = gather(folder)
    write_atomically(path, json.dumps(results, indent=1))
    print("\n".join(table(results)))
    return results


def gather(folder: Path) -> dict[str, Any]:
    settings = json.loads((folder / "settings.json").read_text())
    stages = {stage: json.loads((folder / stage / FINISHED).read_text()) for stage in ("stage1", "stage2")}
    scores = {}
    for condition in json.loads((folder / "exam/finished.json").read_text())["conditions"]:
        asked = exam.read(folder / f"exam/{exam.file_name(condition)}.json")
        right = sum(one.is_right for one in asked) / len(asked)
        scores[condition] = _score(len(asked), right, exam.shares(asked))
    num_questions = scores["stage 2"]["questions"]
    per_kind = num_questions // len(scores["stage 2"]["by_kind"])
    constants = exam.constant_answers(per_kind)
    # As many of each kind, so that all together are right as often as kinds are in the mean.
    scores["constant answers"] = _score(num_questions, exam.mean(constants), constants)
    last = stages["stage2"]
    return {
        "seed": settings["seed"],
        "tiny": settings["tiny"],
        "ended": last["ended"],
        "commit": last["commit"],
        "versions": last["versions"],
        "hardware": last["hardware"],
        "seconds": json.loads((folder / "seconds.json").read_text()),
        "rows": {"captions": _rows(folder / "captions.parquet"), "instruct": _rows(folder / "instruct")},
        "questions_per_kind": per_kind,
        "scores": scores,
        "training": {
            stage: {
                "steps": max((entry["step"] for entry in facts["log"]), default=0),
                "seconds": facts["seconds"],
                "last_loss": next((entry["loss"] for entry in reversed(facts["log"]) if "loss" in entry), None),
            }
            for stage, facts in stages.items()
        },
    }


def _score(num_questions: int, right: float, by_kind: dict[str, float]) -> dict[str, Any]:
    return {"questions": num_questions, "right": right, "mean": exam.mean(by_kind), "by_kind": by_kind}


def _rows(path: Path) -> int:
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    return sum(pq.read_metadata(file).num_rows for file in files)


def cells(scores: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Each kind of question, then the mean, with its share in every condition, in per cent; empty where not asked."""
    for kind in [*scores["stage 2"]["by_kind"], "mean"]:
        found = [score["mean"] if kind == "mean" else score["by_kind"].get(kind) for score in scores.values()]
        yield kind, ["" if share is None else f"{100 * share:.1f}" for share in found]


def table(results: dict[str, Any]) -> list[str]:
    scores = results["scores"]
    widths = [max(len(name), 5) for name in scores]
    lines = [
        "",
        "whole answers right, of 100",
        " " * 10 + "  ".join(f"{n:>{w}}" for n, w in zip(scores, widths, strict=True)),
    ]
    for kind, shares in cells(scores):
        lines.append(f"{kind:<10}" + "  ".join(f"{share:>{w}}" for share, w in zip(shares, widths, strict=True)))
    seconds = results["seconds"]
    lines.append("")
    lines.append(
        f"{results['questions_per_kind']} questions of each kind about scenes that were not trained on; seed "
        f"{results['seed']}; {sum(seconds.values()):.0f} s, of which the stages took "
        f"{seconds.get('stage1', 0):.0f} and {seconds.get('stage2', 0):.0f}"
    )
    return lines
