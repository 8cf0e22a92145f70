"""Trains both halves of the micro LLaVA from nothing, measures what each can do alone, and writes them with a card.

    llava micro bases --out runs/bases
    llava micro bases --out runs/bases --only tower

`vision/` and `language/` are what `llava build` takes; `README.md` says how they were made. A half that is there is
not made again, and the language model goes on from its last checkpoint. What was made is kept when a gate refuses it;
the exit code says so.
"""

import argparse
import json
import os
import shutil
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from recipes.circumstances import PACKAGE, commit, hardware, now


# Half -> its folder, and the steps that it takes.
HALVES = {"tower": "vision", "language": "language"}
STEPS = {"tower": 2000, "language": 6600}
MADE, CARD = "made.json", "README.md"
MEASURED = 1000  # questions of each kind


def make_tower(folder: Path, steps: int, seed: int) -> dict[str, Any]:
    """Writes the half; returns its scores by what was measured, of which those under "gate" have to pass, and the time
    that training took.
    """
    import torch
    from transformers import CLIPModel, CLIPVisionModel

    from data_generation.replacing import write_atomically

    from .tower import SIDE, SIDES, find_captions, probe, read_objects, save_tower, train_tower

    training = folder.with_name(f".tower.training-{steps}-{seed}")  # kept until it is measured
    timed = training / "seconds"
    if not timed.exists():
        started = time.perf_counter()
        train_tower(steps, seed, say).save_pretrained(training)
        write_atomically(timed, str(round(time.perf_counter() - started)))
    model = CLIPModel.from_pretrained(training)
    save_tower(model, folder)
    tower = CLIPVisionModel.from_pretrained(folder, dtype=torch.float32)  # rounded, as it is written
    scores = {}
    for split, side in (*(("validation", side) for side in SIDES), ("combinations", SIDE)):
        scores[f"{split}, {side} px"] = probe(tower, split, side) | {"object": read_objects(tower, split, side)}
    gate = scores.pop(f"validation, {SIDE} px") | {"caption": find_captions(model)}
    seconds = int(timed.read_text(encoding="utf-8"))
    shutil.rmtree(training)
    return {"seconds": seconds, "scores": {"gate": gate} | scores}


def make_language_model(folder: Path, steps: int, seed: int) -> dict[str, Any]:
    import torch
    from transformers import LlamaForCausalLM

    from .language import measure, train_language
    from .vocabulary import new_tokenizer

    tokenizer = new_tokenizer()
    training = folder.with_name(f".language.training-{steps}-{seed}")
    training.mkdir(exist_ok=True)
    train_language(tokenizer, steps, seed, say, training).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    scores = {"gate": measure(model, tokenizer, MEASURED)}
    scores |= {f"scenes as {form}": measure(model, tokenizer, MEASURED, form) for form in ("cells", "captions")}
    # Of all its parts, where it was stopped in between.
    seconds = round(torch.load(training / "training.pt", weights_only=False)["progress"].seconds)
    shutil.rmtree(training)
    return {"seconds": seconds, "scores": scores}


def gates(half: str) -> dict[str, float]:
    if half == "tower":
        from .tower import GATES

        return GATES
    from data_generation.microworld.wordings import KINDS

    from .language import GATE

    return dict.fromkeys(KINDS, GATE)


def make(half: str, out: Path, steps: int, seed: int) -> dict[str, Any]:
    """What the card says of a half; its folder is there as soon as it is complete."""
    partial = out / f".{HALVES[half]}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    found = (make_tower if half == "tower" else make_language_model)(partial, steps, seed)
    shutil.rmtree(out / HALVES[half], ignore_errors=True)
    os.replace(partial, out / HALVES[half])
    return {"steps": steps, "seed": seed, **circumstances(), **found}


def circumstances() -> dict[str, str]:
    import torch

    return {
        "date": now()[:10],
        "commit": commit(12) or f"version {version(PACKAGE)}",
        "hardware": f"{hardware('cpu')}, threads: {torch.get_num_threads()}",
        "versions": f"torch {torch.__version__}, transformers {version('transformers')}",
    }


def failures(half: str, made: dict[str, Any]) -> list[str]:
    scores = made["scores"]["gate"]
    return [
        f"{HALVES[half]}: {name} {scores[name]:.3f}, wanted {gate:.2f}"
        for name, gate in gates(half).items()
        if scores[name] < gate
    ]


def table(half: str, scores: dict[str, dict[str, float]]) -> list[str]:
    """Scores as Markdown: a row for each measure, a column for what it was measured on."""
    heads = ["", "wanted", "reached", *(name for name in scores if name != "gate")]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, gate in gates(half).items():
        # Not everything is measured on everything.
        cells = [f"{found[name]:.3f}" if name in found else "" for found in scores.values()]
        lines.append(f"| {name} | {gate:.2f} | {' | '.join(cells)} |")
    return lines


