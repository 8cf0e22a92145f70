"""Writes docs/results.md from what the benchmarks wrote: no figure of it is typed by a person.

python -m docs.results
"""

import json
import shlex
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import answer_speed, generate_speed


ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results"
PAGE = ROOT / "docs/results.md"
INTRO = """\
# Results

`python -m docs.results` writes this page from `benchmarks/results/*.json`. Each ratio comes from one script that runs
both sides in turn on the same data. Figures of the micro world are in [quickstart.md](quickstart.md) and
[reproduce.md](reproduce.md).
"""


def rows_of(lines: Iterable[Iterable[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(ratios: list[float]) -> str:
    middle = f"{statistics.median(ratios):.2f}"
    return middle if len(ratios) == 1 else f"{middle} ({min(ratios):.2f}–{max(ratios):.2f})"


def train_table(found: dict[str, Any]) -> str:
    lines = [["", "speed", "by CPU time", "memory", "loss apart"], ["---"] + ["--:"] * 4]
    for result in found["results"]:
        for one in result["comparisons"]:
            apart = f"{one['loss_difference']:.0e}" if "loss_difference" in one else ""
            figures = [
                spread(one["speed_ratios"]),
                spread(one["cpu_speed_ratios"]),
                f"{one['memory_ratio']:.2f}",
                apart,
            ]
            lines.append([f"{result['title']}, {one['setting']}", *figures])
    return rows_of(lines)


def forward_table(found: dict[str, Any]) -> str:
    lines = [["", "speed", "by CPU time", "by operations", "memory"], ["---"] + ["--:"] * 4]
    for one in found["rows"]:
        figures = [spread(one["time_ratios"]), spread(one["cpu_time_ratios"])]
        figures += [f"{one['operations_ratio']:.2f}", f"{1 / one['memory_ratio']:.2f}"]
        lines.append([one["name"], *figures])
    return rows_of(lines)


def answer_table(found: dict[str, Any]) -> str:
    return answer_speed.table(found["results"])


def generate_table(found: dict[str, Any]) -> str:
    peers = any(one["peers"] for one in found["results"])
    return "\n\n".join(
        [generate_speed.table(found["results"])] + [generate_speed.peer_table(found["results"])] * peers
    )


def captions_table(found: dict[str, Any]) -> str:
    shown = {
        "captions": f"{found['captions']:,}",
        "seconds": f"{found['seconds']:,.0f}",
        "seconds of CPU": f"{found['cpu_seconds']:,.0f}",
        "MiB at most": f"{found['peak_mib']:,}",
        "different noun phrases": f"{found['phrases']:,}",
        "rows kept": f"{found['rows']:,}",
    }
    return rows_of((shown, ["--:"] * len(shown), shown.values()))


def curves_table(found: dict[str, Any]) -> str:
    ways = found["last_held_out_loss"].items()
    lines = [[way, ", ".join(f"{loss:.4f}" for loss in losses)] for way, losses in ways]
    return rows_of([["way", "held-out loss at the end, by seed"], ["---", "---"], *lines])


# Start of the name of a file, which is that of the benchmark -> heading, what is compared, table.
SECTIONS = {
    "train_speed": (
        "Training beside TRL",
        "The same conversations per step through our trainer and through TRL's `SFTTrainer` with its vision collator\n"
        "and `assistant_only_loss`. TRL is 1: speed above 1 is faster, memory below 1 is less (of a first step,\n"
        "above the loaded model). Each its default: TRL with checkpointing, ours without. Length-grouped: TRL's\n"
        "conversations are put in order of length before they become batches.",
        train_table,
    ),
    "forward": (
        "Our model beside stock Llava",
        "The same weights and inputs in our class and in that of transformers, which is 1: speed above 1 is faster,\n"
        "memory below 1 is less.",
        forward_table,
    ),
    "answer_speed": (
        "Answers in batches",
        "`llava answer` beside a loop over the questions with stock classes.",
        answer_table,
    ),
    "generate_speed": (
        "The client of the teacher",
        "Requests through the client with its ledger and limits (`ours`), through the bare SDK (`sdk`), and through\n"
        "its cheaper call (`post`), against a local server of fixed latency that shares the machine.",
        generate_table,
    ),
    "captions": ("Stage-1 captions", "`llava captions` on as many made-up captions as CC3M has.", captions_table),
    "loss_curves": (
        "Do both ways learn alike?",
        "A small model trained as rows of trees and as padded rows, from the same start. `same steps`: padded rows\n"
        "with the conversations that the trees had in each step.",
        curves_table,
    ),
}


def command(module: str, arguments: dict[str, Any]) -> str:
    words = ["python", "-m", f"benchmarks.{module}"]
    for name, value in arguments.items():
        if value in (None, []) or (name, value) == ("device", "cpu"):
            continue
        values = value if isinstance(value, list) else [value]
        if name == "out":
            values = [Path("benchmarks/results", Path(value).name if value.endswith(".json") else "")]
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return shlex.join(words)


def made(module: str, found: dict[str, Any]) -> str:
    """With what, when and where: nothing is comparable without."""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    changed = " with changes" if found["uncommitted_changes"] else ""
    threads = f"{found['threads']} thread{'s' * (found['threads'] != 1)}"
    return (
        f"`{command(module, found['arguments'])}`  \n{found['date'][:10]}, {found['hardware']}, {threads}, commit "
        f"`{found['commit'][:10]}`{changed}; {versions}."
    )


def page() -> str:
    parts = [INTRO]
    for module, (heading, words, table) in SECTIONS.items():
        for path in sorted(RESULTS.glob(f"{module}*.json")):
            found = json.loads(path.read_text(encoding="utf-8"))
            parts.append(f"## {heading}\n\n{words}\n\n{table(found)}\n\n{made(module, found)}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
