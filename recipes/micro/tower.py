"""The seeing half: a CLIP tower that learns from nothing to tell scenes apart by their captions.

A batch holds groups of scenes that differ in one fact, so that colour, shape, size and place all have to be seen; one
object at first, then more. What the tower knows is measured on its penultimate layer, where LLaVA takes its features:
by linear probes of each fact, and by a network like the projector, which has to read all looks of an object.
"""

import random
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPVisionModel

from data_generation.microworld.draw import draw
from data_generation.microworld.scene import CELLS, COLOURS, SHAPES, SIZES, Scene, Thing, make_scene
from data_generation.microworld.variants import LOOKS, draw_few, variant


# What the text half knows. It is trained for the tower's sake and not kept.
END = 0  # and padding. Were it 2, CLIP would take what it has read up to a text's highest id, not all of it.
WORDS = ("</s>", *SIZES, *COLOURS, *SHAPES, *CELLS)
SIDE, PATCH = 48, 16  # a patch is a cell
SIDES = (SIDE, 64, 96)  # of training pictures; the processor makes them `SIDE`, as it does those of a checkpoint
# Probes read most of a tower that has learned nothing, too; captions it does not find.
GATES = {"colour": 0.95, "shape": 0.9, "size": 0.95, "cell": 0.95, "object": 0.95, "caption": 0.9}
GROUPS, VARIANTS = 16, 4
RATE, WARM_UP, DECAY = 1.2e-3, 60, 0.3  # the share of the steps in which the rate falls
PROBED, PROBING = 3000, 300  # scenes that a measure is taken of, and steps in which a probe learns
WINDOW = 50  # steps
PASS = 0.75  # of a window's pictures find their caption: then scenes have one more object
MOST = 4  # objects
# Of the patches' position embeddings at first: the content of a patch is of about .8 and drowns smaller ones.
PLACE_SCALE = 0.8


def image_processor() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.13, 0.13, 0.13],  # the dark ground is about zero
        image_std=[0.35, 0.35, 0.35],
    )


def pixels_of(scenes: list[Scene], processor: CLIPImageProcessorPil, sides: list[int]) -> torch.Tensor:
    """(scenes, 3, SIDE, SIDE), each drawn with its own side first."""
    pictures = [draw(scene, side) for scene, side in zip(scenes, sides, strict=True)]
    return processor(pictures, return_tensors="pt")["pixel_values"]


def new_model() -> CLIPModel:
    size = {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4}
    text = size | {"num_hidden_layers": 2, "vocab_size": len(WORDS), "max_position_embeddings": 32}
    text |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), END)
    vision = size | {"num_hidden_layers": 4, "image_size": SIDE, "patch_size": PATCH}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))
    nn.init.normal_(model.vision_model.embeddings.position_embedding.weight.data[1:], std=PLACE_SCALE)
    return model


def with_variants(scenes: Iterable[Scene], rng: random.Random) -> list[Scene]:
    """Each scene and others that differ from it in one fact."""
    return [each for scene in scenes for each in (scene, *(variant(scene, rng) for _ in range(VARIANTS - 1)))]


def caption(scene: Scene) -> list[str]:
    """large red circle top small blue ring bottom-left"""
    return [word for thing in scene.things for word in (thing.size, thing.colour, thing.shape, CELLS[thing.cell])]


def similarities(model: CLIPModel, pixels: torch.Tensor, captions: list[list[str]]) -> torch.Tensor:
    """Cosines, (pictures, captions)."""
    texts = [torch.tensor([WORDS.index(word) for word in words] + [END]) for words in captions]
    ids = nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=END)
    read = model.text_projection(model.text_model(ids).pooler_output)
    seen = model.visual_projection(model.vision_model(pixels).pooler_output)
    return F.normalize(seen, dim=-1) @ F.normalize(read, dim=-1).T


def train_tower(steps: int, seed: int, log) -> CLIPModel:
    torch.manual_seed(seed)
    rng = random.Random(f"tower {seed}")
    model, processor = new_model(), image_processor()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05, betas=(0.9, 0.98))
    started, most, wins, losses = time.perf_counter(), 1, 0.0, 0.0
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, step / WARM_UP) * max(0.02, min(1.0, (1 - step / steps) / DECAY))
        scenes = with_variants((draw_few(rng, most) for _ in range(GROUPS)), rng)
        pixels = pixels_of(scenes, processor, rng.choices(SIDES, k=len(scenes)))
        captions = [caption(scene) for scene in scenes]
        logits = similarities(model, pixels, captions) * model.logit_scale.exp().clamp(max=100)
        # Each of equal captions is right: scenes of few objects repeat.
        right = torch.tensor([[one == other for other in captions] for one in captions])
        wanted = right / right.sum(1, keepdim=True)
        loss = (F.cross_entropy(logits, wanted) + F.cross_entropy(logits.T, wanted)) / 2
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

        losses += loss.item()
        wins += right.gather(1, logits.argmax(1, keepdim=True)).float().mean().item()
        if step % WINDOW == 0:
            log(
                f"tower, step {step} of {steps}: up to {most} objects, loss {losses / WINDOW:.3f}, picture to "
                f"caption {wins / WINDOW:.2f} of {len(scenes)}, {time.perf_counter() - started:.0f} s"
            )
            most = min(MOST, most + (wins / WINDOW >= PASS))
            wins = losses = 0.0
    return model


