"""`llava env`: versions, devices and settings, to paste into a report of a bug. It names no key and no token.

llava env
"""

import argparse
import os
import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version

from huggingface_hub import get_token

from recipes.circumstances import PACKAGE, commit


# What decides where things are found and what they run on. Values, unlike those of keys, may be shown.
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "HF_HOME",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "OMP_NUM_THREADS",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "OPENAI_BASE_URL",
)


def parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog="llava env", description="Show versions and devices, for a report of a bug.")


def packages() -> list[str]:
    """What this package names in pyproject.toml, those of extras where they are installed."""
    lines = []
    for requirement in requires(PACKAGE) or ():
        name = re.match(r"[\w.-]+", requirement)[0]
        if name == PACKAGE:
            continue
        try:
            lines.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            if ";" not in requirement:  # what stands behind it is the extra that wants it
                lines.append(f"{name} is not installed")
    return sorted(set(lines), key=str.lower)


def devices() -> list[str]:
    import torch

    lines = [f"CPU: {os.cpu_count()} cores, {torch.get_num_threads()} threads"]
    for number in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(number)
        capability = f"compute capability {found.major}.{found.minor}"
        lines.append(f"GPU {number}: {found.name}, {found.total_memory / 2**30:.0f} GiB, {capability}")
    if torch.cuda.is_available():
        lines.append(f"CUDA {torch.version.cuda}, bf16 {'yes' if torch.cuda.is_bf16_supported() else 'no'}")
    else:
        lines.append(f"GPU: none that torch can use (it was built {built_for(torch.version.cuda)})")
    if torch.backends.mps.is_available():
        lines.append("MPS: yes")
    return lines


def built_for(cuda: str | None) -> str:
    return f"for CUDA {cuda}" if cuda else "without CUDA"


def settings() -> list[str]:
    # An address may have a name and a password in front of its host.
    shown = [f"{n}={re.sub(r'(?<=//)[^/@]*@', '***@', os.environ[n])}" for n in VARIABLES if n in os.environ]
    keys = {"token of the Hub": get_token(), "OPENAI_API_KEY": os.environ.get("OPENAI_API_KEY")}
    return shown + [f"{name}: {'set' if key else 'not set'}" for name, key in keys.items()]


def main(argv: list[str] | None = None) -> None:
    parser().parse_args(argv)
    at = commit(7)
    print(f"{PACKAGE} {version(PACKAGE)}{f', commit {at}' if at else ''}")
    print(f"Python {platform.python_version()} on {platform.platform()}")
    for lines in (devices(), packages(), settings()):
        print("\n" + "\n".join(lines))
