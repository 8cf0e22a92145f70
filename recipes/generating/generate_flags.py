"""The flags of `llava generate` beside its source, and what they mean together."""

import argparse
import json
import re
from argparse import Namespace
from pathlib import Path
from typing import Any, get_args

from data_generation.budget import Caps, Prices
from data_generation.limits import Pace
from data_generation.parsing import Kind
from data_generation.prompting import Prompt, load_prompt


KINDS = get_args(Kind)
TRANSPORTS = ("sync", "batch", "export", "import")
BOXES = {"paper": None, "always": True, "never": False}


def add_flags(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what is written")
    what.add_argument("--out", type=Path, required=True, metavar="DIR", help="data set, ledger, report and card")
    what.add_argument("--kinds", default=",".join(KINDS), help="some of %(default)s, with commas")
    what.add_argument("--count", metavar="KIND=N,...", help="images for each kind, chosen by the seed (all)")
    what.add_argument("--limit", type=positive, help="to try it: at most so many images")
    what.add_argument("--seed", type=int, default=0, help="of the choice of images and questions (%(default)s)")
    what.add_argument("--prompts", type=Path, metavar="DIR", help="prompts of your own, kind by kind")
    what.add_argument("--boxes", choices=BOXES, default="paper", help="who sees boxes; paper: all but conversation")
    what.add_argument(
        "--images", choices=("embed", "paths"), default="embed", help="pictures in the rows (%(default)s)"
    )
    what.add_argument(
        "--duplicates",
        choices=("near", "exact", "keep"),
        default="near",
        help="rows left out: near the words of an earlier one, the same words, or none (%(default)s)",
    )
    what.add_argument("--license", type=one_word, help="of the data set, for the card's header, such as cc-by-4.0")

    model = parser.add_argument_group("who writes")
    model.add_argument("--model", required=True, help="its name at the server")
    model.add_argument("--base-url", metavar="URL", help="any server that speaks the OpenAI API (OpenAI's)")
    model.add_argument("--server", metavar="NAME", help="name for the server where its address changes between runs")
    model.add_argument("--temperature", type=not_negative, help="(the server's)")
    model.add_argument("--max-output", type=positive, default=2048, help="tokens of an answer (%(default)s)")
    model.add_argument("--json", action="store_true", help="answers by a JSON schema, instead of as text")
    model.add_argument("--service-tier", help="such as flex: half the price at OpenAI, and slower")
    model.add_argument("--extra", type=json_object, default={}, metavar="JSON", help="more fields of every request")
    model.add_argument("--attempts", type=positive, help="answers until one can be used (3; at temperature 0 one)")

    pace = parser.add_argument_group("how fast, and for how much")
    pace.add_argument("--transport", choices=TRANSPORTS, default="sync", help="(%(default)s)")
    pace.add_argument("--file", type=Path, action="append", metavar="JSONL", help="to export to, or import from")
    pace.add_argument("--enqueued-tokens", type=positive, help="batch: that your account may have waiting")
    pace.add_argument("--poll", type=positive_number, default=60.0, help="batch: seconds between looks (%(default)s)")
    add_limit_flags(pace)

    parts = parser.add_argument_group("several processes")
    parts.add_argument("--shard", type=int, metavar="I", help="this process's share of the images, from 0")
    parts.add_argument("--num-shards", type=positive, default=1, metavar="N")
    parts.add_argument("--workers", type=positive, metavar="N", help="shards at the same time, which share the limits")
    parts.add_argument("--merge", action="store_true", help="the data set, once all shards are done")

    parts.add_argument(
        "--launcher", choices=("local", "slurm", "ray"), help="starts all shards, then merges; datatrove"
    )
    parts.add_argument("--partition", help="slurm: where to")
    parts.add_argument("--time", help="slurm: the longest a shard may take, as 20:00:00")
    parts.add_argument("--memory", type=positive, default=8, help="slurm, ray: GB for a shard (%(default)s)")
    parts.add_argument("--env", metavar="COMMAND", help="slurm: makes `python` ours, as `source .venv/bin/activate`")

    other = parser.add_argument_group("without asking").add_mutually_exclusive_group()
    other.add_argument("--show-prompt", action="store_true", help="print what would be sent for one image")
    other.add_argument("--dry-run", action="store_true", help="print requests, tokens, money and hours")
    other.add_argument("--reparse", action="store_true", help="make the data set again from stored answers")


def add_limit_flags(group: argparse._ArgumentGroup) -> None:
    """What `caps_of` and `pace_of` read, beside the flags of shards."""
    group.add_argument("--concurrency", type=positive, default=64, help="requests in flight (%(default)s)")
    group.add_argument("--rpm", type=positive_number, help="requests a minute, of your account")
    group.add_argument("--tpm", type=positive_number, help="tokens a minute, of your account")
    group.add_argument("--deadline", type=positive_number, default=300.0, help="seconds for an answer (%(default)s)")
    group.add_argument("--max-cost", type=float, metavar="DOLLARS", help="never spends more; needs prices")
    group.add_argument("--max-requests", type=positive)
    group.add_argument("--max-tokens", type=positive)
    for name in ("input", "output", "cached-input", "cache-write"):
        group.add_argument(f"--price-{name}", type=float, metavar="DOLLARS", help="per million tokens, as you pay it")


def check_flags(args: Namespace) -> None:
    """What one flag alone cannot say."""
    quiet = args.show_prompt or args.dry_run
    if args.launcher and (args.num_shards == 1 or args.shard is not None or args.merge or args.transport != "sync"):
        raise ValueError(
            "--launcher needs --num-shards, and starts --shard and --merge itself, with --transport sync."
        )
    if args.launcher == "slurm" and not (args.partition and args.time):
        raise ValueError("--launcher slurm needs --partition and --time.")
    if args.workers and args.workers > args.num_shards:
        raise ValueError(f"--workers {args.workers} are more than the {args.num_shards} shards.")
    if args.num_shards == 1 and (args.shard is not None or args.merge or args.workers):
        raise ValueError("--shard, --merge and --workers need --num-shards, the number of shards there are.")
    if args.num_shards > 1 and not quiet and (args.shard is None) != bool(args.merge or args.launcher):
        raise ValueError(
            f"--num-shards {args.num_shards} needs --shard for one of them, or --merge once all are done."
        )
    if args.shard is not None and not 0 <= args.shard < args.num_shards:
        raise ValueError(f"There is no shard {args.shard} of {args.num_shards}. They are numbered from 0.")
    if args.reparse and args.num_shards > 1:
        raise ValueError("--reparse makes the whole data set. With shards that is --merge.")
    if (args.transport in ("export", "import")) != bool(args.file):
        raise ValueError("--file goes with --transport export or import, and these need it.")
    if args.transport == "export" and len(args.file) > 1:
        raise ValueError("--transport export writes one --file.")
    if args.temperature == 0 and (args.attempts or 1) > 1:
        raise ValueError("At --temperature 0 another attempt gives the same answer. Leave out --attempts.")
    if args.images == "embed" and args.source == "coco" and args.image_root is None:
        raise ValueError("To embed pictures --image-root has to say where they are. Without it: --images paths.")
    if args.enqueued_tokens and args.transport != "batch":
        raise ValueError("--enqueued-tokens goes with --transport batch.")


def kinds_of(args: Namespace) -> list[Kind]:
    kinds = args.kinds.split(",")
    if odd := [kind for kind in kinds if kind not in KINDS or kinds.count(kind) > 1]:
        raise ValueError(f"--kinds {args.kinds}: {odd[0]!r} is wrong or double; wanted some of {','.join(KINDS)}.")
    return kinds


def prompts_of(args: Namespace) -> dict[Kind, Prompt]:
    form = "json" if args.json else "text"
    return {kind: load_prompt(kind, args.prompts, form, BOXES[args.boxes]) for kind in kinds_of(args)}


def numbers_of(args: Namespace) -> dict[Kind, int]:
    """Images of each kind; empty where all are wanted."""
    if args.count is None:
        return {}
    kinds = kinds_of(args)
    found: dict[Any, int] = {}
    for part in args.count.split(","):
        match = re.fullmatch(r"(\w+)=([1-9]\d*)", part.replace("_", ""))
        if not match or match[1] not in kinds or match[1] in found:
            raise ValueError(f"--count {args.count}: {part!r}; wanted {','.join(kinds)} once each, as {kinds[0]}=9.")
        found[match[1]] = int(match[2])
    if missing := [kind for kind in kinds if kind not in found]:
        raise ValueError(f"--count says nothing of {', '.join(missing)}. Add a number, or take it out of --kinds.")
    return {kind: number if args.limit is None else min(number, args.limit) for kind, number in found.items()}


def fields_of(args: Namespace) -> dict[str, Any]:
    """What every request says beside its messages. A null in --extra takes a field out."""
    fields = {
        "model": args.model,
        "max_completion_tokens": args.max_output,
        "temperature": args.temperature,
        "service_tier": args.service_tier,
    }
    if odd := {"messages", "model", "stream", "n"} & set(args.extra):
        raise ValueError(f"--extra may not hold {', '.join(sorted(odd))}.")
    fields = {name: value for name, value in (fields | args.extra).items() if value is not None}
    for name in ("max_completion_tokens", "max_tokens"):
        most = fields.get(name, 1)
        if not isinstance(most, int) or isinstance(most, bool) or most < 1:
            raise ValueError(f"--extra says {name}: {json.dumps(most)}; wanted a whole number, 1 or more.")
    return fields


def prices_of(args: Namespace) -> Prices | None:
    given = (args.price_input, args.price_output, args.price_cached_input, args.price_cache_write)
    if args.price_input is not None and args.price_output is not None:
        return Prices(*given)
    if any(price is not None for price in given):
        raise ValueError("Prices need --price-input and --price-output, both in dollars per million tokens.")
    return None


def caps_of(args: Namespace) -> Caps:
    """This process's part of what may be spent."""
    caps = {name: getattr(args, name) for name in ("max_cost", "max_requests", "max_tokens")}
    if args.max_cost is not None and prices_of(args) is None:
        raise ValueError("--max-cost needs --price-input and --price-output, in dollars per million tokens.")
    for name, cap in caps.items():
        if cap is not None and name != "max_cost" and cap < args.num_shards:
            raise ValueError(f"--{name.replace('_', '-')} {cap} cannot be divided among {args.num_shards} shards.")
    shared = {
        name: cap if cap is None else cap / args.num_shards if name == "max_cost" else cap // args.num_shards
        for name, cap in caps.items()
    }
    return Caps(**shared, prices=prices_of(args))


def pace_of(args: Namespace) -> Pace:
    """This process's part of what the account may do; what is in flight is counted for each process."""
    share = args.workers or args.num_shards
    return Pace(args.concurrency, args.rpm and args.rpm / share, args.tpm and args.tpm / share, args.deadline)


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}; wanted 1 or more")
    return number


def positive_number(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}; wanted a number above 0")
    return number


def not_negative(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}; wanted a number, 0 or more")
    return number


def one_word(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z][\w.+-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r}; wanted the Hub's name of one, such as cc-by-4.0")
    return text


def json_object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from error
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f'{text}; wanted an object, as {{"top_p": 0.9}}')
    return found
