"""Features of pictures in files: what a frozen vision tower makes of a picture stays the same, so once is enough.

    <folder>/features-<hash>.safetensors     many tensors (places, width), named by the pictures' bytes

The header of each file is the index. A picture is known by its bytes, so that one that changes under its name is
another picture; what else features depend on is in the name of the folder, which
`recipes/training/feature_cache.py` chooses.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .images import ImageError


def picture_key(image: Any, name: str) -> str:
    """What a picture is known by: a reference as `PackedRows` gives them, a path or a dict of `path` and `bytes`."""
    data, path = (image.get("bytes"), image.get("path", "")) if isinstance(image, dict) else (None, image)
    if isinstance(path, bytes):
        data = path
    if data is None:
        try:
            data = Path(path).read_bytes()
        except (OSError, TypeError) as error:
            raise ImageError(f"A picture of {name} cannot be read: {error}. Check the path.") from error
    return hashlib.blake2b(data, digest_size=16).hexdigest()


class FeatureFiles:
    """Reads features by picture; files are opened when they are first needed, in each process for itself."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.file_of: dict[str, Path] = {}
        self.num_bytes = 0
        for path in sorted(folder.glob("features-*.safetensors")):
            try:
                with safe_open(path, "pt") as file:
                    self.file_of |= dict.fromkeys(file.keys(), path)
            except SafetensorError as error:
                raise ValueError(
                    f"`{path}` is no file of features: {error}. Delete it to have it made anew."
                ) from error
            self.num_bytes += path.stat().st_size
        self.opened: dict[Path, Any] = {}

    def __len__(self) -> int:
        return len(self.file_of)

    def __contains__(self, key: str) -> bool:
        return key in self.file_of

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"opened": {}}

    def read(self, images: list[Any], name: str) -> torch.Tensor:
        """(images, places, width)"""
        return torch.stack([self.read_key(picture_key(image, name), name) for image in images])

    def read_key(self, key: str, name: str) -> torch.Tensor:
        if key not in self.file_of:
            raise ImageError(
                f"A picture of {name} has no features in `{self.folder}`: it changed since the run began. Start again."
            )
        path = self.file_of[key]
        if path not in self.opened:
            self.opened[path] = safe_open(path, "pt")
        return self.opened[path].get_tensor(key)


def write_features(folder: Path, features: dict[str, torch.Tensor]) -> Path:
    """One file more; it is there whole or not at all."""
    digest = hashlib.blake2b("".join(sorted(features)).encode(), digest_size=8).hexdigest()
    path = folder / f"features-{digest}.safetensors"
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    save_file(features, partial)
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
    return path
