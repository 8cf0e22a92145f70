"""Who may import whom: the rooms of the house, read from the syntax trees."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent

# Besides the standard library and itself, a package may import these; a dotted name allows that module alone.
ALLOWED = {
    "modeling_llava": {"torch", "transformers", "huggingface_hub.dataclasses"},
    "processing": {"torch", "transformers", "datasets", "PIL", "numpy", "jinja2", "safetensors"},
    "data_generation": {"openai", "httpx2", "datasets", "PIL", "numpy", "pyarrow", "tqdm"},
}
ALLOWED["recipes"] = set.union(*ALLOWED.values()) | set(ALLOWED)
ALLOWED["recipes"] |= {"trl", "peft", "accelerate", "huggingface_hub", "safetensors", "tokenizers", "yaml", "tqdm"}
ALLOWED["recipes"] |= {"deepspeed"}  # in one place, where it is in use already
ALLOWED["recipes"] |= {"datatrove"}  # of the extra `scale`
ALLOWED["recipes"] |= {"gradio", "safehttpx"}  # of the extra `demo`; gradio fetches with the latter


def imported_modules(source: str) -> list[tuple[int, str]]:
    """Line and module of every import, inside functions and under `TYPE_CHECKING` too."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append((node.lineno, node.module or ""))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            found += [(node.lineno, arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant)]
    return found


def forbidden_imports(package: str, source: str) -> list[str]:
    allowed = ALLOWED[package] | {package} | sys.stdlib_module_names
    prefixes = tuple(f"{name}." for name in allowed)
    return [f"line {line}: {name}" for line, name in imported_modules(source) if not f"{name}.".startswith(prefixes)]


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_what_its_room_allows(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    problems = {str(file): forbidden_imports(package, file.read_text(encoding="utf-8")) for file in files}
    assert not {file: found for file, found in problems.items() if found}


@pytest.mark.parametrize(
    "package, source",
    [
        ("modeling_llava", "from PIL import Image"),
        ("modeling_llava", "import torch, processing.conversation"),
        ("processing", "from modeling_llava import LlavaConfig"),
        ("processing", "def f():\n    import trl"),
        ("data_generation", "def f():\n    if True:\n        import torch.nn as nn"),
        ("data_generation", "import importlib\nimportlib.import_module('torch.nn')"),
        ("data_generation", "from recipes.cli import main"),
        ("recipes", "import pandas"),
        ("recipes", "import torchvision.transforms"),
        ("recipes", "from tests import tiny"),
    ],
)
def test_a_forbidden_import_is_found(package, source):
    assert len(forbidden_imports(package, source)) == 1


@pytest.mark.parametrize(
    "package, source",
    [
        ("modeling_llava", "import math\nimport torch.nn\nfrom .attention import mask\nfrom modeling_llava import x"),
        ("recipes", "import processing, modeling_llava, data_generation\nfrom trl import SFTTrainer"),
    ],
)
def test_an_allowed_import_passes(package, source):
    assert forbidden_imports(package, source) == []


def test_data_generation_leaves_torch_unimported():
    # Libraries it imports could bring torch along, which no syntax tree shows.
    code = (
        "import pkgutil, sys, data_generation as package\n"
        "for module in pkgutil.walk_packages(package.__path__, 'data_generation.'): __import__(module.name)\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
