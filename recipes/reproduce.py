"""The paper's ablations in miniature: every row of two tables, over several seeds, as a page and as Markdown.

    llava reproduce                                  # recipes/micro/tables.yaml, into runs/tables
    llava reproduce --rows "full data" conversation --seeds 0

Parts that are free of each other run side by side, each in a process of its own that writes a log. What is finished is
not done again.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm


SECONDS_BETWEEN_LOOKS = 0.5
TOLD = 15  # last lines of the log of a part that failed


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llava reproduce", description="The paper's tables on the micro world.")
    default = Path(__file__).parent / "micro/tables.yaml"
    parser.add_argument("--config", type=Path, default=default, help="rows and seeds (recipes/micro/tables.yaml)")
    parser.add_argument("--out", type=Path, default=Path("runs/tables"), help="(%(default)s)")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="rows of the file (all)")
    parser.add_argument("--seeds", nargs="+", type=int, help="(those of the file)")
    parser.add_argument("--jobs", type=int, default=2, help="parts at once, a core each (%(default)s)")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # how parts are started
    return parser


def reproduce(args: argparse.Namespace) -> None:
    from recipes.micro.tables import plan, read_tables, run_part
    from recipes.micro.tables_report import write_reports
    from recipes.run_folder import alone_in

    tables = read_tables(args.config)
    rows, seeds = args.rows or list(tables.rows), args.seeds or tables.seeds
    if unknown := [name for name in rows if name not in tables.rows]:
        raise ValueError(f"{args.config} has no row `{unknown[0]}`. There are: {', '.join(tables.rows)}.")
    if args.jobs < 1:
        raise ValueError(f"--jobs {args.jobs}; wanted 1 or more.")
    if args.part:
        return run_part(args.out, tables, args.part, rows)
    with alone_in(args.out, True, "--out"):
        check_config(args.out, args.config)
        run_all(plan(tables, rows, seeds), args, rows)
        for path in write_reports(args.out, tables, rows, seeds):
            print(path)


def check_config(out: Path, config: Path) -> None:
    """A folder belongs to one file; other rows and seeds of it may come later."""
    from data_generation.replacing import write_atomically

    kept, text = out / "tables.yaml", config.read_text(encoding="utf-8")
    if kept.exists() and kept.read_text(encoding="utf-8") != text:
        raise ValueError(f"`{out}` was made with another {config.name}, which is in `{kept}`. Give another --out.")
    write_atomically(kept, text)


def run_all(needs: dict[str, list[str]], args: argparse.Namespace, rows: Sequence[str]) -> None:
    from recipes.micro.tables import result_of

    # The judge is asked again about more rows; what it has judged is in its ledger.
    finished = {part for part in needs if not part.endswith("/judge") and result_of(args.out, part).exists()}
    waiting = [part for part in needs if part not in finished]
    running: dict[str, subprocess.Popen] = {}
    failed: list[str] = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of what stops the parts
    bar = tqdm(total=len(needs), initial=len(finished), desc="parts", unit="part", disable=None)
    try:
        while running or (waiting and not failed):
            ready = [part for part in waiting if finished.issuperset(needs[part])]
            for part in ready[: 0 if failed else args.jobs - len(running)]:
                waiting.remove(part)
                running[part] = start(part, args, rows)
            bar.set_postfix_str(", ".join(running))
            time.sleep(SECONDS_BETWEEN_LOOKS)
            for part in [part for part, process in running.items() if process.poll() is not None]:
                if running.pop(part).returncode:
                    failed.append(part)
                else:
                    finished.add(part)
                    bar.update()
    except BaseException:
        # Ctrl-C has reached them too, SIGTERM has not.
        for process in running.values():
            process.send_signal(signal.SIGTERM)
        for process in running.values():
            process.wait()
        raise
    finally:
        bar.close()
    if failed:
        path = log_of(args.out, failed[0])
        last = path.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").strip().splitlines()[-TOLD:]
        raise ValueError(f"`{failed[0]}` failed; {path} ends with: {' | '.join(line.strip() for line in last)}")


def start(part: str, args: argparse.Namespace, rows: Sequence[str]) -> subprocess.Popen:
    words = ["--config", str(args.config), "--out", str(args.out), "--part", part, "--rows", *rows]
    log = log_of(args.out, part)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as file:
        print("$", shlex.join(["llava", "reproduce", *words]), file=file, flush=True)
        return subprocess.Popen(
            [sys.executable, "-m", "recipes.cli", "reproduce", *words],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def log_of(out: Path, part: str) -> Path:
    return out / "logs" / f"{part.replace('/', '-')}.log"


def main(argv: list[str] | None = None) -> None:
    reproduce(parser().parse_args(argv))


if __name__ == "__main__":
    main()
