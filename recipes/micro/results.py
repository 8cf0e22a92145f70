"""The figures of a quickstart: `results.json` for a program, a table for the terminal.

docs/quickstart.md says what its fields are.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from recipes.checkpoints import FINISHED, write_atomically
from recipes.micro import exam


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
        by_kind = exam.shares(asked)
        right = sum(one.is_right for one in asked)
        scores[condition] = {
            "questions": len(asked),
            "right": right / len(asked),
            "mean": sum(by_kind.values()) / len(by_kind),
            "by_kind": by_kind,
        }
    per_kind = scores["stage 2"]["questions"] // len(scores["stage 2"]["by_kind"])
    constants = exam.constant_answers(per_kind)
    scores["constant answers"] = {
        "questions": scores["stage 2"]["questions"],
        "right": sum(constants.values()) / len(constants),
        "mean": sum(constants.values()) / len(constants),
        "by_kind": constants,
    }
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


def _rows(path: Path) -> int:
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    return sum(pq.read_metadata(file).num_rows for file in files)


def table(results: dict[str, Any]) -> list[str]:
    """Shares of whole answers that are exact, in per cent."""
    scores = results["scores"]
    kinds = list(scores["stage 2"]["by_kind"])
    widths = [max(len(name), 5) for name in scores]
    lines = [
        "",
        "whole answers right, of 100",
        " " * 10 + "  ".join(f"{n:>{w}}" for n, w in zip(scores, widths, strict=True)),
    ]
    for kind in [*kinds, "mean"]:
        found = [score["mean"] if kind == "mean" else score["by_kind"].get(kind) for score in scores.values()]
        cells = ["" if share is None else f"{100 * share:.1f}" for share in found]
        lines.append(f"{kind:<10}" + "  ".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True)))
    seconds = results["seconds"]
    lines.append("")
    lines.append(
        f"{results['questions_per_kind']} questions of each kind about scenes that were not trained on; seed "
        f"{results['seed']}; {sum(seconds.values()):.0f} s, of which the stages took "
        f"{seconds.get('stage1', 0):.0f} and {seconds.get('stage2', 0):.0f}"
    )
    return lines
