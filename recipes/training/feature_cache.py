"""`cache_image_features: DIR`: before the first step, what the frozen tower makes of every picture goes into files.

    DIR/<hash of the tower, its preprocessing and the code>/features-*.safetensors

Another tower, size, feature layer or version has another folder, and a changed picture another name, so nothing in
here can be stale. Worth it where a small language model sees each picture more than once; 576 image tokens of a
ViT-L take 1.2 MB in bfloat16.
"""

import hashlib
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.data import DataLoader
from tqdm import tqdm

from modeling_llava import LlavaForConditionalGeneration
from processing import LlavaProcessor, images
from processing.features import FeatureFiles, picture_key, write_features
from processing.rows import PackedRows
from recipes.training.checkpoints import wait_for_all
from recipes.training.train_config import TrainConfig


BATCH = 32
SHARD_BYTES = 1 << 30
LOOKED_AT = 64  # pictures that are read again to measure what reading takes


@dataclass
class TreePictures(torch.utils.data.Dataset):
    """The pictures of some trees of a plan: name and tensor of those whose features are not in files."""

    rows: PackedRows
    trees: range
    processor: LlavaProcessor
    files: FeatureFiles

    def __len__(self) -> int:
        return len(self.trees)

    def __getitem__(self, number: int) -> list[tuple[str, torch.Tensor | None]]:
        tree = self.rows.read_tree(self.trees[number])
        name = f"conversation `{tree.ids[0]}`"
        keyed = [(picture_key(image, name), image) for image in tree.images]
        return [
            (key, None if key in self.files else self.processor.pixel_values([image], name)[0]) for key, image in keyed
        ]


def cache_features(
    config: TrainConfig, rows: PackedRows, model: LlavaForConditionalGeneration, processor: LlavaProcessor
) -> tuple[FeatureFiles, dict[str, Any]]:
    """Computes what is missing, each process its share; returns all of it, and what it took and saves."""
    folder = Path(config.cache_image_features) / tower_hash(model, processor, config.bf16)
    folder.mkdir(parents=True, exist_ok=True)
    files = FeatureFiles(folder)
    had, started = len(files), time.perf_counter()
    check_space(config, rows, model, processor, files)
    wait_for_all()  # all have looked before one writes
    trees = range(config.process_index, len(rows.plan.trees.tokens), config.world_size)
    loader = DataLoader(
        TreePictures(rows, trees, processor, files),
        batch_size=BATCH,
        collate_fn=lambda batch: [item for tree in batch for item in tree],
        num_workers=config.dataloader_num_workers,
    )
    computed = _compute(loader, folder, model.to(config.device), config)
    seconds = time.perf_counter() - started
    wait_for_all()
    files = FeatureFiles(folder)
    seen = int(rows.plan.trees.images[rows.plan.row_trees].sum())
    facts = {
        "folder": str(folder),
        "pictures": len(files),
        "megabytes": round(files.num_bytes / 1e6, 1),
        "were_there": had,
        "computed_by_this_process": computed,
        "milliseconds_to_compute": round(1000 * seconds / computed, 2) if computed else None,
        "milliseconds_to_read": round(1000 * _seconds_to_read(files), 2) if len(files) else None,
        "seen_in_this_run": seen,
    }
    return files, facts


def format_facts(facts: dict[str, Any]) -> str:
    text = (
        f"image features: {facts['pictures']:,} pictures, {facts['megabytes']:,} MB in {facts['folder']}; "
        f"{facts['were_there']:,} were there"
    )
    if facts["computed_by_this_process"]:
        gain = facts["milliseconds_to_compute"] - facts["milliseconds_to_read"]
        seen = facts["seen_in_this_run"]
        text += (
            f"; {facts['milliseconds_to_compute']} ms to open and encode one, {facts['milliseconds_to_read']} ms to "
            f"read it: {gain * seen / 1000:,.1f} s less in a run that sees {seen:,}"
        )
    return text


@torch.no_grad()
def _compute(loader: DataLoader, folder: Path, model: LlavaForConditionalGeneration, config: TrainConfig) -> int:
    waiting: dict[str, torch.Tensor] = {}
    size = computed = 0
    bar = tqdm(loader, desc="image features", unit=f" x {BATCH} trees", disable=config.disable_tqdm or None)
    for batch in bar:
        missing = {key: pixels for key, pixels in batch if pixels is not None and key not in waiting}
        if missing:
            pixels = torch.stack(list(missing.values())).to(config.device)
            with torch.autocast(config.device.type, torch.bfloat16, enabled=config.bf16):
                features = model.model.get_vision_features(pixels).to(model.dtype).cpu()
            waiting |= {key: one.clone() for key, one in zip(missing, features, strict=True)}
            size += features.nbytes
            computed += len(missing)
        if size >= SHARD_BYTES:
            write_features(folder, waiting)
            waiting, size = {}, 0
    if waiting:
        write_features(folder, waiting)
    return computed


def _seconds_to_read(files: FeatureFiles) -> float:
    keys = list(files.file_of)[:LOOKED_AT]
    started = time.perf_counter()
    for key in keys:
        files.read_key(key, "a picture").sum()  # maps, and touches every byte
    return (time.perf_counter() - started) / len(keys)


def check_space(
    config: TrainConfig,
    rows: PackedRows,
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    files: FeatureFiles,
) -> None:
    width = model.model.multi_modal_projector.linear_1.in_features
    each = processor.num_image_tokens * width * torch.empty((), dtype=model.dtype).element_size()
    wanted = max(int(rows.plan.trees.images.sum()) - len(files), 0) * each
    free = shutil.disk_usage(files.folder).free
    if wanted > free:
        raise ValueError(
            f"`cache_image_features: {config.cache_image_features}` may need {wanted / 1e9:,.1f} GB, but "
            f"{free / 1e9:,.1f} GB are free. Give a larger disk, or leave it out."
        )


def tower_hash(model: LlavaForConditionalGeneration, processor: LlavaProcessor, autocast: bool) -> str:
    """Equal where features are: weights and shape of the tower, the chosen layer, preprocessing, dtype, and code."""
    digest = hashlib.blake2b(digest_size=16)
    config = model.config
    told = {
        "vision": config.vision_config.to_dict(),
        "layer": config.vision_feature_layer,
        "strategy": config.vision_feature_select_strategy,
        "dtype": [str(model.dtype), autocast],
        "image_processor": processor.image_processor.to_dict(),
        "transformers": transformers.__version__,
        "code": Path(images.__file__).read_text(encoding="utf-8"),
    }
    digest.update(json.dumps(told, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.model.vision_tower.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
