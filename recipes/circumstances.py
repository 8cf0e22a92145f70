"""When, on what and with which code something was made or measured: what a number means nothing without."""

import platform
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    import torch


ROOT = Path(__file__).parent.parent
PACKAGE = "visual-instruction-tuning"


def commit(digits: int = 40) -> str | None:
    """Of this repository, `-dirty` behind it where files differ; None where the package is installed without it."""
    if not (ROOT / ".git").exists():  # the folder above may be a part of somebody else's repository
        return None
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*", f"--abbrev={digits}"]
    try:
        found = subprocess.run(words, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def hardware(device: "torch.device | str") -> str:
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else f"{platform.machine()} CPU"


def versions(names: Iterable[str]) -> dict[str, str]:
    return {name: version(name) for name in names} | {"python": platform.python_version()}


def written_with() -> str:
    return f"{PACKAGE} {version(PACKAGE)}"


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