ABOUT = {
    "tower": """\
A CLIP vision tower of 48x48 pixels and nine patches, one for each cell of a scene. It learned to find a picture's
caption among those of 64 scenes, of which four at a time differ in one fact; the text half was left out. Scores are
shares right on scenes not trained on, pictures of 48 pixels where nothing else is said:

- colour, shape, size, cell: of a linear layer on the patch that an object is in, before the last layer;
- object: of two layers on that patch, taught on training scenes, which have to read colour, shape and size all right;
  in `combinations` are colours and shapes together that neither they nor the tower were shown;
- caption: of pictures that find their caption among 64, of which most differ from another in one fact (before
  rounding, as the text half is not kept).""",
    "language": """\
A Llama that learned from text alone to answer about scenes told in words; it has seen no picture. Colours and shapes
that no picture shows together it read of in the last lesson (half of its scenes have such an object), as a language
model has read of most things; the arrangements that the examination shows are not among them. Most scenes are told in
sentences. Some are told in `cells`, a word for
each cell in reading order (`top-left-large-red-circle top-empty` and seven more), each of them one token that starts
as the sum of its parts: nine tokens, as many as a picture has, which makes the projector's task easier than sentences
would. Scores are shares of whole answers, exact, greedy, on scenes of `validation`, told in sentences where nothing
else is said.""",
}


def card(made: dict[str, dict[str, Any]]) -> str:
    lines = [
        *("---", "license: apache-2.0", "---", "# The halves of the micro LLaVA", ""),
        "The vision tower and the language model that `llava quickstart` joins, pretrained on the drawn scenes of",
        "`data_generation/microworld` and of no use for anything else. No LLaVA stage was run on them. Weights are in",
        "half precision, and the scores are those of the rounded weights. Apache-2.0, as the code.",
    ]
    for half, facts in made.items():
        lines += ["", f"## {HALVES[half]}", "", ABOUT[half], "", *table(half, facts["scores"]), ""]
        lines += [
            f"- command: `llava micro bases --only {half} --{half}-steps {facts['steps']} --seed {facts['seed']}`",
            f"- commit: {facts['commit']}",
            f"- time: {facts['seconds'] / 60:.0f} minutes, {facts['date']}",
            f"- hardware: {facts['hardware']}; {facts['versions']}",
            *([f"- {facts['note']}"] if "note" in facts else []),
        ]
    return "\n".join(lines) + "\n"


def bases(out: Path, halves: list[str], steps: dict[str, int], seed: int) -> list[str]:
    """Makes what is not there yet; returns what no gate lets pass."""
    from data_generation.replacing import write_atomically

    out.mkdir(parents=True, exist_ok=True)
    made = json.loads((out / MADE).read_text(encoding="utf-8")) if (out / MADE).exists() else {}
    for half in halves:
        wanted, there = {"steps": steps[half], "seed": seed}, made.get(half)
        if there is None or not (out / HALVES[half]).is_dir():
            made[half] = make(half, out, **wanted)
            made = {name: made[name] for name in HALVES if name in made}
            write_atomically(out / MADE, json.dumps(made, indent=1))
        elif any(there[name] != value for name, value in wanted.items()):
            raise ValueError(
                f"`{out / HALVES[half]}` was made with {there['steps']} steps and seed {there['seed']}, wanted "
                f"{steps[half]} and {seed}. Give another --out, or remove it."
            )
        write_atomically(out / CARD, card(made))
        say("\n".join(["", f"{out / HALVES[half]}", *table(half, made[half]["scores"])]))
    return [failure for half in halves for failure in failures(half, made[half])]


def say(text: str) -> None:
    print(text, flush=True)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llava micro", description="Make what the quickstart starts from.")
    actions = parser.add_subparsers(dest="action", required=True)
    making = actions.add_parser("bases", help="train both halves from nothing, measure them, write them with a card")
    making.add_argument("--out", type=Path, required=True, help="folder for vision/, language/ and README.md")
    making.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    making.add_argument("--only", choices=list(HALVES), help="one half instead of both")
    for half, number in STEPS.items():
        making.add_argument(f"--{half}-steps", type=int, default=number, help="(%(default)s)")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    halves = [args.only] if args.only else list(HALVES)
    steps = {"tower": args.tower_steps, "language": args.language_steps}
    failed = bases(args.out, halves, steps, args.seed)
    if failed:
        raise ValueError(f"Not as good as wanted: {'; '.join(failed)}. The weights are in `{args.out}`; train longer.")


if __name__ == "__main__":
    main()
