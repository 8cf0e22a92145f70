"""The console script `llava`: finds a command's module, imports it, and runs it.

    llava build --help

Nothing heavier than the standard library is imported before a command is chosen, so `llava --help` is quick.
"""

import argparse
import difflib
import errno
import importlib
import os
import re
import signal
import sys
from importlib.metadata import version


# The name a user types -> the module that offers `parser()` and `main(argv)`, and one line for `llava --help`.
COMMANDS = {
    "quickstart": ("recipes.quickstart", "The whole method in miniature, on two CPU cores and without network"),
    "build": ("recipes.build", "Join a vision tower and a language model into one checkpoint"),
    "convert": ("recipes.convert", "Turn original-LLaVA checkpoints into this format, and back"),
    "generate": ("recipes.generate", "Have a language model write instruction data from captions and boxes"),
    "teacher": ("recipes.teacher", "Run a local teacher and judge that need no model, to try things with"),
    "data": ("recipes.data", "Check training data; convert the original's JSON to rows and back"),
    "captions": ("recipes.captions", "Make stage-1 data of captions, balanced over what they speak of"),
    "scienceqa": ("recipes.scienceqa", "ScienceQA: training data, answers, scores, ensembles with a text-only model"),
    "score": ("recipes.score", "Score answers to POPE, TextVQA, VQAv2, VizWiz, GQA, MMBench, SEED-Bench"),
    "reproduce": ("recipes.reproduce", "The paper's ablations in miniature: every row, over several seeds"),
    "train": ("recipes.train", "Train the projector (stage 1), or projector and language model (stage 2)"),
    "answer": ("recipes.answer", "Have a checkpoint or a served model answer questions about pictures"),
    "judge": ("recipes.judge", "Score answers beside reference answers with a judge: the relative score"),
    "chat": ("recipes.chat", "Talk to a checkpoint in the terminal, about pictures"),
    "demo": ("recipes.demo", "A web page to talk to a checkpoint, or to two side by side"),
    "micro": ("recipes.micro.bases", "Pretrain the two small halves that the quickstart starts from"),
    "merge": ("recipes.merge", "Fold a LoRA adapter into a full checkpoint"),
    "push": ("recipes.push", "Publish a model or a data set on the Hub, with a card of what happened"),
    "env": ("recipes.env", "Show versions and devices, for a report of a bug"),
    "completion": ("recipes.completion", "Write what bash, zsh or fish needs to complete the words of `llava`"),
}


def parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="llava",
        usage="llava [--debug] <command> [arguments]",
        description=f"Build, train and evaluate LLaVA models.\n\ncommands:\n{lines}",
        epilog="`llava <command> --help` lists its arguments.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    parser.add_argument("--debug", action="store_true", help="before a command: show where an error came from")
    return parser


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    debug = argv[:1] == ["--debug"]
    argv = argv[debug:]
    if not argv:
        parser().print_help(sys.stderr)
        return 2

    name, arguments = argv[0], [with_home(argument) for argument in argv[1:]]
    if name.startswith("-"):
        if parser().parse_args(argv).version:
            print(f"llava {version('visual-instruction-tuning')}")
        return 0

    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS)
        guess = f" Did you mean {' or '.join(f'`{match}`' for match in near)}?" if near else ""
        print(f"llava: error: unknown command `{name}`.{guess} Commands: {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2

    try:
        importlib.import_module(COMMANDS[name][0]).main(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # `head` or a pager has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its end
        print(f"llava {name}: stopped, since nobody reads what it prints any more", file=sys.stderr)
        return 128 + signal.SIGPIPE
    except (ValueError, OSError) as error:
        # These two are how users are told what to change; anything else is a bug and keeps its traceback.
        if debug:
            raise
        print(f"llava {name}: error: {' '.join(own_words(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"llava {name}: interrupted", file=sys.stderr)
        return 130
    return 0


def with_home(argument: str) -> str:
    """`--out=~/x` and `coco=~/x` as they are meant: a shell writes out a `~` only where it begins a word."""
    found = re.fullmatch(r"((?:[\w./-]+=)+)(~(?:/.*)?)", argument, re.DOTALL)
    return argument if found is None else found[1] + os.path.expanduser(found[2])


ADVICE = {
    errno.ENOENT: "Check the path.",
    errno.ENOTDIR: "Check the path.",
    errno.EISDIR: "Give a file.",
    errno.EACCES: "Give a place that you may read and write.",
    errno.EROFS: "Give another place.",
    errno.ENOSPC: "Make space, and start the same command again.",
    errno.EDQUOT: "Make space, and start the same command again.",
}


def own_words(error: Exception) -> str:
    """What an error says; of one of the system the file and what to do, of one from a worker of a dataloader, without
    the traceback that torch packs around it.
    """
    if isinstance(error, OSError) and error.errno in ADVICE and error.filename is not None:
        return f"`{os.fsdecode(error.filename)}`: {error.strerror}. {ADVICE[error.errno]}"
    text = str(error)
    kind = re.match(r"Caught (\w+) in DataLoader worker process \d+\.\nOriginal Traceback", text)
    if kind is None:
        return text
    return re.split(rf"^(?:[\w.]+\.)?{kind[1]}: ", text, flags=re.MULTILINE)[-1]


if __name__ == "__main__":
    sys.exit(main())
