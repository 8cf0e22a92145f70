"""Talks to a checkpoint in the terminal.

    llava chat --model checkpoints/stage2 cat.jpg
    printf 'What is this?\\nWhat colour is it?\\n' | llava chat --model checkpoints/stage2 cat.jpg

Answers go to the standard output, everything else to the standard error. See docs/chat.md.
"""

import argparse
import contextlib
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from recipes.talking.talker import Conversation, Talker


HELP = """/image PATH ...  show pictures with the next question; of several, quote one with spaces
/reset           forget everything that was said and shown
/save FILE       write the conversation as a row of training data, to a new .json
/help            this
/exit            end; so does Ctrl-D. Ctrl-C ends an answer"""
ESCAPES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # a terminal would obey them; line ends and tabs stay


def parser() -> argparse.ArgumentParser:
    from recipes.measuring.generation_flags import add_generation_flags

    parser = argparse.ArgumentParser(
        prog="llava chat",
        description="Talk to a checkpoint in the terminal. See docs/chat.md.",
        epilog=f"While it runs:\n{HELP}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="pictures shown with the first question")
    add_loading_flags(parser)
    add_generation_flags(parser)
    return parser


def add_loading_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="folder of a checkpoint or adapter, or Hub id (the quickstart's)")
    parser.add_argument("--load-in", choices=["4bit", "8bit"], help="a smaller language model; needs bitsandbytes")
    parser.add_argument("--device", help="such as cuda:1, mps or cpu (the fastest there is)")
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "float16"],
        default="auto",
        help="auto: as the weights are stored",
    )


class Chat:
    def __init__(self, talker: "Talker", images: list[str], is_terminal: bool):
        self.talker, self.is_terminal = talker, is_terminal
        self.is_watched = sys.stdout.isatty()
        self.conversation = self.fresh()
        self.show(images)

    def fresh(self) -> "Conversation":
        from recipes.talking.talker import Conversation

        return Conversation()

    def run(self) -> None:
        for line in self.lines():
            try:
                if not self.obey(line.strip()):
                    return
            except (ValueError, OSError) as error:
                # Nobody reads along with a pipe: what follows would be asked about something else.
                if not self.is_terminal:
                    raise
                tell(f"error: {' '.join(str(error).split())}")

    def lines(self) -> Iterator[str]:
        if not self.is_terminal:
            try:
                yield from sys.stdin
            except UnicodeDecodeError as error:
                raise ValueError(f"What came through the pipe is not UTF-8: {error}. Convert it first.") from error
            return
        while True:
            try:
                if not self.is_watched:
                    print("> ", end="", file=sys.stderr, flush=True)
                yield input("> " if self.is_watched else "")
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                tell("\nCtrl-D or /exit ends.")

    def obey(self, line: str) -> bool:
        """Whether it goes on."""
        if not line:
            return True
        command, _, rest = line.partition(" ")
        match command:
            case "/exit":
                return False
            case "/help":
                tell(HELP)
            case "/reset":
                self.conversation = self.fresh()
                tell("Forgotten.")
            case "/image":
                self.show(paths_of(rest.strip()))
            case "/save":
                self.save(rest.strip())
            case _ if re.fullmatch(r"/\w*", command):
                raise ValueError(f"There is no `{command}`. /help lists what there is.")
            case _:
                self.ask(line)
        return True

    def show(self, paths: list[str]) -> None:
        from processing import open_image
        from recipes.talking.talker import picture_of

        pictures = []
        for path in map(os.path.expanduser, paths):
            size = "x".join(map(str, open_image(path).size))
            pictures.append(picture_of(path))
            tell(f"{path} ({size}) goes with the next question.")
        self.conversation.waiting += pictures

    def ask(self, line: str) -> None:
        conversation = self.conversation
        conversation.ask(line)
        text, ended = "", "interrupted"
        try:
            with contextlib.closing(self.talker.answer(conversation)) as answer:
                for said in answer:
                    # What was shown has changed where letters of several bytes turned out to be none.
                    new = said.text.removeprefix(text) if said.text.startswith(text) else f"\n{said.text}"
                    text, ended = said.text, said.ended  # before it is shown: Ctrl-C may come as soon as it is
                    if self.is_watched:
                        print(ESCAPES.sub("", new), end="", flush=True)
        except KeyboardInterrupt:
            ended = "interrupted"
        except BaseException:
            conversation.take_back()
            raise
        print("" if self.is_watched else ESCAPES.sub("", text), flush=True)
        if not text:
            conversation.take_back()
            tell("Nothing was said, so the question is taken back.")
            return
        conversation.answered(text)
        if ended == "length":
            tell("Cut at --max_new_tokens, or at what the model can hold.")
        elif ended == "interrupted":
            tell("Stopped; what was said stays.")

    def save(self, name: str) -> None:
        from data_generation.replacing import write_atomically

        path = Path(name).expanduser()
        if path.suffix not in (".json", ".jsonl"):
            raise ValueError(f"/save `{name}`: wanted the name of a new .json or .jsonl file.")
        if path.exists():
            raise ValueError(f"`{path}` is there already. Give another name.")
        if not path.parent.is_dir():
            raise ValueError(f"/save `{name}`: there is no folder `{path.parent}`. Make it, or give another name.")
        if not self.conversation.messages:
            raise ValueError("Nothing has been said that could be saved. Ask something first.")
        row = {
            "id": path.stem,
            "images": [picture.name for picture in self.conversation.pictures],
            "messages": self.conversation.messages,
        }
        write_atomically(path, json.dumps(row, ensure_ascii=False) + "\n")
        tell(f"{path}: {len(self.conversation.messages) // 2} questions and answers")


def paths_of(words: str) -> list[str]:
    """As a shell reads them, unless all of it is the name of one file."""
    if not words:
        raise ValueError("/image: wanted the path of a picture, or of several.")
    return [words] if Path(words).expanduser().is_file() else shlex.split(words)


def tell(text: str) -> None:
    """What is no answer, so that a pipe gets answers alone."""
    print(text, file=sys.stderr, flush=True)


def chat(args: argparse.Namespace) -> None:
    from recipes.measuring.generation_flags import given_fields
    from recipes.talking.talker import load_talker

    if is_terminal := sys.stdin.isatty():
        with contextlib.suppress(ImportError):  # not on Windows; where it is, arrow keys work
            import readline  # noqa: F401
    sys.stdin.reconfigure(encoding="utf-8", errors="strict")
    talker = load_talker(args.model, args.dtype, args.device, args.load_in, given_fields(args))
    tell(f"{talker.model.name_or_path}, {talker.model.dtype}, {talker.model.device}. /help lists commands.")
    Chat(talker, args.images, is_terminal).run()


def main(argv: list[str] | None = None) -> None:
    from recipes.measuring.generation_flags import parse_all

    chat(parse_all(parser(), argv))


if __name__ == "__main__":
    main()
