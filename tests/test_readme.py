"""Everything that README.md, CONTRIBUTING.md and docs/ say in code is so: commands parse, Python imports, JSON loads.

Each check is a function from text to a list of problems. It is run on bad examples first, then on the real pages.
"""

import argparse
import ast
import contextlib
import importlib
import io
import json
import re
import shlex
import sys
import types
from pathlib import Path

import pytest
import yaml
from trl import TrlParser

from recipes.cli import COMMANDS


ROOT = Path(__file__).parent.parent
MAX_LINES = 150
LONGER = {"docs/own-data.md": 180, "docs/reference.md": 2000}  # files and commands, one after the other
FENCE_LANGUAGES = {"bash", "python", "json", "yaml", "text", "bibtex"}


def fences(markdown: str) -> list[tuple[str, str]]:
    """Language and text of each fenced block."""
    return [(m[1].strip(), m[2]) for m in re.finditer(r"^```(.*?)\n(.*?)^```\s*$", markdown, re.M | re.S)]


def page_problems(markdown: str, root: Path = ROOT, max_lines: int = MAX_LINES) -> list[str]:
    problems = []
    lines = len(markdown.splitlines())
    if lines > max_lines:
        problems.append(f"{lines} lines, at most {max_lines}")
    prose = re.sub(r"^```.*?^```\s*$", "", markdown, flags=re.M | re.S)
    problems += [f"no blank line before `{m[1]}`: is a sentence cut?" for m in re.finditer(r"[^\n]\n(#+ .*)", prose)]
    # A block of YAML that begins with a name is a file that the page has one write.
    written = [text.split()[1] for language, text in fences(markdown) if re.match(r"# \S+\.yaml\n", text)]
    for language, text in fences(markdown):
        try:
            match language:
                case "bash":
                    for line in text.replace("\\\n", " ").splitlines():
                        problems += [p for p in command_problems(line, root) if no_file(p) not in written]
                case "python":
                    problems += import_problems(compile(text, "page", "exec", flags=ast.PyCF_ONLY_AST))
                case "json":
                    json.loads(text)
                case "yaml":
                    yaml.safe_load(text)
                case _ if language not in FENCE_LANGUAGES:
                    problems.append(f"a fence of `{language}`, which nothing checks; take one of {FENCE_LANGUAGES}")
        except (SyntaxError, ImportError, ValueError, yaml.YAMLError) as error:
            problems.append(f"a {language} block: {error}")
    return problems


def no_file(problem: str) -> str | None:
    """The file that a problem says is missing."""
    found = re.search(r": no file (\S+)$", problem)
    return found[1] if found else None


def import_problems(tree: ast.AST) -> list[str]:
    """Names that a page imports and nobody offers."""
    problems = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            problems += [f"`{node.module}` has no `{a.name}`" for a in node.names if not hasattr(module, a.name)]
    return problems


def command_problems(line: str, root: Path) -> list[str]:
    """What is wrong with one line of shell, if it is a command of ours."""
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    problems = []
    match words:
        case ["make", *targets]:
            known = re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(encoding="utf-8"), re.M)
            problems += [f"no target `{target}` in Makefile" for target in targets if target not in known]
        case ["llava", "--help" | "--version"]:
            pass
        case ["llava", name, *arguments]:
            problems += run_problems(COMMANDS[name][0], arguments) if name in COMMANDS else [f"no command `{name}`"]
        case ["python", "-m", module, *arguments] if module.startswith("recipes."):
            problems += run_problems(module, arguments)
        case ["accelerate", "launch", *options] if "-m" in options:
            start = options.index("-m") + 1
            problems += run_problems(options[start], options[start + 1 :])
        case ["llava" | "accelerate", *_]:
            problems.append("neither `llava COMMAND ...` nor `accelerate launch ... -m MODULE ...`")
        case _:
            return []
    files = [word.split("=")[-1] for word in words if word.endswith(".yaml")]
    problems += [f"no file {file}" for file in files if not (root / file).is_file()]
    return [f"`{' '.join(words)}`: {problem}" for problem in problems]


def run_problems(module: str, arguments: list[str]) -> list[str]:
    try:
        parser = importlib.import_module(module).parser()
    except (ImportError, AttributeError) as error:
        return [str(error)]
    known = options_of(parser)
    if isinstance(parser, TrlParser):
        known.add("--config")  # which it takes out of the line before argparse sees it
    flags = [word.split("=")[0] for word in arguments if re.match(r"--?[a-zA-Z]", word)]
    unknown = [f"no argument `{flag}`" for flag in flags if flag not in known]
    # A parser of dataclasses may find required values in YAML, so only a plain one can judge the whole line.
    if unknown or type(parser) is not argparse.ArgumentParser or {"-h", "--help"} & set(flags):
        return unknown
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            parser.parse_args(arguments)
    except SystemExit:
        return stderr.getvalue().strip().splitlines()[-1:]
    return []


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    options = {option for action in parser._actions for option in action.option_strings}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            options = options.union(*map(options_of, action.choices.values()))
    return options


