"""Which files of a folder are published, under which names, and what is left out for which reason.

Nothing is written into the folder. Of the files that training and transformers write, absolute paths of this machine
become their last name on the way: `_name_or_path` in `config.json`, and everything in the records of training.
"""

import json
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from recipes.building.parts import read_json
from recipes.publishing import local_paths
from recipes.training.checkpoints import COMPLETE, FINISHED, RUN, last_complete_checkpoint


MODEL = re.compile(
    r"config\.json|generation_config\.json|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json|"
    r"(pre)?processor_config\.json|chat_template\.(jinja|json)|tokenizer\.(json|model)|tokenizer_config\.json|"
    r"special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt|(LICENSE|LICENCE|NOTICE)[\w.-]*"
)
ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")
# What a run needs to go on. `optimizer.pt` and its like are pickles that hold no weights.
STATE = re.compile(
    r"optimizer\.pt|scheduler\.pt|scaler\.pt|rng_state(_\d+)?\.pth|trainer_state\.json|complete\.json|run\.json|"
    r"loss-\d+\.json|stream-\d+\.json|checkpoint-\d+|\.running"
)
PICKLED_STATE = re.compile(r"optimizer\.pt|scheduler\.pt|scaler\.pt|rng_state(_\d+)?\.pth")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill")
CARD = "README.md"
NOT_PART, IS_STATE, IS_PAGE = "no part of a checkpoint", "training state", "a page to look at, with local names"
NOT_READ = f"weights beside those that a loader takes ({ONE}, or else what {INDEX} names)"


@dataclass(frozen=True)
class Upload:
    """A file of the repository, from a file here or from memory."""

    name: str
    source: Path | bytes

    @property
    def size(self) -> int:
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    def read(self) -> bytes:
        return self.source if isinstance(self.source, bytes) else self.source.read_bytes()


@dataclass
class Selection:
    uploads: list[Upload] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def names(self) -> set[str]:
        return {upload.name for upload in self.uploads}


def model_files(folder: Path, include_state: bool) -> Selection:
    """The files of a checkpoint, without its card and the records of its training, which are made anew."""
    if not folder.is_dir():
        raise ValueError(f"`{folder}` is no folder. Give the one of a checkpoint.")
    if (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"`{folder}` is a LoRA adapter, which names its base by a path: fold it in with `llava merge --adapter "
            f"{folder} --out DIR`, and push DIR."
        )
    if not (folder / "config.json").is_file():
        raise ValueError(f"`{folder}` has no config.json. Give the folder of a checkpoint.")
    selection = Selection()
    pickles, weights = [], weights_of(folder)
    for path in sorted(folder.iterdir()):
        name = path.name
        if name in (CARD, FINISHED):
            continue
        if path.is_file() and WEIGHTS.fullmatch(name) and name not in weights:
            selection.left_out[NOT_READ].append(name)
        elif path.is_file() and MODEL.fullmatch(name):
            refuse_link_outside(path, folder)
            selection.uploads.append(Upload(name, clean_config(path)))
        elif STATE.fullmatch(name):
            selection.left_out[IS_STATE].append(name)
        elif path.is_file() and path.suffix in PICKLES:
            pickles.append(name)
        elif name in ("samples.html", "samples.json"):
            selection.left_out[IS_PAGE].append(name)
        else:
            selection.left_out[NOT_PART].append(name + "/" * path.is_dir())
    if pickles:
        raise ValueError(
            f"`{folder / pickles[0]}`{more(len(pickles) - 1)} is a pickle, which can run any code where it is loaded. "
            "Wanted weights in safetensors: remove it, or convert it with `llava convert`."
        )
    if include_state:
        selection.uploads += state_files(folder)
        selection.left_out.pop(IS_STATE, None)
    return selection


def weights_of(folder: Path) -> set[str]:
    """The files that a loader takes: one, or else an index and those that it names."""
    if (folder / ONE).is_file():
        return {ONE}
    shards = sorted(path.name for path in folder.iterdir() if WEIGHTS.fullmatch(path.name))
    if not (folder / INDEX).is_file():
        if shards:
            raise ValueError(f"`{folder}` has {shards[0]}{more(len(shards) - 1)}, and no {INDEX}. Bring it back.")
        return set()
    names = read_json(folder / INDEX).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"`{folder / INDEX}` has no `weight_map` of names. Write the checkpoint again.")
    for name in sorted(set(names.values())):
        if name not in shards or name == INDEX:
            raise ValueError(
                f"`{folder / INDEX}` names `{name}`, and there is no such file of weights. Bring it back."
            )
    return {INDEX, *names.values()}


def refuse_link_outside(path: Path, folder: Path) -> None:
    """What a link leads to may be anything that we can read. The cache of the Hub has its files by links."""
    target, home = path.resolve(), folder.resolve()
    blobs = home.parent.parent / "blobs"
    if target.is_relative_to(home) or (home.parent.name == "snapshots" and target.parent == blobs):
        return
    raise ValueError(
        f"`{path}` is a link out of its folder, to `{target}`, which would be published. If it is to be, put a copy "
        "in its place (`cp`, or `cp -l` without a second copy on the disk)."
    )


def clean_config(path: Path) -> Path | bytes:
    """A file as it is, or `config.json` with the names of the parts that it was made of instead of their paths."""
    if path.name not in ("config.json", "tokenizer_config.json"):
        return path
    content = read_json(path)
    if not any(place.endswith("name_or_path") for place, _ in local_paths.in_json(content)):
        return path
    return json.dumps(shorten_names(content), indent=2).encode()


def shorten_names(value: object) -> object:
    if isinstance(value, dict):
        return {
            name: local_paths.shorten(inner)
            if name.endswith("name_or_path") and isinstance(inner, str)
            else shorten_names(inner)
            for name, inner in value.items()
        }
    return [shorten_names(inner) for inner in value] if isinstance(value, list) else value


def state_files(folder: Path) -> list[Upload]:
    """The last complete checkpoint, whole, as a run takes it up; `complete.json` has the sizes of what is uploaded."""
    checkpoint = last_complete_checkpoint(folder)
    if checkpoint is None:
        raise ValueError(
            f"--include-training-state yes: `{folder}` has no complete checkpoint. Give the `output_dir` of a run "
            "that saved one (`save_strategy`), or leave it out."
        )
    uploads = []
    for path in sorted(checkpoint.rglob("*")):
        if not path.is_file() or path.name == COMPLETE:
            continue
        refuse_link_outside(path, checkpoint)
        name = str(path.relative_to(checkpoint))
        if path.suffix in PICKLES and not PICKLED_STATE.fullmatch(name):
            raise ValueError(f"`{path}` is a pickle. Wanted weights in safetensors; remove it.")
        source = local_paths.shortened(path.read_bytes()) if is_record(path) else clean_config(path)
        uploads.append(Upload(f"{checkpoint.name}/{name}", source))
    done = json.loads((checkpoint / COMPLETE).read_text())
    sizes = {upload.name.partition("/")[2]: upload.size for upload in uploads}
    marked = json.dumps({"step": done["step"], "files": sizes}).encode()
    run = Upload(RUN, local_paths.shortened((folder / RUN).read_bytes())) if (folder / RUN).is_file() else None
    return [*uploads, Upload(f"{checkpoint.name}/{COMPLETE}", marked), *([run] if run else [])]


def is_record(path: Path) -> bool:
    return path.name in ("trainer_state.json", RUN, FINISHED)


def more(number: int) -> str:
    return f" (and {number} more)" if number else ""