@torch.no_grad()
def objects_of(tower: CLIPVisionModel, scenes: list[Scene], side: int) -> tuple[torch.Tensor, list[Thing], list[int]]:
    """Of every object the features of its patch as LLaVA has them, (objects, width), and its scene's number."""
    processor, features, things, numbers = image_processor(), [], [], []
    for first in range(0, len(scenes), 250):
        some = scenes[first : first + 250]
        pixels = pixels_of(some, processor, [side] * len(some))
        patches = tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        for number, scene in enumerate(some):
            for thing in scene.things:
                features.append(patches[number, thing.cell])
                things.append(thing)
                numbers.append(first + number)
    return torch.stack(features), things, numbers


def numbered(things: list[Thing], name: str) -> torch.Tensor:
    """The values of a fact as classes."""
    values = list(LOOKS.get(name, range(len(CELLS))))
    return torch.tensor([values.index(getattr(thing, name)) for thing in things])


def fit(network: nn.Module, x: torch.Tensor, loss: Callable[[torch.Tensor], torch.Tensor], rate: float) -> None:
    optimizer = torch.optim.Adam(network.parameters(), rate)
    for _ in range(PROBING):
        optimizer.zero_grad()
        loss(network(x)).backward()
        optimizer.step()


def probe(tower: CLIPVisionModel, split: str = "validation", side: int = SIDE) -> dict[str, float]:
    """What a linear layer reads from the patch that an object is in: shares right on scenes it has not seen."""
    torch.manual_seed(0)
    x, things, numbers = objects_of(tower, [make_scene(split, i) for i in range(PROBED)], side)
    learn = torch.tensor(numbers) < PROBED * 4 // 5
    x = (x - x[learn].mean(0)) / (x[learn].std(0) + 1e-5)
    found = {}
    for name in (*LOOKS, "cell"):
        y = numbered(things, name)
        layer = nn.Linear(x.shape[1], int(y.max()) + 1)
        fit(layer, x[learn], partial(F.cross_entropy, target=y[learn]), rate=1e-2)
        found[name] = (layer(x[~learn]).argmax(1) == y[~learn]).float().mean().item()
    return found


def read_objects(tower: CLIPVisionModel, split: str = "validation", side: int = SIDE) -> float:
    """How often a network like the projector, taught on `train`, reads all looks of an object rightly."""
    torch.manual_seed(0)
    parts = [len(values) for values in LOOKS.values()]

    def loss(out: torch.Tensor) -> torch.Tensor:
        columns = zip(out.split(parts, dim=1), y, strict=True)
        return torch.stack([F.cross_entropy(part, column) for part, column in columns]).sum()

    x, things, _ = objects_of(tower, [make_scene("train", i) for i in range(PROBED)], side)
    y = [numbered(things, name) for name in LOOKS]
    width = x.shape[1]
    network = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, sum(parts)))
    fit(network, x, loss, rate=3e-3)

    x, things, _ = objects_of(tower, [make_scene(split, i) for i in range(PROBED // 2)], side)
    read = [part.argmax(1) for part in network(x).split(parts, dim=1)]
    right = [part == numbered(things, name) for part, name in zip(read, LOOKS, strict=True)]
    return torch.stack(right).all(0).float().mean().item()


@torch.no_grad()
def find_captions(model: CLIPModel) -> float:
    """How often a picture of `validation` finds its caption in a batch made like those of training."""
    rng, processor, right = random.Random("find captions"), image_processor(), []
    for number in range(PROBED // (GROUPS * VARIANTS)):
        scenes = with_variants((make_scene("validation", number * GROUPS + i) for i in range(GROUPS)), rng)
        captions = [caption(scene) for scene in scenes]
        found = similarities(model, pixels_of(scenes, processor, [SIDE] * len(scenes)), captions).argmax(1).tolist()
        right += [captions[place] == words for place, words in zip(found, captions, strict=True)]
    return sum(right) / len(right)


def save_tower(model: CLIPModel, folder: Path) -> None:
    """Without the text half, in half precision."""
    tower = CLIPVisionModel(model.config.vision_config)
    tower.load_state_dict(model.vision_model.state_dict())
    tower.half().save_pretrained(folder)
    image_processor().save_pretrained(folder)
