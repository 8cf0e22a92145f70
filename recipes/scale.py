"""The shards of `llava generate` as ranks of a datatrove pipeline: here, on Slurm or on Ray; and their merge.

All machines must see the folder of `--out`, where each shard has a ledger of its own. Run again after a failure: no
answer is asked for twice.
"""

import logging
from argparse import Namespace
from collections.abc import Iterable
from functools import partial
from typing import Any

from recipes import generate


def ask_shard(data: Any, rank: int, world_size: int, args: Namespace) -> Iterable[Any]:
    """One rank, in a process of its own."""
    call(Namespace(**vars(args) | {"launcher": None, "shard": rank}))
    return []


def merge(data: Any, rank: int, world_size: int, args: Namespace) -> Iterable[Any]:
    call(Namespace(**vars(args) | {"launcher": None, "merge": True}))
    return []


def call(args: Namespace) -> None:
    # In words alone: some errors do not come through the pipe to the parent, which would wait for ever.
    logging.basicConfig(format="%(message)s")
    try:
        generate.generate(args)
    except (ValueError, OSError) as error:
        raise RuntimeError(str(error)) from None
    except KeyboardInterrupt:
        raise RuntimeError("interrupted; what was answered is stored, and the rest is asked for next time") from None


def executor_of(args: Namespace) -> tuple[type, dict[str, Any]]:
    """datatrove's class, and what it needs beside the steps."""
    if args.launcher == "slurm":
        from datatrove.executor.slurm import SlurmPipelineExecutor

        where = {"partition": args.partition, "time": args.time, "env_command": args.env, "job_name": "llava-generate"}
        return SlurmPipelineExecutor, where | {"mem_per_cpu_gb": args.memory}
    if args.launcher == "ray":
        from datatrove.executor.ray import RayPipelineExecutor

        return RayPipelineExecutor, {"mem_per_cpu_gb": args.memory}
    from datatrove.executor import LocalPipelineExecutor

    return LocalPipelineExecutor, {}


def launch(args: Namespace) -> None:
    try:
        executor, where = executor_of(args)
    except ImportError as error:
        raise ValueError(
            f"--launcher needs datatrove ({error}). Install it: pip install 'visual-instruction-tuning[scale]'"
        ) from error
    # Ranks that are marked as done are run again: with other prompts they are not, and what is answered costs nothing.
    again: dict[str, Any] = {"skip_completed": False, **where}
    logs = args.out.absolute() / "logs"
    asking = executor(
        [partial(ask_shard, args=args)],
        tasks=args.num_shards,
        workers=args.workers or args.num_shards,
        logging_dir=f"{logs / 'shards'}",
        **again,
    )
    executor([partial(merge, args=args)], tasks=1, logging_dir=f"{logs / 'merge'}", depends=asking, **again).run()
