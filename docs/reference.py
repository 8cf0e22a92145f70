"""Writes docs/reference.md, every command with its arguments, from the parsers themselves.

    python -m docs.reference

tests/test_docs_site.py compares the page with a fresh one.
"""

import argparse
import importlib
import json
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from trl import ModelConfig, SFTConfig, TrlParser

from recipes.cli import COMMANDS
from recipes.training.train_config import TrainConfig


ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/reference.md"
HIDDEN = argparse.SUPPRESS
MANY = 10  # arguments of a group that nothing is said of, from where on they are a list and no table
HEAD = """\
# Command reference

Written by `docs/reference.py` from the parsers; what stands here is what `llava COMMAND --help` says. Each command is
also a module: `python -m recipes.train` is `llava train`, which is the form that `accelerate launch -m` takes.
"""
TRAIN = """\
Every row is a key of the YAML and a flag: `max_length: 4096` is `--max_length 4096`. `--config FILE` names the YAML,
and a flag wins over it.
"""
INHERITED = """\
All other fields of TRL's `SFTConfig` (and with it of transformers' `TrainingArguments`) and of TRL's `ModelConfig` are
taken as they are, with their defaults: `llava train --help` lists them.
"""


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    parts = [HEAD, "\n".join(f"- [`llava {name}`](#llava-{name}): {what}" for name, (_, what) in COMMANDS.items())]
    for name, (module, what) in COMMANDS.items():
        parser = importlib.import_module(module).parser()
        parts += [f"## llava {name}", f"{what}."]
        parts += [*fields_of_training()] if isinstance(parser, TrlParser) else [*sections(parser)]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def sections(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The tables of a command, group by group, and then its sub-commands."""
    sub_commands = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    positional, options, *groups = parser._action_groups
    for title, group in [("", [positional, options]), *((group.title, [group]) for group in groups)]:
        shown = [action for part in group for action in part._group_actions if action not in sub_commands]
        shown = [one for one in shown if not isinstance(one, argparse._HelpAction) and one.help is not HIDDEN]
        if not shown:
            continue
        if title:
            yield f"**{title}**" + (f": {group[0].description}" if group[0].description else "")
        # Of fields of GenerationConfig the name says it all.
        bare = [action for action in shown if not action.help]
        bare = bare if len(bare) >= MANY else []
        yield table(row(parser, action) for action in shown if action not in bare)
        if bare:
            yield "\n".join(textwrap.wrap(f"And {', '.join(code(written(action)) for action in bare)}.", 119))
    for action in sub_commands:
        helps = {choice.dest: choice.help for choice in action._choices_actions}
        for name, below in action.choices.items():
            yield f"{'###' if below.prog.count(' ') == 2 else '####'} {below.prog}"
            yield f"{helps[name][0].upper()}{helps[name][1:]}."
            yield from sections(below)


def row(parser: argparse.ArgumentParser, action: argparse.Action) -> tuple[str, str, str]:
    """What is written, the default, what it does."""
    help_text = (action.help or "").replace(" (%(default)s)", "").replace("(%(default)s)", "")
    values = {name: value for name, value in vars(action).items() if value is not argparse.SUPPRESS}
    help_text = help_text % (values | {"prog": parser.prog})
    same = written(action).replace("_", "-")
    if others := [one for one in action.option_strings[1:] if one.replace("_", "-") != same]:
        help_text += f" (also {', '.join(map(code, others))})"
    group = next((g for g in parser._mutually_exclusive_groups if action in g._group_actions), None)
    if group is not None:
        others = [code(written(one)) for one in group._group_actions if one is not action]
        help_text += f"; {'or' if group.required else 'not with'} {', '.join(others)}"
    return code(with_value(action)), default_of(action), cell(help_text)


def written(action: argparse.Action) -> str:
    return action.option_strings[0] if action.option_strings else str(action.metavar or action.dest)


def with_value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return written(action)
    if action.metavar is not None:
        value = action.metavar if isinstance(action.metavar, str) else " ".join(action.metavar)
    elif action.choices is not None:
        value = "|".join(map(str, action.choices))
    else:
        value = action.dest.upper()
    value = {"?": f"[{value}]", "*": f"[{value} ...]", "+": f"{value} ..."}.get(action.nargs, value)
    return f"{action.option_strings[0]} {value}" if action.option_strings else value


def default_of(action: argparse.Action) -> str:
    if action.required and (action.option_strings or action.nargs not in ("?", "*")):
        return "required"
    return shown_value(action.default)


def shown_value(value: Any) -> str:
    """Nothing for what says nothing: no value, an empty one, a switch that is off."""
    is_empty = value is None or value is False or value is argparse.SUPPRESS or value in ("", [], {}, ())
    if is_empty:
        return ""
    if isinstance(value, Path) and value.is_relative_to(ROOT):  # a file of this project, wherever it is installed
        value = value.relative_to(ROOT)
    return code(" ".join(map(str, value)) if isinstance(value, list | tuple) else str(value))


def fields_of_training() -> Iterator[str]:
    """Our fields in full; of TRL's and transformers' those alone whose default is another here."""
    defaults = {field.name: field.default for field in fields(SFTConfig)}
    own = {field.name: field for field in fields(TrainConfig) if field.name in TrainConfig.__annotations__}
    actions = {action.dest: action for action in TrlParser((TrainConfig, ModelConfig))._actions}
    yield TRAIN
    yield "**only here**"
    yield table(field_row(field, actions[name]) for name, field in own.items() if name not in defaults)
    yield "**with another default than in `SFTConfig`**, whose default is in brackets"
    rows = []
    for name, field in own.items():
        if name in defaults and field.default != defaults[name]:
            first, _, what = field_row(field, actions[name])
            rows.append((first, f"{code(as_yaml(field.default))} ({code(as_yaml(defaults[name]))})", what))
    yield table(rows)
    yield INHERITED


def as_yaml(value: Any) -> str:
    return json.dumps(value).strip('"')


def field_row(field: Any, action: argparse.Action) -> tuple[str, str, str]:
    choices = [choice for choice in action.choices or () if choice is not None]
    many = " ..." if action.nargs in ("+", "*") else ""
    value = "|".join(map(str, choices)) or getattr(action.type, "__name__", "") * (action.type is not None)
    kind = value if value in ("int", "float", "str") or choices else "true|false"
    default = "" if field.default is MISSING else shown_value(field.default)
    return code(f"{field.name}: {kind}{many}"), default, cell(field.metadata["help"])


def table(rows: Any) -> str:
    lines = [f"| {' | '.join(columns)} |" for columns in rows]
    return "\n".join(["| argument | default | what it does |", "|---|---|---|", *lines])


def code(text: str) -> str:
    return f"`{cell(text)}`"


def cell(text: str) -> str:
    """A table's cell: one line, and no `|` that would end it."""
    return " ".join(text.split()).replace("|", r"\|")


if __name__ == "__main__":
    main()
