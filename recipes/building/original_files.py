"""Reads the files of an original LLaVA: JSON, weights, adapters. A pickle is read as tensors or not at all."""

import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from modeling_llava.convert_original import is_original, read_facts, split, stock_projector
from recipes.building.hub import check_reachable
from recipes.building.parts import check_finite, check_json_files, read_json


KINDS = {
    "full": "full checkpoint",
    "delta": "delta weights",
    "projector": "projector of stage 1",
    "lora": "LoRA adapter",
}
PATTERNS = ["*.json", "*.bin", "*.safetensors", "*.model", "*.txt", "*.jinja"]


class Original:
    """A checkpoint of the original, read: its kind, what it says of itself, its tensors, and notes for the report."""

    def __init__(self, source: str, base: str | None):
        self.source, self.base = source, base
        path = locate(source)
        self.directory = path if path.is_dir() else path.parent
        if path.is_dir():
            check_json_files(path)
        self.config = self._read_config(path)
        self.facts = read_facts(self.config, source)
        self.kind = self._kind(path)
        if self.kind != "full" and base is None:
            raise ValueError(
                f"`{source}` holds a {KINDS[self.kind]}, which needs the language model it was trained on. Add "
                f"`--base` with its Hub id or directory{self._named_base()}."
            )
        self.adapter = read_adapter(path) if self.kind == "lora" else {}
        self.parts = split(read_tensors(self._files(path)))
        self.notes = [f"config.json does not say: {assumed}" for assumed in self.facts.assumed]
        if self.kind in ("full", "delta") and (path / "mm_projector.bin").exists():
            self.notes.append("mm_projector.bin is not read, since the full weights hold a projector")

        self.projector_type, self.projector = stock_projector(self.parts.projector, source)
        if self.facts.projector_type not in (None, self.projector_type):
            raise ValueError(
                f"The config of `{source}` says that its projector is `{self.facts.projector_type}`, but the tensors "
                f"are those of a `{self.projector_type}` one. Give the config.json that belongs to the weights."
            )

    def _read_config(self, path: Path) -> dict:
        file = self.directory / "config.json"
        if not file.exists():
            if path.is_dir():
                raise FileNotFoundError(
                    f"`{self.source}` has no config.json. Give a complete directory of the original."
                )
            return {}  # a projector published as a lone file says no more than its tensors
        config = read_json(file)
        if "text_config" in config:
            raise ValueError(
                f"`{self.source}` is in the stock format already. Use it as it is, nothing is to convert."
            )
        if not is_original(config):
            raise ValueError(
                f"The config.json of `{self.source}` has no `mm_*` key, so it is no LLaVA. To make one of a language "
                "model, use `llava build`."
            )
        return config

    def _kind(self, path: Path) -> str:
        if path.is_file():
            return "projector"
        if (path / "adapter_config.json").exists():
            return "lora"
        if weight_files(path):
            return "delta" if self.base else "full"
        if (path / "mm_projector.bin").exists():
            return "projector"
        raise FileNotFoundError(
            f"`{self.source}` has no weights. Looked for model.safetensors and pytorch_model.bin (or their "
            ".index.json), mm_projector.bin, and adapter_config.json."
        )

    def _files(self, path: Path) -> list[Path]:
        if self.kind in ("full", "delta"):
            return weight_files(path)
        if self.kind == "projector":
            return [path if path.is_file() else path / "mm_projector.bin"]
        file = path / "non_lora_trainables.bin"
        if not file.exists():
            raise FileNotFoundError(
                f"`{self.source}` has an adapter but no non_lora_trainables.bin, which holds the projector. The "
                "original writes it at the end of training only: a checkpoint from the middle of a LoRA run cannot "
                "be converted."
            )
        return [file]

    def _named_base(self) -> str:
        file = self.directory / "adapter_config.json"
        named = read_json(file).get("base_model_name_or_path") if file.exists() else self.config.get("_name_or_path")
        return f" (this one names `{named}`)" if named else ""


