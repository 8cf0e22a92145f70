"""The scores of several quickstarts side by side: means and spread over seeds.

llava quickstart --seed 1 --out runs/seed-1     # and so on
python -m benchmarks.quickstart_seeds runs/quickstart runs/seed-1 runs/seed-2 --out benchmarks/results
"""

import argparse
import json
import statistics
from pathlib import Path


def summary(runs: list[dict]) -> dict[str, dict[str, dict[str, float]]]:
    """By condition and kind: mean, lowest and highest share over the runs."""
    found = {}
    for condition, score in runs[0]["scores"].items():
        kinds = score["by_kind"] | {"mean": score["mean"]}
        found[condition] = {kind: _spread([_share(run, condition, kind) for run in runs]) for kind in kinds}
    return found


def _share(run: dict, condition: str, kind: str) -> float:
    score = run["scores"][condition]
    return score["mean"] if kind == "mean" else score["by_kind"][kind]


def _spread(shares: list[float]) -> dict[str, float]:
    return {"mean": statistics.mean(shares), "lowest": min(shares), "highest": max(shares)}


def lines(found: dict, seeds: list[int]) -> list[str]:
    """A Markdown table, per cent: mean (lowest to highest)."""
    conditions = list(found)
    kinds = list(found["stage 2"])
    rows = [f"| seeds {', '.join(map(str, seeds))} | {' | '.join(conditions)} |", "|---" * (len(conditions) + 1) + "|"]
    for kind in kinds:
        cells = [_cell(found[condition].get(kind)) for condition in conditions]
        rows.append(f"| {kind} | {' | '.join(cells)} |")
    return rows


def _cell(spread: dict[str, float] | None) -> str:
    if spread is None:
        return ""
    mean, lowest, highest = (100 * spread[name] for name in ("mean", "lowest", "highest"))
    return f"{mean:.1f} ({lowest:.1f} to {highest:.1f})"


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="of quickstarts with different seeds")
    parser.add_argument("--out", type=Path, help="a folder for the JSON")
    arguments = parser.parse_args(words)
    runs = [json.loads((folder / "results.json").read_text()) for folder in arguments.folders]
    seeds = [run["seed"] for run in runs]
    if len(set(seeds)) < len(seeds) or len({(run["tiny"], run["questions_per_kind"]) for run in runs}) > 1:
        parser.error(f"the runs have seeds {seeds}; wanted different ones, and runs of one size")
    found = summary(runs)
    print("\n".join(lines(found, seeds)))
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        written = json.dumps({"seeds": seeds, "spread": found, "runs": runs}, indent=1)
        (arguments.out / "quickstart_seeds.json").write_text(written + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
