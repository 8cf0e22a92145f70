"""Publishes a model or a data set on the Hub, with a card written from what really happened.

    llava push model checkpoints/stage2 --repo-id ada/llava-small --scores scores.json --dry-run
    llava push dataset data/instruct --repo-id ada/instruct --private

Before anything is sent, pickles, checkpoints that stock transformers does not load, secrets and local paths are
refused. Everything is one commit. Nothing is written into the folder. See docs/push.md.
"""

import argparse
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from recipes.publishing.card_example import Example
    from recipes.publishing.model_scores import Score
    from recipes.publishing.push_files import Selection, Upload


def push_model(args: argparse.Namespace) -> None:
    from recipes.publishing.card_example import ask, from_page
    from recipes.publishing.model_scores import read_scores
    from recipes.publishing.push_checks import check_loads
    from recipes.publishing.push_files import model_files

    if (args.picture is None) != (args.question is None):
        raise ValueError("--picture and --question go together: a picture, and what is asked about it.")
    scores = [score for path in args.scores for score in read_scores(path, args.place.name)]
    selection = model_files(args.place, args.include_training_state == "yes")
    parameters = check_loads(args.place, selection.uploads)
    example = from_page(args.place) if args.picture is None else ask(args.place, args.picture, args.question)

    def describe(old: str) -> list["Upload"]:
        return describe_model(args.place, args.repo_id, parameters, scores, example, old)

    publish(args, selection, describe)


def describe_model(
    folder: Path,
    repo_id: str,
    parameters: int,
    scores: list["Score"],
    example: "Example | None",
    old: str,
    facts: dict[str, Any] | None = None,
    step: int | None = None,
) -> list["Upload"]:
    """What is published beside the files of a checkpoint: card, records of training, pictures."""
    from recipes.building.parts import read_json
    from recipes.publishing.loss_plot import draw_losses
    from recipes.publishing.model_card import EXAMPLE, LOSSES, model_card
    from recipes.publishing.model_history import history, records
    from recipes.publishing.push_files import CARD, Upload

    found = history(folder, facts)
    made = records(found)
    curves = [(f"stage {n}: {stage.name}", *stage.losses()) for n, stage in enumerate(found.stages, 1)]
    if curves := [curve for curve in curves if curve[1] or curve[2]]:
        made.append(Upload(LOSSES, draw_losses(curves)))
    if example is not None:
        made.append(Upload(EXAMPLE + example.suffix, example.picture))
    config = read_json(folder / "config.json")
    card = model_card(repo_id, config, parameters, found, scores, example, old, step)
    return [*made, Upload(CARD, card.encode())]


def push_dataset(args: argparse.Namespace) -> None:
    from recipes.publishing.push_data import data_card, data_files
    from recipes.publishing.push_files import CARD, Upload

    selection = data_files(args.place)

    def describe(old: str) -> list["Upload"]:
        return [Upload(CARD, data_card(args.repo_id, args.place, selection.uploads, old).encode())]

    publish(args, selection, describe)


def publish(args: argparse.Namespace, selection: "Selection", describe: Callable[[str], list["Upload"]]) -> None:
    """`describe` makes the card, and what goes with it, of the card that it replaces."""
    from huggingface_hub import HfApi

    from data_generation.card import YOURS, read_card
    from recipes.publishing.old_card import joined
    from recipes.publishing.push_files import CARD
    from recipes.publishing.push_secrets import check_contents
    from recipes.publishing.push_upload import make_repository, read_old_card, upload

    old = read_card(args.place / CARD) if args.place.is_dir() else ""
    uploads = [*selection.uploads, *describe(old)]
    check_contents(uploads)
    if old and YOURS not in old and args.action == "model":
        print(f"`{args.place / CARD}` stays as it is; the card that is published ends with its words")
    if args.dry_run:
        return show(args.repo_id, uploads, selection)
    api = HfApi()
    make_repository(api, args.repo_id, args.action, args.private)
    there = read_old_card(api, args.repo_id, args.action)
    both, is_lost = joined(old, there)
    if both != old:
        described = describe(both)
        check_contents(described)
        uploads = [*selection.uploads, *described]
    if is_lost:
        print(f"{CARD} of the Hub had other words of its own; those of `{args.place / CARD}` take their place")
    tell_left_out(selection)
    address, stale = upload(api, args.repo_id, args.action, uploads, f"llava push {args.action}: {args.place.name}")
    if stale:
        print(f"removed, of an earlier push: {', '.join(stale)}")
    print(f"{address}: {len(uploads)} files, {sum(one.size for one in uploads):,} bytes")


def show(repo_id: str, uploads: list["Upload"], selection: "Selection") -> None:
    """The files, their sizes, and the card."""
    from recipes.publishing.push_files import CARD

    width = max(len(upload.name) for upload in uploads)
    print(f"{repo_id} would get {len(uploads)} files, and nothing has been sent:")
    for upload in sorted(uploads, key=lambda one: one.name):
        print(f"  {upload.name:<{width}}{upload.size:>16,}")
    print(f"  {'all':<{width}}{sum(upload.size for upload in uploads):>16,}")
    tell_left_out(selection)
    card = next(upload for upload in uploads if upload.name == CARD)
    print(f"\n----- {CARD}\n{card.read().decode()}")


def tell_left_out(selection: "Selection") -> None:
    for reason, names in sorted(selection.left_out.items()):
        print(f"left out, {reason}: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''} ({len(names):,})")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llava push", description="Publish a model or a data set on the Hub.")
    actions = parser.add_subparsers(dest="action", required=True)
    model = actions.add_parser("model", help="a checkpoint, with its card")
    model.add_argument("place", type=Path, metavar="DIR", help="folder of the checkpoint")
    add_common(model)
    model.add_argument(
        "--include-training-state",
        choices=["no", "yes"],
        default="no",
        help="also the last complete checkpoint-N, with its optimizer (%(default)s)",
    )
    model.add_argument(
        "--scores",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE.json",
        help="for the card: what `llava score`, `judge`, `scienceqa score` and `quickstart` wrote",
    )
    model.add_argument("--picture", type=Path, help="for the card: the model is asked about it (samples.html's first)")
    model.add_argument("--question", help="about --picture")
    data = actions.add_parser("dataset", help="a data set, with its card")
    data.add_argument("place", type=Path, metavar="DIR|FILE", help="of `llava generate`; or .parquet or .jsonl")
    add_common(data)
    return parser


def add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repo-id", required=True, metavar="USER/NAME", help="where to")
    parser.add_argument("--private", action="store_true", help="make the repository a private one")
    parser.add_argument("--dry-run", action="store_true", help="check everything; list files, sizes and the card")


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    from recipes.publishing.push_upload import check_repo_id

    check_repo_id(args.repo_id)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # of retries; what they end with is told
    warnings.filterwarnings("ignore", message="Warnings while validating metadata")
    if args.action == "model":
        push_model(args)
    else:
        push_dataset(args)


if __name__ == "__main__":
    main()
