"""The seeing half: a CLIP tower that learns from nothing to tell scenes apart by their captions.

A batch holds groups of scenes that differ in one fact, so that colour, shape, size and place all have to be seen. What
the tower knows is then measured by linear probes on its penultimate layer, where LLaVA takes its features.
"""

import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPVisionModel, PreTrainedTokenizerFast

from data_generation.microworld.draw import draw
from data_generation.microworld.scene import CELLS, COLOURS, SHAPES, SIZES, Scene, make_scene
from data_generation.microworld.variants import variant
from data_generation.microworld.words import telling


SIDE, PATCH = 48, 16  # a patch is a cell
GATES = {"colour": 0.95, "shape": 0.9, "size": 0.95, "cell": 0.95}
GROUPS, VARIANTS = 16, 4
RATE, WARM_UP, DECAY = 1.2e-3, 60, 0.3  # the share of the steps in which the rate falls


def image_processor() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def pixels_of(scenes: list[Scene], processor: CLIPImageProcessorPil) -> torch.Tensor:
    return processor([draw(scene, SIDE) for scene in scenes], return_tensors="pt")["pixel_values"]


def new_model(tokenizer: PreTrainedTokenizerFast) -> CLIPModel:
    size = {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4}
    text = size | {"num_hidden_layers": 2, "vocab_size": len(tokenizer), "max_position_embeddings": 128}
    text |= {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    vision = size | {"num_hidden_layers": 4, "image_size": SIDE, "patch_size": PATCH}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))


def draw_batch(rng: random.Random, number: int) -> list[Scene]:
    found = []
    for _ in range(GROUPS):
        first = make_scene("train", number * GROUPS + len(found))
        found += [first, *(variant(first, rng) for _ in range(VARIANTS - 1))]
    return found


def train_tower(tokenizer: PreTrainedTokenizerFast, steps: int, seed: int, log) -> CLIPModel:
    torch.manual_seed(seed)
    rng = random.Random(f"tower {seed}")
    model, processor = new_model(tokenizer), image_processor()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05, betas=(0.9, 0.98))
    started, wins, losses = time.perf_counter(), 0.0, 0.0
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, step / WARM_UP) * max(0.02, min(1.0, (1 - step / steps) / DECAY))
        scenes = draw_batch(rng, step)
        told = [" ".join(telling(scene.things, rng)) for scene in scenes]
        ids = tokenizer([f"<s>{text}</s>" for text in told], padding=True, return_tensors="pt").input_ids
        seen = model.visual_projection(model.vision_model(pixels_of(scenes, processor)).pooler_output)
        read = model.text_projection(model.text_model(ids).pooler_output)
        logits = F.normalize(seen, dim=-1) @ F.normalize(read, dim=-1).T * model.logit_scale.exp().clamp(max=100)
        right = torch.arange(len(scenes))
        loss = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses += loss.item()
        wins += (logits.argmax(1) == right).float().mean().item()
        if step % 50 == 0:
            log(
                f"tower, step {step} of {steps}: loss {losses / 50:.3f}, picture to caption {wins / 50:.2f} of "
                f"{len(scenes)}, {time.perf_counter() - started:.0f} s"
            )
            wins = losses = 0.0
    return model


def probe(tower: CLIPVisionModel, count: int = 3000) -> dict[str, float]:
    """What a linear layer reads from the patch that an object is in: shares right on scenes it has not seen."""
    processor = image_processor()
    scenes = [make_scene("validation", i) for i in range(count)]
    features, facts, scene_numbers = [], [], []
    with torch.no_grad():
        for first in range(0, count, 250):
            some = scenes[first : first + 250]
            hidden = tower(pixels_of(some, processor), output_hidden_states=True).hidden_states[-2][:, 1:]
            for number, scene in enumerate(some):
                for thing in scene.things:
                    features.append(hidden[number, thing.cell])
                    facts.append((thing.colour, thing.shape, thing.size, thing.cell))
                    scene_numbers.append(first + number)
    x = torch.stack(features)
    learn = torch.tensor(scene_numbers) < count * 4 // 5
    x = (x - x[learn].mean(0)) / (x[learn].std(0) + 1e-5)
    found = {}
    choices = {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "cell": range(len(CELLS))}
    for place, (name, values) in enumerate(choices.items()):
        y = torch.tensor([list(values).index(fact[place]) for fact in facts])
        layer = nn.Linear(x.shape[1], len(values))
        optimizer = torch.optim.Adam(layer.parameters(), 1e-2)
        for _ in range(300):
            optimizer.zero_grad()
            F.cross_entropy(layer(x[learn]), y[learn]).backward()
            optimizer.step()
        found[name] = (layer(x[~learn]).argmax(1) == y[~learn]).float().mean().item()
    return found


def save_tower(model: CLIPModel, folder: Path) -> None:
    tower = CLIPVisionModel(model.config.vision_config)
    tower.load_state_dict(model.vision_model.state_dict(), strict=False)
    tower.save_pretrained(folder)
    image_processor().save_pretrained(folder)
