"""Whether the values of a training configuration can be meant, before anything is loaded.

The parser checks the command line; what a YAML gives passes it as it is.
"""

import math
import os
from typing import Any, Literal, get_args, get_origin

from transformers.integrations import get_available_reporting_integrations
from trl import SFTConfig


COUNTS = {  # fields that are whole numbers -> the least
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "max_length": 1,
    "max_conversation_length": 1,
    "max_images_per_row": 1,
    "stream_buffer": 1,
    "sample_answers": 0,
    "dataloader_num_workers": 0,
}
REPORTERS = ("trackio", "wandb", "tensorboard")


def check_values(given: SFTConfig) -> None:
    """To be called before TRL looks at anything: its own words would come first, and be about something else."""
    for name in ("stage", "data"):
        if not getattr(given, name):
            raise ValueError(f"`{name}` is missing. Give it in the YAML or on the command line.")
    kinds = type(given).__annotations__  # as they were written: the parser takes `None` out of those of `fields`
    for name, kind in ({"gradient_accumulation_steps": int} | kinds).items():
        choices, value = _choices(kind), getattr(given, name)
        if value is None and type(None) in get_args(kind):
            continue
        if choices and value not in choices:
            raise ValueError(f"`{name}` is {value!r}, wanted one of {', '.join(f'`{choice}`' for choice in choices)}.")
        if name in COUNTS:
            check_count(name, value, COUNTS[name])
    for name in ("learning_rate", "projector_lr", "vision_lr"):
        value = getattr(given, name)
        if value is not None and not (_is_number(value) and 0 <= value < math.inf):
            raise ValueError(f"`{name}` is {value!r}, wanted a number of at least 0, such as 1.0e-3.")
    if not _is_number(given.num_train_epochs) or not 0 < given.num_train_epochs < math.inf:
        raise ValueError(f"`num_train_epochs` is {given.num_train_epochs!r}, wanted a number above 0.")
    if given.max_steps != -1:
        check_count("max_steps", given.max_steps, 1, " (-1, the default, leaves it to `num_train_epochs`)")


def check_count(name: str, value: Any, least: int, more: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"`{name}` is {value!r}, wanted a whole number of at least {least}{more}.")


def paths_with_home(value: Any) -> Any:
    """Paths as a shell would give them, which reads no YAML; transformers does so with `output_dir`."""
    if isinstance(value, list):
        return [paths_with_home(one) for one in value]
    return os.path.expanduser(value) if isinstance(value, str) else value


def list_of_names(name: str, value: Any) -> list[str]:
    """One name alone is a list of one."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(one, str) and one for one in names):
        raise ValueError(f"`{name}` is {value!r}, wanted a list of data sets, such as [a.jsonl, b.parquet].")
    return names


def weights_of(name: str, value: Any, num_data: int, whole: bool) -> list:
    """One positive number for each data set: whole ones are counts of rows, others are how often rows are seen."""
    if not isinstance(value, list) or len(value) != num_data:
        found = f"{len(value)} numbers" if isinstance(value, list) else repr(value)
        raise ValueError(f"`{name}` has {found} for {num_data} data sets. Give a list with one number for each.")
    for weight in value:
        if whole:
            check_count(name, weight, 1)
        elif not (_is_number(weight) and 0 < weight < math.inf):
            raise ValueError(
                f"`{name}` has {weight!r}, wanted numbers above 0: 2 is twice, 0.5 a half. Leave a data set that is "
                "not wanted out of `data`."
            )
    return value if whole else [float(weight) for weight in value]


def check_reporters(report_to: list[str]) -> None:
    """Before the data is encoded, not after."""
    missing = {name for name in REPORTERS if name in report_to} - set(get_available_reporting_integrations())
    if missing:
        raise ValueError(
            f"`report_to` is `{min(missing)}`, which is not installed. `pip install {min(missing)}`, or leave it out."
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _choices(kind: Any) -> tuple:
    if get_origin(kind) is Literal:
        return get_args(kind)
    return tuple(choice for part in get_args(kind) for choice in _choices(part))
