"""The house rules of CONTRIBUTING.md that a machine can check.

Each rule is a function from text to a list of problems. It is run on a bad example first, then on the real files.
"""

import ast
import glob
import json
import logging
import tomllib
import warnings
from pathlib import Path

import pytest
import sentencepiece
from transformers import AutoTokenizer


ROOT = Path(__file__).parent.parent
PACKAGES = ("modeling_llava", "processing", "data_generation", "recipes")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

NAMES_FOR_NO_ADDRESS = {"utils.py", "common.py", "helpers.py", "base.py", "constants.py"}
MAX_LINES = 400


def banned_patterns(source: str, may_print: bool = False) -> list[str]:
    problems = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.ImportFrom(names=[ast.alias(name="*")]):
                problems.append(f"line {node.lineno}: `import *` hides where a name comes from")
            case ast.ExceptHandler(type=None):
                problems.append(f"line {node.lineno}: a bare `except:` catches what nobody meant; name the error")
            case ast.ExceptHandler(type=ast.Name(id="Exception" | "BaseException"), body=[only]) if is_nothing(only):
                problems.append(f"line {node.lineno}: an error is skipped in silence; name it, and count or report it")
            case ast.Call(func=ast.Name(id="getattr"), args=[holder, *_]) if is_config(holder):
                problems.append(f"line {node.lineno}: `getattr` on a config; give the field a default and read it")
            case ast.Call(func=ast.Name(id="print")) if not may_print:
                problems.append(f"line {node.lineno}: only recipes print; use `logging`")
    return problems


def is_nothing(statement: ast.stmt) -> bool:
    is_docstring_or_dots = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return isinstance(statement, ast.Pass | ast.Continue) or is_docstring_or_dots


def is_config(node: ast.expr) -> bool:
    # Ours only: `vision_config` and its like may belong to a model whose fields we cannot know.
    return ast.unparse(node).split(".")[-1] == "config"


@pytest.mark.parametrize(
    "source",
    [
        "from os import *",
        "try:\n    f()\nexcept:\n    raise",
        "try:\n    f()\nexcept Exception:\n    pass",
        "for x in y:\n    try:\n        f()\n    except Exception as error:\n        continue",
        "getattr(config, 'x', None)",
        "getattr(self.config, name)",
        "print('hello')",
    ],
)
def test_a_banned_pattern_is_found(source):
    assert len(banned_patterns(source)) == 1


def test_what_resembles_a_banned_pattern_passes():
    source = (
        "from os import path\n"
        "try:\n    f()\nexcept OSError:\n    pass\n"
        "try:\n    f()\nexcept Exception as error:\n    raise ValueError('x') from error\n"
        "getattr(module, name)\n"
        "'print(1) except: import *'\n"
        "self.print(1)\n"
    )
    assert banned_patterns(source) == []
    assert banned_patterns("print(1)", may_print=True) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_sources_hold_no_banned_pattern(package):
    problems = {
        str(file.relative_to(ROOT)): banned_patterns(file.read_text(encoding="utf-8"), may_print=package == "recipes")
        for file in (ROOT / package).rglob("*.py")
    }
    assert not {file: found for file, found in problems.items() if found}


def misplaced_files(root: Path) -> list[str]:
    problems = []
    for file in root.rglob("*.py"):
        name = str(file.relative_to(root.parent))
        if file.name in NAMES_FOR_NO_ADDRESS:
            problems.append(f"{name}: that name is no address; say what the file does")
        lines = len(file.read_text(encoding="utf-8").splitlines())
        if lines > MAX_LINES:
            problems.append(f"{name}: {lines} lines, at most {MAX_LINES}; what is the second thing in it?")
    return problems


def test_a_misplaced_file_is_found(tmp_path):
    (tmp_path / "utils.py").write_text("")
    (tmp_path / "long.py").write_text("x = 1\n" * (MAX_LINES + 1))
    (tmp_path / "good.py").write_text("x = 1\n" * MAX_LINES)
    assert len(misplaced_files(tmp_path)) == 2