def locate(name: str) -> Path:
    """A directory or file as it is, or a Hub id downloaded."""
    path = Path(name)
    if path.exists():
        return path
    check_reachable(name)
    try:
        return Path(snapshot_download(name, allow_patterns=PATTERNS))
    except HFValidationError:
        raise FileNotFoundError(f"`{name}` does not exist, and is no Hub id.") from None
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise OSError(f"`{name}` does not exist here, and was not found on the Hub: {error}") from error


def weight_files(directory: Path) -> list[Path]:
    """The files of the whole model, safetensors before pickles; none if there are none."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = directory / f"{name}.index.json"
        if index.exists():
            places = read_json(index).get("weight_map")
            shards = sorted(map(str, set(places.values()))) if isinstance(places, dict) else []
            if not shards or any(Path(shard).name != shard for shard in shards):
                raise ValueError(f"`{index}` does not list the weight files of its directory. Download it again.")
            missing = [shard for shard in shards if not (directory / shard).exists()]
            if missing:
                raise FileNotFoundError(
                    f"`{directory}` lacks {len(missing)} of the {len(shards)} files in {index.name}: "
                    f"{', '.join(missing)}. Download the rest."
                )
            return [directory / shard for shard in shards]
        if (directory / name).exists():
            return [directory / name]
    return []


def read_tensors(files: list[Path], keep: Callable[[str], bool] = lambda key: True) -> dict[str, torch.Tensor]:
    tensors = {}
    for file in tqdm(files, desc="Reading weight files", disable=len(files) == 1):
        found = _read_safetensors(file, keep) if file.suffix == ".safetensors" else _read_pickle(file, keep)
        check_finite(found.items(), str(file))
        tensors |= found
    return tensors


def read_adapter(directory: Path) -> dict[str, torch.Tensor]:
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        if (directory / name).exists():
            return read_tensors([directory / name])
    raise FileNotFoundError(f"`{directory}` has neither adapter_model.safetensors nor adapter_model.bin.")


def _read_safetensors(file: Path, keep: Callable[[str], bool]) -> dict[str, torch.Tensor]:
    try:
        with safe_open(file, framework="pt") as tensors:
            return {key: tensors.get_tensor(key) for key in tensors.keys() if keep(key)}  # noqa: SIM118 (no iterator)
    except SafetensorError as error:
        raise ValueError(f"`{file}` cannot be read: {error}. Download it again.") from error


def _read_pickle(file: Path, keep: Callable[[str], bool]) -> dict[str, torch.Tensor]:
    with no_pickled_code(file):
        try:
            # A file in the zip format (torch 1.6 and later) is mapped: what is not needed is not read.
            tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        except pickle.UnpicklingError:
            raise
        except Exception as error:  # bytes that are no pickle lead to errors of any kind
            reason = str(error).partition(". ")[0] or type(error).__name__
            raise ValueError(
                f"`{file}` cannot be read as a file of torch.save ({reason}). Download it again."
            ) from error
    if not isinstance(tensors, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in tensors.items()
    ):
        raise ValueError(
            f"`{file}` holds a `{type(tensors).__name__}` of other things, wanted a dict of names to tensors."
        )
    return {key: tensor for key, tensor in tensors.items() if keep(key)}


@contextmanager
def no_pickled_code(name: str | Path) -> Iterator[None]:
    """Turns torch's refusal of a pickle of more than tensors into a sentence, without its advice to trust it."""
    try:
        yield
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        call = f" (it asks for `{wanted[1]}`)" if wanted else ""
        raise ValueError(
            f"`{name}` was not loaded: it is a damaged file, or a pickle of more than tensors{call}, and loading that "
            "would run whatever code its author chose. Ask for a safetensors file, or for one written by torch.save "
            "from tensors alone."
        ) from error
