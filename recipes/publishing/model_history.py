"""How a checkpoint came about, from the records that lie on this machine: stages, data, and the models it began as.

What cannot be found is `unknown`, and the card says so.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recipes.building.parts import read_json
from recipes.publishing import local_paths
from recipes.publishing.old_card import header_of
from recipes.publishing.push_files import CARD, Upload
from recipes.training.checkpoints import FINISHED


UNKNOWN = "unknown"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
MOST_STAGES = 10
PARTS = {"vision_config": "vision tower", "text_config": "language model"}


def names_hub(name: str) -> bool:
    """Whether a name is one of the Hub: what lies in a folder that is here, or has lain there, is none."""
    return HUB_ID.fullmatch(name) is not None and not Path(name).parent.exists()


@dataclass(frozen=True)
class Base:
    """A model that this one was made of."""

    part: str
    name: str
    licence: str

    @property
    def is_on_hub(self) -> bool:
        return names_hub(self.name)


@dataclass(frozen=True)
class Source:
    """A data set of a stage: what the record of training says of it, and, where it lies here, what it holds."""

    facts: dict[str, Any]
    licence: str = UNKNOWN
    models: list[str] = field(default_factory=list)
    is_on_hub: bool = False


@dataclass(frozen=True)
class Stage:
    facts: dict[str, Any]
    sources: list[Source]

    @property
    def name(self) -> str:
        return str(self.facts["stage"])

    def losses(self) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
        log = self.facts["log"]
        learned = [(entry["step"], entry["loss"]) for entry in log if "loss" in entry]
        return learned, [(entry["step"], entry["eval_loss"]) for entry in log if "eval_loss" in entry]


@dataclass(frozen=True)
class History:
    stages: list[Stage]  # the first one first
    bases: list[Base]
    began_as: str | None  # the checkpoint that the first recorded stage started from


def history(folder: Path, facts: dict[str, Any] | None = None) -> History:
    """`facts` of the last stage, where its training is still going on."""
    stages: list[Stage] = []
    facts = facts or record(folder)
    began_as = None
    while facts is not None and len(stages) < MOST_STAGES:
        stages.insert(0, Stage(facts, [source_of(one) for one in facts["data"]["sources"]]))
        began_as = str(facts["model"])
        facts = record(Path(began_as))
    return History(stages, bases(read_json(folder / "config.json")), began_as)


def record(folder: Path) -> dict[str, Any] | None:
    path = folder / FINISHED
    if not path.is_file():
        return None
    facts = read_json(path)
    for name, kind in (("stage", str), ("data", dict), ("config", dict), ("trainable", list), ("log", list)):
        if not isinstance(facts.get(name), kind):
            raise ValueError(
                f"`{path}` has no `{name}` as `llava train` writes it. Bring back the file, or take it away: the "
                "card then says that the training is unknown."
            )
    if "model" not in facts or not isinstance(facts["data"].get("sources"), list):
        raise ValueError(f"`{path}` has no `model` or no `data.sources`. Bring back the file, or take it away.")
    return facts


def records(found: History) -> list[Upload]:
    """Of the last stage as `training.json`, of those before it as `training-1.json` and on, without local paths."""
    uploads = []
    for number, stage in enumerate(found.stages, 1):
        name = FINISHED if number == len(found.stages) else f"training-{number}.json"
        content = json.dumps(local_paths.shorten_json(json.loads(json.dumps(stage.facts, default=str))), indent=1)
        uploads.append(Upload(name, content.encode()))
    return uploads


def bases(config: dict[str, Any]) -> list[Base]:
    found = []
    for key, part in PARTS.items():
        name = (config.get(key) or {}).get("_name_or_path") or UNKNOWN
        found.append(Base(part, name, licence_of(name)))
    return found


def licence_of(name: str) -> str:
    """From the card of a folder here, or of a model of the Hub that has been downloaded."""
    folder = Path(name)
    if folder.is_dir():  # the halves of the micro model have one card above both
        cards = [folder / CARD, folder.parent / CARD]
    elif HUB_ID.fullmatch(name):
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(name, CARD)
        cards = [Path(cached)] if isinstance(cached, str) else []
    else:
        cards = []
    for card in cards:
        header = header_of(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else {}
        if licence := header.get("license_name") or header.get("license"):
            return str(licence)
    return UNKNOWN


# -- data --


def source_of(facts: dict[str, Any]) -> Source:
    path = Path(str(facts["data"]))
    if not path.exists():
        return Source(facts, is_on_hub=names_hub(str(path)) and not path.suffix)
    card = path / CARD if path.is_dir() else path.parent / CARD
    header = header_of(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() and path.is_dir() else {}
    return Source(facts, str(header.get("license") or UNKNOWN), models_of(parquet_files(path)))


def parquet_files(path: Path) -> list[Path]:
    return sorted(path.rglob("*.parquet")) if path.is_dir() else [path] if path.suffix == ".parquet" else []


def models_of(files: list[Path]) -> list[str]:
    """The models that wrote rows, from the column that `llava generate` fills."""
    found: set[str] = set()
    for file in files:
        try:
            with pq.ParquetFile(file) as parquet:
                if "model" not in parquet.schema_arrow.names:
                    continue
                for batch in parquet.iter_batches(columns=["model"]):
                    found.update(str(name) for name in pc.unique(batch.column(0)).to_pylist() if name)
        except pa.ArrowInvalid:
            return [f"{UNKNOWN}: `{file.name}` cannot be read"]
    return sorted(found)
