"""Writes docs/results.md from what the benchmarks wrote: no figure of it is typed by a person.

python -m docs.results
"""

import json
import shlex
import statistics
from pathlib import Path
from typing import Any

from benchmarks import answer_speed, forward, generate_speed


ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results"
PAGE = ROOT / "docs/results.md"
INTRO = """\
# Results

`python -m docs.results` writes this page from `benchmarks/results/*.json`. Each ratio comes from one script that runs
both sides in turn on the same data. Figures of the micro world are in [quickstart.md](quickstart.md) and
[reproduce.md](reproduce.md).
"""


def train_table(found: dict[str, Any]) -> str:
    """Without the columns that are for those who work on the benchmark."""
    lines = [["", "speed, TRL = 1", "of CPU time", "memory, TRL = 1", "loss apart"], ["---"] + ["--:"] * 4]
    for result in found["results"]:
        for one in result["comparisons"]:
            speed, cpu = statistics.median(one["speed_ratios"]), statistics.median(one["cpu_speed_ratios"])
            apart = f"{one['loss_difference']:.0e}" if "loss_difference" in one else ""
            name = f"{result['title']}, {one['setting']}"
            lines.append([name, f"{speed:.2f}", f"{cpu:.2f}", f"{one['memory_ratio']:.2f}", apart])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def forward_table(found: dict[str, Any]) -> str:
    return forward.table(found["rows"])


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
    rows = (shown, ["---"] * len(shown), shown.values())
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def curves_table(found: dict[str, Any]) -> str:
    lines = ["| way | held-out loss at the end, by seed |", "|---|---|"]
    lines += [
        f"| {way} | {', '.join(f'{loss:.4f}' for loss in losses)} |"
        for way, losses in found["last_held_out_loss"].items()
    ]
    return "\n".join(lines)


# Start of the name of a file, which is that of the benchmark -> heading, what is compared, table.
SECTIONS = {
    "train_speed": (
        "Training beside TRL",
        "The same conversations per step through our trainer and through TRL's `SFTTrainer` with its vision collator\n"
        "and `assistant_only_loss`. Speed above 1 is faster, memory below 1 is less (of a first step, above the\n"
        "loaded model). Each its default: TRL with checkpointing, ours without. Length-grouped: TRL's conversations\n"
        "are put in order of length before they become batches.",
        train_table,
    ),
    "forward": (
        "Our model beside stock Llava",
        "The same weights and inputs in our class and in that of transformers; a ratio above 1 is for ours.",
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
        "A small model trained as rows of trees and as padded rows, from the same start.",
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