@pytest.mark.parametrize("folder", [*PACKAGES, "tests", "benchmarks", "docs"])
def test_every_file_has_an_address_and_a_bearable_length(folder):
    assert misplaced_files(ROOT / folder) == []


def unpackaged_files(root: Path, setuptools: dict) -> list[str]:
    """What a wheel built from `root` would lack, by `packages` and `package-data` of `[tool.setuptools]`."""
    packages = setuptools["packages"]
    folders = {root / package.replace(".", "/"): package for package in packages}
    problems = [f"package `{package}` has no folder" for folder, package in folders.items() if not folder.is_dir()]
    for package in {package.split(".")[0] for package in packages}:
        for file in sorted((root / package).rglob("*")):
            if not file.is_file() or "__pycache__" in file.parts:
                continue
            if file.suffix == ".py":
                if file.parent not in folders:
                    problems.append(f"{file.relative_to(root)}: its folder is not in `packages`")
            elif not any(is_package_data(file, folder, setuptools, name) for folder, name in folders.items()):
                problems.append(f"{file.relative_to(root)}: no pattern of `package-data` covers it")
    return problems


def is_package_data(file: Path, folder: Path, setuptools: dict, package: str) -> bool:
    data = setuptools["package-data"]
    # setuptools globs the patterns under the package's folder in the same way.
    patterns = data.get("*", []) + data.get(package, [])
    return any(str(file) in glob.glob(str(folder / pattern), recursive=True) for pattern in patterns)


def test_an_unpackaged_file_is_found(tmp_path):
    for name in ("a/__init__.py", "a/inner/code.py", "a/templates/x.jinja", "a/prompts/k/y.txt", "a/z.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    data = {"packages": ["a", "b"], "package-data": {"a": ["**/*.jinja", "prompts/**"]}}
    assert unpackaged_files(tmp_path, data) == [
        "package `b` has no folder",
        "a/inner/code.py: its folder is not in `packages`",
        "a/z.csv: no pattern of `package-data` covers it",
    ]


def test_the_wheel_would_hold_every_file():
    setuptools = PYPROJECT["tool"]["setuptools"]
    assert {package.split(".")[0] for package in setuptools["packages"]} == set(PACKAGES)
    assert unpackaged_files(ROOT, setuptools) == []


def test_a_tokenizer_model_loads_alone(tmp_path):
    # As lmsys/vicuna-7b-v1.5 ships it. It takes sentencepiece and a protobuf that sentencepiece accepts.
    sentences = ["the quick brown fox jumps over the lazy dog"] * 50
    with open(tmp_path / "tokenizer.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=file,
            model_type="bpe",
            vocab_size=300,
            byte_fallback=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            minloglevel=2,
        )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert tokenizer("the lazy fox", add_special_tokens=False).input_ids == reference.encode("the lazy fox")


@pytest.mark.parametrize("module", ["transformers.trainer", "trl", "datasets.load", "processing.x", "tests.x"])
@pytest.mark.parametrize("category", [FutureWarning, DeprecationWarning, UserWarning])
def test_a_deprecation_warning_is_an_error(module, category):
    with pytest.raises(category, match="deprecated"):
        warnings.warn_explicit("`x` is deprecated", category, filename="x.py", lineno=1, module=module)


@pytest.mark.parametrize("logger", ["transformers.configuration_utils", "trl.trainer", "datasets"])
def test_a_logged_deprecation_is_a_failure(logger):
    with pytest.raises(pytest.fail.Exception, match="`use_x` is deprecated"):
        logging.getLogger(logger).warning("`%s` is deprecated! Use `y` instead!", "use_x")


def test_a_swallowed_deprecation_still_fails():
    def swallow():
        try:
            logging.getLogger("transformers.x").warning("`x` is Deprecated")
        except Exception:
            return

    with pytest.raises(pytest.fail.Exception):
        swallow()


def test_other_warnings_do_not_fail():
    logging.getLogger("transformers.x").warning("Setting `use_cache=False`.")
    with pytest.warns(UserWarning, match="slow"):
        warnings.warn_explicit("this is slow", UserWarning, filename="x.py", lineno=1, module="transformers.x")
