"""One run of `llava generate`: its images, plan and ledgers, and the ways to have them answered."""

import asyncio
import os
import re
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from data_generation.batch import BatchPace, BatchTeacher
from data_generation.batch_transfer import export_requests, import_answers
from data_generation.draining import drain_on_signals
from data_generation.ledger import Ledger, Spent
from data_generation.pictures import path_from
from data_generation.pipeline import Failures, Plan, Task, ask, unanswered
from data_generation.rejections import Counts
from data_generation.selection import Part, Selection, part_of, select
from data_generation.server import host_of
from data_generation.shards import Tally
from data_generation.sources import AnnotatedImage
from data_generation.summary import Summary
from data_generation.teacher import Teacher
from recipes.generating.generate_flags import caps_of, fields_of, numbers_of, pace_of, prompts_of
from recipes.generating.generate_place import Place
from recipes.generating.generate_sources import Source, open_source


OPENAI = "https://api.openai.com/v1"
T = TypeVar("T")


@dataclass
class Run:
    args: Namespace
    source: Source
    plan: Plan
    host: str
    place: Place
    total: int | None = None  # tasks, once they are known
    ledgers: dict[int, Ledger] = field(default_factory=dict)  # by shard

    def tasks(self, summary: Summary | None = None) -> Iterator[Task]:
        """All of this run's, read anew; what is left out is counted in `summary`."""
        summary = summary or Summary()
        images = self.place.watch(self.source.read(summary.source))
        if self.args.images == "paths":
            images = map(self._with_path, images)
        return self.plan.tasks(images, summary.tasks)

    def _with_path(self, image: AnnotatedImage) -> AnnotatedImage:
        path_from(image.image, self.source.root)  # the error, where there is none, before anything is paid
        return image

    def find(self, image_id: str, keys: Sequence[str]) -> list[bytes | None]:
        ledger = self.ledgers.get(part_of(image_id, self.args.num_shards))
        return [None] * len(keys) if ledger is None else ledger.find(keys)

    def account(self, summary: Summary) -> None:
        """What all ledgers together have cost, at the prices of the day of each request."""
        caps = caps_of(self.args)
        summary.spent = spent = sum((ledger.spent for ledger in self.ledgers.values()), Spent())
        summary.cost = caps.cost(spent) if caps.prices or spent.cost else None


def prepare(args: Namespace) -> Run:
    prompts = prompts_of(args)
    fields = fields_of(args)
    source = open_source(args)
    numbers = numbers_of(args)
    host = args.server or host_of(args.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI)
    place = Place(None if args.show_prompt or args.dry_run else args.out, source.name, source.read)
    selection = Selection(args.seed, first=args.limit)
    if numbers:
        images = watched(place.watch(source.read(Counts())), "choosing images")
        selection = select(images, prompts, numbers, args.seed)
    plan = Plan(
        prompts,
        fields,
        selection,
        Part() if args.shard is None else Part(args.shard, args.num_shards),
        args.seed,
        args.attempts or (1 if args.temperature == 0 else 3),
        check_pictures=args.source != "coco" or args.image_root is not None,
    )
    return Run(args, source, plan, host, place, sum(numbers.values()) if numbers and args.shard is None else None)


