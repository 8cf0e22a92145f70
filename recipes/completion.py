"""`llava completion`: what a shell needs to complete commands, options and their values, as one file to source.

    llava completion bash > ~/.local/share/bash-completion/completions/llava
    llava completion zsh > ~/.llava-completion && echo 'source ~/.llava-completion' >> ~/.zshrc
    llava completion fish > ~/.config/fish/completions/llava.fish

Every word is in the file, taken from the parsers when it is written, so that a press of Tab starts no Python.
"""

import argparse
import importlib
from collections.abc import Iterator

from recipes.cli import COMMANDS


SHELLS = ("bash", "zsh", "fish")

# Both scripts walk the words before the cursor from `llava` down, over a table of places (`llava data check`) and what
# may stand there. A place that ends in an option holds its values; where nothing fits, file names are completed.
BASH = """\
_llava() {{
    local here="llava" word cur="${{COMP_WORDS[COMP_CWORD]}}" prev="${{COMP_WORDS[COMP_CWORD-1]}}"
    local -A words=(
{table}
    )
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        [[ "$word" != -* && -n "${{words["$here $word"]+there}}" ]] && here="$here $word"
    done
    [[ "$prev" == -* && -n "${{words["$here $prev"]+there}}" ]] && here="$here $prev"
    COMPREPLY=($(compgen -W "${{words["$here"]}}" -- "$cur"))
}}
complete -o bashdefault -o default -F _llava llava
"""
ZSH = "autoload -U +X compinit && compinit -u\nautoload -U +X bashcompinit && bashcompinit\n"
FISH = """\
set -g __llava_table {table}
function __llava_words
    set -l here llava
    set -l words (commandline -opc)[2..-1]
    for word in $words
        if not string match -q -- '-*' $word; and string match -q -- "$here $word:*" $__llava_table
            set here "$here $word"
        end
    end
    if set -q words[-1]; and string match -q -- '-*' $words[-1]
        string match -q -- "$here $words[-1]:*" $__llava_table; and set here "$here $words[-1]"
    end
    string split ' ' -- (string replace -- "$here:" '' (string match -- "$here:*" $__llava_table))
end
complete -c llava -a '(__llava_words)'
"""


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llava completion",
        description="Write what a shell needs to complete the words of `llava`.",
        epilog=__doc__.split("\n\n")[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=SHELLS, help="which shell it is for")
    return parser


def places(parser: argparse.ArgumentParser, path: str) -> Iterator[tuple[str, list[str]]]:
    """Each place of a command line below `path`, with the words that may stand there."""
    words = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            words += action.choices
            for name, below in action.choices.items():
                yield from places(below, f"{path} {name}")
        elif not action.option_strings:
            words += map(str, action.choices or ())
        else:
            words += [option for option in action.option_strings if option.startswith("--")][
                :1
            ]  # not its other spelling
            if action.choices:
                for option in action.option_strings:
                    yield f"{path} {option}", list(map(str, action.choices))
    yield path, words


def all_places() -> dict[str, list[str]]:
    found = {"llava": ["--help", "--version", "--debug", *COMMANDS]}
    for name, (module, _) in COMMANDS.items():
        found |= places(importlib.import_module(module).parser(), f"llava {name}")
    found["llava train"].append("--config")  # which TRL takes out before its parser sees it
    return found


def bash() -> str:
    lines = [f"""        ["{place}"]="{" ".join(words)}\"""" for place, words in all_places().items()]
    return BASH.format(table="\n".join(lines))


def zsh() -> str:
    return ZSH + bash()


def fish() -> str:
    return FISH.format(table=" ".join(f"'{place}:{' '.join(words)}'" for place, words in all_places().items()))


def main(argv: list[str] | None = None) -> None:
    shell = parser().parse_args(argv).shell
    print({"bash": bash, "zsh": zsh, "fish": fish}[shell](), end="")
