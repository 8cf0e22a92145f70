"""What `train_speed.py` compares: drawn conversations, random models of one set of weights, and the two trainers."""

import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from datasets import Dataset, Image, List
from PIL import Image as Picture
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Qwen2Config,
    TrainerCallback,
)
from transformers import LlavaConfig as StockConfig
from transformers import LlavaForConditionalGeneration as StockLlava
from transformers import LlavaProcessor as StockProcessor
from trl import SFTConfig, SFTTrainer

from modeling_llava import LlavaConfig, LlavaForConditionalGeneration
from processing import LlavaProcessor, load_template
from processing.collator import TreeCollator
from processing.packing import plan_rows
from processing.rows import PackedRows, encode_rows
from recipes.train import choose_layout
from recipes.training.throughput import Meter
from recipes.training.train_config import TrainConfig
from recipes.training.train_rows import CollateNumbered
from recipes.training.trainable import choose_trainable
from recipes.training.trainer import LlavaTrainer


PATCH_SIZE = 14
IMAGE_TOKEN_ID = 3
SPECIAL_TOKENS = ["<unk>", "<s>", "</s>", "<image>", "<pad>"]
VIT_L = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}


def _tower(hidden: int, layers: int, heads: int) -> dict:
    return {
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


def _language(vocab: int, hidden: int, inner: int, layers: int, heads: int, kv_heads: int | None = None) -> dict:
    return {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads or heads,
        "max_position_embeddings": 4096,
        "pad_token_id": SPECIAL_TOKENS.index("<pad>"),
        "bos_token_id": SPECIAL_TOKENS.index("<s>"),
        "eos_token_id": SPECIAL_TOKENS.index("</s>"),
    }


# The tower, the class of the language model and its fields. On a CPU the parts are as expensive, to one another, as in
# the model that they are named after.
SHAPES = {
    "cpu": {
        "small": (_tower(32, 3, 2), LlamaConfig, _language(500, 32, 64, 2, 4, 2)),
        "0.5b": (_tower(256, 10, 4), Qwen2Config, _language(15_000, 256, 1376, 8, 8, 2)),
        "7b": (_tower(128, 6, 2), LlamaConfig, _language(32_000, 512, 1376, 8, 8)),
    },
    "cuda": {
        "small": (_tower(256, 6, 4), LlamaConfig, _language(8_000, 512, 1376, 8, 8)),
        "0.5b": (VIT_L, Qwen2Config, _language(151_936, 896, 4864, 24, 14, 2)),
        "7b": (VIT_L, LlamaConfig, _language(32_064, 4096, 11_008, 32, 32)),
    },
}


@dataclass
class Case:
    title: str
    stage: str
    images: int  # a step
    samples: int  # a step; for TRL one batch
    goal: float  # supervised tokens/s over TRL's on a CPU, each side with its defaults or both with equal ones


CASES = {
    "stage1": Case("stage 1", "pretrain", 8, 8, 2.0),
    "captions5": Case("stage 1, five captions", "pretrain", 2, 10, 6.0),
    "stage2": Case("stage 2", "finetune", 4, 8, 2.2),
}


def draw_turns(case: str, rng: Random) -> list[list[tuple[int, int]]]:
    """The conversations about one image, as words of question and answer in every turn.

    Stage 2 is like LLaVA-Instruct-158K: most images have a conversation of several turns and a question that takes
    reasoning, some a long description; 1.96 conversations an image.
    """
    if case == "stage1":
        return [[(0, rng.randint(15, 45))]]
    if case == "captions5":
        return [[(0, rng.randint(10, 30))] for _ in range(5)]
    kinds = [kind for kind, share in (("talk", 0.72), ("detail", 0.28), ("reason", 0.95)) if rng.random() < share]
    drawn = []
    for kind in kinds or ["reason"]:
        if kind == "talk":
            turns, words = rng.choice([3, 4, 5]), rng.randint(300, 450)
            drawn.append([(14, max(5, words // turns - 16))] * turns)
        elif kind == "detail":
            drawn.append([(15, rng.randint(90, 170))])
        else:
            drawn.append([(rng.randint(12, 35), rng.randint(130, 250))])
    return drawn


def draw_samples(case: str, steps: int, vocab: int, folder: Path, seed: int = 0) -> list[dict]:
    """Conversations and their JPEGs, step after step; each step has whole images and the numbers of its case."""
    rng, shape = Random(seed), CASES[case]
    samples: list[dict] = []
    for step in range(steps):
        images: list[list] = []
        while sum(map(len, images)) != shape.samples:
            images = [draw_turns(case, rng) for _ in range(shape.images)]
        drawn = []
        for number, conversations in enumerate(images):
            path = folder / f"{case}-{step}-{number}.jpg"
            noise = Picture.frombytes("RGB", (64, 48), rng.randbytes(64 * 48 * 3))
            noise.resize((640, 480), Picture.Resampling.BICUBIC).save(path, quality=90)
            for turns in conversations:
                texts = [" ".join(f"w{rng.randrange(vocab)}" for _ in range(n)) for turn in turns for n in turn]
                drawn.append({"image": str(path), "texts": texts})
        rng.shuffle(drawn)
        samples += drawn
    return samples


def rows_for_trl(samples: list[dict]) -> Dataset:
    roles = ("user", "assistant")
    rows = [
        {
            "messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(sample["texts"])],
            "images": [sample["image"]],
        }
        for sample in samples
    ]
    return Dataset.from_list(rows).cast_column("images", List(Image()))


def rows_for_us(samples: list[dict]) -> Dataset:
    rows = []
    for number, sample in enumerate(samples):
        messages = [
            {"role": ("user", "assistant")[i % 2], "content": [{"type": "text", "text": text}]}
            for i, text in enumerate(sample["texts"])
        ]
        messages[0]["content"].insert(0, {"type": "image", "text": None})
        rows.append({"id": str(number), "messages": messages, "images": [sample["image"]]})
    return Dataset.from_list(rows).cast_column("images", List(Image(decode=False)))


def processors(vocab_size: int, image_size: int) -> tuple[LlavaProcessor, StockProcessor]:
    words = [f"w{i}" for i in range(vocab_size - len(SPECIAL_TOKENS))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(SPECIAL_TOKENS + words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    unk, bos, eos, image, pad = SPECIAL_TOKENS
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{"unk_token": unk, "bos_token": bos, "eos_token": eos, "pad_token": pad},
        additional_special_tokens=[image],
    )
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    )
    ours, stock = (
        made(
            image_processor=pictures,
            tokenizer=fast,
            patch_size=PATCH_SIZE,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=load_template("vicuna_v1"),
        )
        for made in (LlavaProcessor, StockProcessor)
    )
    return ours, stock


def build(
    sizes: tuple[dict, type, dict], image_size: int, device: str, dtype: torch.dtype
) -> tuple[LlavaForConditionalGeneration, StockLlava]:
    """Both models, on the same memory for their weights."""
    tower, language_class, language = sizes
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**tower, image_size=image_size, patch_size=PATCH_SIZE),
        text_config=language_class(**language),
        image_token_index=IMAGE_TOKEN_ID,
        image_seq_length=(image_size // PATCH_SIZE) ** 2,
    )
    torch.manual_seed(0)
    with torch.device(device):
        ours = LlavaForConditionalGeneration._from_config(config, dtype=dtype)
        stock = StockLlava._from_config(StockConfig.from_dict(config.to_dict()), dtype=dtype)
    stock.load_state_dict(ours.state_dict(), assign=True)
    return ours, stock


def settings(case: Case, device: str, folder: str, workers: int, optimizer: str) -> dict[str, Any]:
    """What both trainers are told alike."""
    return {
        "output_dir": folder,
        "use_cpu": device == "cpu",
        "bf16": device == "cuda",
        "learning_rate": 0.0,
        "optim": optimizer,
        "max_steps": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
        "dataloader_num_workers": workers,
        "max_length": None,
    }


def freeze(model: StockLlava, stage: str) -> None:
    model.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(True)
    if stage == "finetune":
        model.model.language_model.requires_grad_(True)
        model.lm_head.requires_grad_(True)


def trl_trainer(
    model: StockLlava, case: Case, rows: Dataset, processor: StockProcessor, common: dict, clock: TrainerCallback
) -> SFTTrainer:
    freeze(model, case.stage)
    args = SFTConfig(
        **common,
        per_device_train_batch_size=case.samples,
        assistant_only_loss=True,
        activation_checkpointing=True,  # as by default, but by its new name; `Side` sets it
    )
    trainer = SFTTrainer(model=model, args=args, train_dataset=rows, processing_class=processor, callbacks=[clock])
    trainer.remove_callback(PrinterCallback)
    return trainer


def our_trainer(
    model: LlavaForConditionalGeneration,
    case: Case,
    rows: Dataset,
    processor: LlavaProcessor,
    common: dict,
    clock: TrainerCallback,
) -> tuple[LlavaTrainer, float]:
    """Also seconds for the ids of one conversation, made once in a run and not in its steps."""
    config = TrainConfig(
        **common | {"max_length": 32_768},
        stage=case.stage,
        data=["drawn"],
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        packing=False,  # TRL's own, as in recipes/train.py
    )
    choose_trainable(model, config, use_peft=False)
    layout = choose_layout(config, model)
    started = time.process_time()
    encoded, _ = encode_rows(rows, processor, config.max_length)
    encoding = (time.process_time() - started) / len(rows)
    packed = []
    for first in range(0, len(rows), case.samples):  # a row for each step, of the conversations that TRL has in it
        numbers = range(first, first + case.samples)
        own, own_encoded = rows.select(numbers), encoded.select(numbers)
        planned = plan_rows(
            own_encoded,
            max_length=config.max_length,
            rows_per_step=1,
            tokens_per_image=processor.num_image_tokens,
        )
        packed.append(PackedRows(own, own_encoded, planned))
    trainer = LlavaTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_dict({"row": range(len(packed))}),
        processing_class=processor,
        data_collator=CollateNumbered(FirstRows(packed), TreeCollator(processor, layout)),
        callbacks=[clock],
        epochs_in_plan=1,
        meter=Meter(model.config, case.stage, model.device),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer, encoding


@dataclass
class FirstRows:
    """The row of each of several plans that have one."""

    plans: list[PackedRows]

    def __len__(self) -> int:
        return len(self.plans)

    def __getitem__(self, number: int) -> dict:
        return self.plans[number][0]
