"""What a training run can be told: TRL's `SFTConfig` with the defaults of LLaVA, and what is only here."""

from dataclasses import dataclass, field
from typing import Literal

from trl import SFTConfig


@dataclass
class TrainConfig(SFTConfig):
    """
    Fields of a training YAML besides those of TRL's `ModelConfig` (`model_name_or_path`, `dtype`, `use_peft`,
    `lora_r`, `load_in_4bit`, ...). Rates and sizes have TRL's defaults where no paper fixes them.
    """

    stage: Literal["pretrain", "finetune"] | None = field(
        default=None,
        metadata={"help": "pretrain: the projector alone learns. finetune: projector and language model. Required."},
    )
    data: list[str] | None = field(
        default=None,
        metadata={"help": "Data sets to learn from: .jsonl or .parquet files, saved data sets, Hub ids. Required."},
    )
    data_weights: list[float] | None = field(
        default=None, metadata={"help": "How often each data set is seen in an epoch: 2 twice, 0.5 a seeded half."}
    )
    eval_data: list[str] | None = field(default=None, metadata={"help": "Held-out data for the loss during training."})
    image_root: str | None = field(default=None, metadata={"help": "Folder that image paths in the data start from."})
    skip_invalid: bool = field(
        default=False, metadata={"help": "Go on without rows that cannot be used; they are counted by reason."}
    )
    projector: str | None = field(
        default=None, metadata={"help": "Checkpoint or mm_projector.bin whose projector replaces the model's."}
    )
    train_vision: bool = field(default=False, metadata={"help": "Train the vision tower too."})
    projector_lr: float | None = field(default=None, metadata={"help": "Learning rate of the projector, if another."})
    vision_lr: float | None = field(default=None, metadata={"help": "Learning rate of the vision tower, if another."})
    attention: Literal["auto", "segments", "varlen", "flex", "mask"] = field(
        default="auto",
        metadata={"help": "How rows of trees attend. auto: varlen on CUDA, segments elsewhere; mask fits any model."},
    )
    max_images_per_row: int | None = field(default=None, metadata={"help": "Cap on images in a packed row."})

    # Defaults that differ from TRL's.
    packing: bool = field(
        default=True,
        metadata={"help": "Lay conversations end to end in rows of `max_length`, those about one image as a tree."},
    )
    max_length: int | None = field(default=8192, metadata={"help": "Tokens in a row, and at most in a conversation."})
    per_device_train_batch_size: int = field(default=1, metadata={"help": "Rows a device sees at once."})
    activation_checkpointing: bool | None = field(
        default=False, metadata={"help": "Recompute activations; rows of trees rarely need it."}
    )
    dataloader_num_workers: int = field(default=4, metadata={"help": "Processes that open images and lay out rows."})
    warmup_steps: float = field(default=0.03, metadata={"help": "Share (below 1) or number of steps of warm-up."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Shape of the learning rate."})
    report_to: str = field(default="none", metadata={"help": "trackio, wandb or tensorboard."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between two lines of the log."})

    def __post_init__(self):
        super().__post_init__()
        for name in ("stage", "data"):
            if not getattr(self, name):
                raise ValueError(f"`{name}` is missing. Give it in the YAML or on the command line.")
        if self.data_weights is not None and len(self.data_weights) != len(self.data):
            raise ValueError(
                f"`data_weights` has {len(self.data_weights)} numbers for {len(self.data)} data sets. Give one each."
            )
        if self.packing and not self.max_length:
            raise ValueError("`packing` needs `max_length`, the tokens in a row. Give it, or set `packing: false`.")
