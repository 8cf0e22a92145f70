"""What a training run can be told: TRL's `SFTConfig` with the defaults of LLaVA, and what is only here."""

from dataclasses import dataclass, field
from typing import Literal

from trl import SFTConfig

from recipes.training.train_checks import check_reporters, check_values, list_of_names, paths_with_home, weights_of


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
        default=None,
        metadata={
            "help": "How often each data set is seen in an epoch: 1 once, 2 twice, 0.5 a seeded half. Of streams, the "
            "share of conversations from each."
        },
    )
    data_rows: list[int] | None = field(
        default=None,
        metadata={"help": "Instead of `data_weights`: how many rows of each data set are seen in an epoch."},
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "Read the data while training runs, from files or the Hub; needs `max_steps`."},
    )
    stream_buffer: int = field(default=2048, metadata={"help": "Conversations of a stream that are packed together."})
    eval_data: list[str] | None = field(
        default=None,
        metadata={"help": "Held-out data: its loss, and answers to it in samples.html, every `eval_steps`."},
    )
    sample_answers: int = field(default=8, metadata={"help": "Held-out conversations that samples.html shows."})
    image_root: str | None = field(default=None, metadata={"help": "Folder that image paths in the data start from."})
    skip_invalid: bool = field(
        default=False,
        metadata={"help": "Go on without rows that cannot be used; they are counted. Opens every picture first."},
    )
    projector: str | None = field(
        default=None, metadata={"help": "Checkpoint or mm_projector.bin whose projector replaces the model's."}
    )
    tune_vision_tower: bool = field(default=False, metadata={"help": "Train the vision tower too."})
    projector_lr: float | None = field(default=None, metadata={"help": "Learning rate of the projector, if another."})
    vision_lr: float | None = field(default=None, metadata={"help": "Learning rate of the vision tower, if another."})
    attention: Literal["auto", "segments", "varlen", "flex", "mask"] = field(
        default="auto",
        metadata={"help": "How rows of trees attend. auto: varlen on CUDA, segments elsewhere; mask fits any model."},
    )
    max_images_per_row: int | None = field(default=None, metadata={"help": "Cap on images in a packed row."})
    max_conversation_length: int | None = field(
        default=None,
        metadata={
            "help": "Tokens of a conversation at most, if fewer than `max_length`: longer ones lose whole turns."
        },
    )
    cache_image_features: str | None = field(
        default=None,
        metadata={"help": "Folder for the frozen tower's features: computed once, then read instead of pictures."},
    )

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
        check_values(self)
        for name in ("data", "eval_data", "image_root", "projector", "cache_image_features", "resume_from_checkpoint"):
            setattr(self, name, paths_with_home(getattr(self, name)))
        self.data = list_of_names("data", self.data)
        if self.eval_data:
            self.eval_data = list_of_names("eval_data", self.eval_data)
        if self.eval_data and self.eval_strategy == "no":
            self.eval_strategy = "steps"
            self.eval_steps = self.eval_steps or 0.1
        super().__post_init__()
        check_reporters(self.report_to)
        if self.data_weights is not None:  # 1 in a YAML is a weight as 1.0 is; to `mix` it would be a row
            self.data_weights = weights_of("data_weights", self.data_weights, len(self.data), whole=False)
        if self.data_rows is not None:
            self.data_rows = weights_of("data_rows", self.data_rows, len(self.data), whole=True)
        if self.data_weights is not None and self.data_rows is not None:
            raise ValueError("`data_weights` and `data_rows` say the same thing in two ways. Leave one of them out.")
        self._check_packing()
        if self.eval_strategy != "no" and not self.eval_data:
            raise ValueError(
                "`eval_strategy` needs `eval_data`, the held-out conversations. Give it, or leave it out."
            )
        self._check_streaming()
        self._check_cache()

    def _check_packing(self) -> None:
        if self.packing and not self.max_length:
            raise ValueError("`packing` needs `max_length`, the tokens in a row. Give it, or set `packing: false`.")
        if self.eval_data and not self.max_length:
            raise ValueError("`eval_data` is laid out in rows of `max_length` tokens. Give `max_length`.")
        if self.packing and self.num_train_epochs != int(self.num_train_epochs):
            raise ValueError(
                f"`num_train_epochs` is {self.num_train_epochs}. With `packing` give whole epochs, or `max_steps`."
            )

    def _check_streaming(self) -> None:
        if not self.streaming:
            return
        if self.max_steps <= 0:
            raise ValueError("`streaming` needs `max_steps`: a stream does not say how long it is.")
        if not self.packing:
            raise ValueError("`streaming` goes with `packing`. Leave one of `streaming: true`, `packing: false` out.")
        if self.data_rows is not None:
            raise ValueError("`data_rows` goes without `streaming`: give `data_weights`, the share of each stream.")
        for name in ("save_strategy", "eval_strategy", "logging_strategy"):
            if getattr(self, name) == "epoch":
                raise ValueError(f"`{name}: epoch` goes without `streaming`: a stream has no epochs. Use `steps`.")
        self.ignore_data_skip = True  # a checkpoint has the position in the stream

    def _check_cache(self) -> None:
        for name, wrong in (
            ("tune_vision_tower", self.tune_vision_tower),
            ("streaming", self.streaming),
            ("packing: false", not self.packing),
        ):
            if self.cache_image_features and wrong:
                raise ValueError(
                    f"`cache_image_features` goes without `{name}`: features are of a frozen tower, and of the "
                    "pictures in planned rows. Leave one of them out."
                )