def watched(things: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """With a bar, for passes over everything that ask nobody; in a log a line now and then."""
    interval = 0.5 if sys.stderr.isatty() else 15.0
    return iter(tqdm(things, what, total, unit="", mininterval=interval, dynamic_ncols=True))


def ledger_path(args: Namespace, number: int) -> Path:
    return args.out / "ledger" / f"{number:05d}-of-{args.num_shards:05d}.sqlite"


def check_ledgers(args: Namespace) -> None:
    """What was answered in another number of shards would not be found, and be paid for again."""
    pattern = f"-of-{args.num_shards:05d}"
    others = [path for path in sorted((args.out / "ledger").glob("*-of-*.sqlite")) if pattern not in path.name]
    if others:
        raise ValueError(
            f"`{others[0]}` belongs to a run with another number of shards than {args.num_shards}. Keep to that "
            "number, or take another --out; what was answered would be paid for again."
        )


def is_same_model(asked: str, said: str) -> bool:
    """Servers add a date, or leave out the folder: gpt-4o-2024-08-06 is gpt-4o, and gpt-4o-mini is not."""
    asked, said = (name.rstrip("/").rpartition("/")[2].lower() for name in (asked, said))
    return re.fullmatch(rf"{re.escape(asked)}([-@:]\d[\d-]*)?", said) is not None


def ask_all(run: Run, failures: Failures) -> bool:
    """Has everything answered over the network; True if somebody interrupted."""
    if run.args.transport == "batch":
        return asyncio.run(ask_in_batches(run, failures))
    if run.total is None:  # for the bar; outside the loop, where Ctrl-C ends it at once
        # Without a look at each picture: broken ones are few.
        quick = replace(run, plan=replace(run.plan, check_pictures=False))
        run.total = sum(1 for _ in watched(quick.tasks(), "counting tasks"))
    run.place.check()
    return asyncio.run(ask_at_once(run, failures))


async def ask_at_once(run: Run, failures: Failures) -> bool:
    args = run.args
    (ledger,) = run.ledgers.values()
    async with Teacher(
        ledger, base_url=args.base_url, server=args.server, pace=pace_of(args), caps=caps_of(args), show_progress=True
    ) as teacher:
        with drain_on_signals(teacher):
            await ask(teacher, run.plan, run.tasks(), failures, run.total)
        return teacher.interrupted


async def ask_in_batches(run: Run, failures: Failures) -> bool:
    """A round for each attempt: what came back and cannot be used goes into the next."""
    args = run.args
    enqueued = args.enqueued_tokens and args.enqueued_tokens // (args.workers or args.num_shards)
    pace = BatchPace(enqueued_tokens=enqueued, poll=args.poll)
    (ledger,) = run.ledgers.values()
    async with BatchTeacher(
        ledger,
        ledger.path.with_suffix(".batches"),
        base_url=args.base_url,
        server=args.server,
        pace=pace,
        caps=caps_of(args),
    ) as batches:
        with drain_on_signals(batches):
            for attempt in range(run.plan.attempts):
                requests = unanswered(run.plan, run.tasks(), run.find, run.host, attempt)
                tally = await batches.fill(requests)
                tell(tally)
                failures |= tally.reasons
                if batches.interrupted:
                    return True
    return False


def tell(tally: Tally) -> None:
    print(f"{tally.answered:,} answers came in, {tally.cached:,} were there before")
    for reason, (number, examples) in tally.failed.items():
        print(f"{number:,} failed, {reason}: {', '.join(examples)}")


def export(run: Run) -> None:
    (ledger,), path = run.ledgers.values(), run.args.file[0]
    if path.is_dir():
        raise ValueError(f"--file `{path}` is a folder. Name the file to write.")
    requests = unanswered(run.plan, run.tasks(), run.find, run.host)
    number, _ = export_requests(ledger, requests, run.host, path)
    print(f"{path}: {number:,} requests. Bring the answers back with --transport import --file ANSWERS.")


def bring_in(run: Run, failures: Failures) -> None:
    (ledger,) = run.ledgers.values()
    for path in run.args.file:
        if not path.is_file():
            raise ValueError(f"--file `{path}` is no file. Check the path.")
    tally = asyncio.run(import_answers(ledger, run.args.file, caps_of(run.args)))
    tell(tally)
    if others := {name: number for name, number in tally.models.items() if not is_same_model(run.args.model, name)}:
        print(
            f"warning: --model is {run.args.model}, and "
            + ", ".join(f"{number:,} answers say they are by {name or 'nobody'}" for name, number in others.items())
            + ". They are stored, and their rows name who wrote them. If that is wrong, take another --out."
        )
    failures |= tally.reasons
