"""Has a language model write instruction data from the captions and boxes of pictures.

    llava generate --source coco --captions captions_train2017.json --instances instances_train2017.json \
        --image-root train2017 --model gpt-4o-mini --out data/instruct --dry-run
    llava generate --source jsonl --data scenes.jsonl --model m --base-url http://localhost:8000/v1 --out data/scenes

Every answer is stored before anything is done with it: the same command again asks for what is missing only, and
`--reparse` makes the data set again without asking. The key is OPENAI_API_KEY. See docs/generate.md.
"""

import argparse
import logging
import shlex
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from data_generation.estimate import estimate
from data_generation.failures import RunStopped
from data_generation.ledger import Ledger, LedgerInUse
from data_generation.ledger_copy import copy_ledger
from data_generation.pipeline import Failures, outcomes
from data_generation.summary import Summary
from recipes.generating.generate_flags import add_flags, check_flags, prices_of
from recipes.generating.generate_run import Run, ask_all, bring_in, check_ledgers, export, ledger_path, prepare
from recipes.generating.generate_sources import add_source_flags
from recipes.generating.generate_write import describe, write


def parser() -> argparse.ArgumentParser:
    description = "Have a model write instruction data from captions and boxes. See docs/generate.md."
    parser = argparse.ArgumentParser(prog="llava generate", description=description, allow_abbrev=False)
    add_source_flags(parser)
    add_flags(parser)
    return parser


def show_prompt(run: Run) -> None:
    """What would be sent for the first image, kind by kind."""
    shown = set()
    for task in run.tasks():
        if task.kind in shown:
            continue
        shown.add(task.kind)
        request = run.plan.request(task)
        fields = {name: value for name, value in request.body.items() if name != "messages"}
        print(f"===== {task.id}, prompt {run.plan.prompts[task.kind].version}, {fields}\n")
        for message in request.body["messages"]:
            print(f"--- {message['role']}\n{message['content']}\n")
        if len(shown) == len(run.plan.prompts):
            return
    if not shown:
        raise ValueError("No image of the source can be asked about.")


def dry_run(run: Run) -> None:
    args, summary = run.args, Summary()
    found = estimate(run.plan, run.tasks(summary), run.find, run.host)
    print(describe(summary))
    if not summary.tasks.kept and args.shard is None:
        raise ValueError(
            "No image of the source can be asked about, for the reasons above: a run would write nothing."
        )
    print("\n".join(found.lines(prices_of(args), args.rpm, args.tpm)))


def open_ledgers(run: Run, stack: ExitStack) -> None:
    """One for a run that asks; all of them where the data set is made from several shards."""
    args = run.args
    check_ledgers(args)
    numbers = range(args.num_shards) if args.shard is None else [args.shard]
    paths = {number: ledger_path(args, number) for number in numbers}
    if args.merge or args.reparse or args.dry_run:
        missing = [number for number, path in paths.items() if not path.is_file()]
        if missing and not args.dry_run:
            raise ValueError(
                f"`{args.out / 'ledger'}` has no ledger of shard {', '.join(map(str, missing))} of {args.num_shards}. "
                "Run those first."
            )
        paths = {number: path for number, path in paths.items() if number not in missing}
    for number, path in paths.items():
        run.ledgers[number] = stack.enter_context(look_at(path, stack) if args.dry_run else Ledger(path))


def look_at(path: Path, stack: ExitStack) -> Ledger:
    """A ledger to read, also while a run is on."""
    try:
        return Ledger(path)
    except LedgerInUse:
        print("A run is on: what it has been answered by now is taken into account.")
        return Ledger(copy_ledger(path, Path(stack.enter_context(TemporaryDirectory()))))


def what_now(run: Run) -> str:
    """After an early end: how to go on, and what makes a data set of what there is."""
    args = run.args
    if not (stored := sum(ledger.count() for ledger in run.ledgers.values())):
        return "The same command begins again."
    words = (
        f"Nothing that was answered is lost: {stored:,} answers are stored, and the same command goes on from here."
    )
    if args.shard is not None:
        return words
    if args.extra:  # there may be a secret in it
        return f"{words} With --reparse too it makes a data set of them."
    return f"{words} A data set of them: {shlex.join(['llava', 'generate', *args.words, '--reparse'])}"


def generate(args: argparse.Namespace) -> None:
    check_flags(args)
    if args.launcher and not (args.show_prompt or args.dry_run):
        from recipes.scale import launch

        return launch(args)
    run = prepare(args)
    if args.show_prompt:
        return show_prompt(run)
    with ExitStack() as stack:
        open_ledgers(run, stack)
        if args.dry_run:
            return dry_run(run)
        if args.transport != "sync" or args.reparse or args.merge:
            run.place.check()  # else after a pass over the source that is made anyway
        if args.transport == "export":
            return export(run)
        failures: Failures = {}
        stopped = None
        if args.transport == "import":
            bring_in(run, failures)
        elif not args.reparse and not args.merge:
            try:
                if ask_all(run, failures):
                    print(what_now(run))
                    raise KeyboardInterrupt
            except RunStopped as error:
                if error.reason != "budget":
                    raise RunStopped(error.reason, f"{str(error).rstrip('.')}. {what_now(run)}") from None
                stopped = error  # what the money was enough for is a data set
        if args.shard is None:
            try:
                summary = write(run, failures)
            except ValueError as error:
                raise stopped or error from None  # that there is no row says less than what the run ended with
            print(f"{args.out}: {describe(summary)}\nLook at {args.out / 'report.html'}.")
        else:
            summary = Summary()
            found = outcomes(run.plan, run.tasks(summary), run.find, run.host, failures)
            for _ in summary.rows_of(found, run.plan, None, run.source.name, lambda image: None):
                pass
            print(f"shard {args.shard} of {args.num_shards}: {describe(summary)}")
        if stopped is not None:
            raise stopped


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    args.words = sys.argv[1:] if argv is None else argv
    logging.basicConfig(format="%(message)s")
    logging.getLogger("data_generation").setLevel(logging.INFO)
    generate(args)


if __name__ == "__main__":
    main()
