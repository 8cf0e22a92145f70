"""A teacher and judge without a model: a local server that speaks the OpenAI API and writes by rules.

    llava teacher --port 8010
    llava generate --source microworld --limit 1000 --model microworld --base-url http://127.0.0.1:8010/v1 ...

It sees only the text of a request, as a language model would: captions, boxes, questions, answers. It knows the micro
world's; of other captions it makes modest turns. A real model takes its place with another --base-url and --model.
The flags of chances make it fail, to try a client.
"""

import argparse
import asyncio
from dataclasses import fields

from data_generation.microworld.teacher.completion import MODEL
from data_generation.microworld.teacher.faults import Chances
from data_generation.microworld.teacher.server import HOST, TeacherServer, url_of


FAULTS = {
    "throttled": "429 with Retry-After",
    "failed": "500",
    "slow": "an answer after --delay",
    "cut": "half an answer, then the end of the connection",
    "dropped": "the end of the connection, without an answer",
}


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llava teacher", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=8010, help=f"at {HOST}; 0 for any that is free (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of what is written, and of the faults (%(default)s)")
    faults = parser.add_argument_group("faults, for a client to be tried with", "chances from 0 to 1 of each request")
    for name, what in FAULTS.items():
        faults.add_argument(f"--{name}", type=float, default=0.0, metavar="P", help=what)
    faults.add_argument("--retry-after", type=float, default=1.0, metavar="SECONDS", help="(%(default)s)")
    faults.add_argument("--delay", type=float, default=5.0, metavar="SECONDS", help="(%(default)s)")
    return parser


async def serve(server: TeacherServer, port: int) -> None:
    try:
        listening = await server.start(port)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"Port {port} cannot be had ({reason}). Take another, or 0 for any.") from error
    print(f"{MODEL} answers at {url_of(listening)} and stops with Ctrl-C", flush=True)
    async with listening:
        await listening.serve_forever()


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    chances = Chances(**{field.name: getattr(args, field.name) for field in fields(Chances)})
    server = TeacherServer(args.seed, chances, args.retry_after, args.delay)
    try:
        asyncio.run(serve(server, args.port))
    finally:
        faults = ", ".join(f"{number:,} {name}" for name, number in server.faults.met.items())
        print(f"{server.num_answers:,} answers, {server.num_refused:,} refused; faults: {faults or 'none'}")


if __name__ == "__main__":
    main()