@pytest.fixture
def command(monkeypatch):
    """A command `llava fake --config FILE --size INT [--fast]`, in a module that exists only here."""
    parser = argparse.ArgumentParser(prog="llava fake")
    parser.add_argument("--config")
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--fast", action="store_true")
    module = types.ModuleType("recipes.fake")
    module.parser = lambda: parser
    monkeypatch.setitem(sys.modules, "recipes.fake", module)
    monkeypatch.setitem(COMMANDS, "fake", ("recipes.fake", "For this test"))
    return parser


def block(language: str, text: str) -> str:
    return f"# A\n\n```{language}\n{text}\n```\n"


@pytest.mark.parametrize(
    "markdown, problem",
    [
        ("x\n" * (MAX_LINES + 1), "151 lines, at most 150"),
        ("# A\n\nThe method is that of\n## B\n", "no blank line before `## B`"),
        (block("bash", "make coffee"), "no target `coffee`"),
        (block("bash", "llava nothing --size 1"), "no command `nothing`"),
        (block("bash", "llava fake --size 1 --sise 2"), "no argument `--sise`"),
        (block("bash", "llava fake \\\n  --size 1 \\\n  --fats"), "no argument `--fats`"),
        (block("bash", "llava fake --fast"), "required: --size"),
        (block("bash", "llava fake --size big"), "invalid int value: 'big'"),
        (block("bash", "llava fake --size 1 --config recipes/none.yaml"), "no file recipes/none.yaml"),
        (block("yaml", "# a.yaml") + block("bash", "llava fake --size 1 --config b.yaml"), "no file b.yaml"),
        (block("bash", "llava fake --size 1 && llava fake --size 2"), "unrecognized arguments: &&"),
        (block("bash", "X=1 python -m recipes.fake --sise=1"), "no argument `--sise`"),
        (block("bash", "python -m recipes.none"), "No module named 'recipes.none'"),
        (block("bash", "accelerate launch -m recipes.fake --sise 1"), "no argument `--sise`"),
        (block("bash", "accelerate launch --config_file none.yaml -m recipes.fake --size 1"), "no file none.yaml"),
        (block("bash", "accelerate launch recipes/fake.py"), "neither"),
        (block("bash", "llava fake --size '1"), "No closing quotation"),
        (block("python", "print("), "never closed"),
        (block("python", "from pathlib import Paht"), "`pathlib` has no `Paht`"),
        (block("python", "import no_such_package"), "No module named 'no_such_package'"),
        (block("json", "{'id': 1}"), "a json block"),
        (block("yaml", "a: [1"), "a yaml block"),
        (block("console", "$ llava nothing"), "a fence of `console`"),
        (block("", "llava nothing"), "a fence of ``"),
    ],
)
def test_a_false_sentence_is_found(command, markdown, problem):
    problems = page_problems(markdown)
    assert len(problems) == 1
    assert problem in problems[0]


@pytest.mark.parametrize(
    "markdown",
    [
        block("bash", "git clone x\ncd x   # comment, with 'one quote\" inside\nmake quickstart\nmake check test"),
        block("bash", "llava --help\nllava fake --help\nllava fake --size 1 --fast  # comment"),
        block("bash", "HF_HUB_OFFLINE=1 accelerate launch --num_processes 8 -m recipes.fake \\\n  --size=1"),
        block("python", "from pathlib import Path\nimport json"),
        block("json", '{"id": 1}') + block("yaml", "a: 1") + block("text", "a/  b"),
        block("yaml", "# own.yaml\na: 1") + block("bash", "llava fake --size 1 --config own.yaml"),
    ],
)
def test_a_true_page_passes(command, markdown):
    assert page_problems(markdown) == []


def test_a_parser_of_dataclasses_is_asked_for_its_flags_only(command):
    # As TrlParser is: `--size` may come from the YAML file.
    command.__class__ = type("TrlParser", (argparse.ArgumentParser,), {})
    assert page_problems(block("bash", "llava fake --fast")) == []
    assert len(page_problems(block("bash", "llava fake --fats"))) == 1


PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md"))),
]


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_true(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert page_problems(text, max_lines=LONGER.get(name, MAX_LINES)) == []
