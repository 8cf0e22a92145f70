"""What refuses to be published: secrets, paths of this machine, checkpoints that stock transformers does not load.

Every check names the file and the place, and of a secret no more than its kind: the terminal may be a log.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recipes import local_paths
from recipes.push_files import Upload, more, read_json


# For Python's engine and for Arrow's (RE2), which has no lookaround.
SECRETS = {
    "a token of the Hugging Face Hub": r"\bhf_[A-Za-z0-9]{30,}",
    "a key of OpenAI, Anthropic or the like": r"\bsk-[A-Za-z0-9_-]{20,}",
    "a key of Amazon": r"\b(AKIA|ASIA)[0-9A-Z]{16}\b",
    "a key of Google": r"\bAIza[0-9A-Za-z_-]{35}",
    "a token of GitHub": r"\b(gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,})",
    "a token of GitLab": r"\bglpat-[A-Za-z0-9_-]{20,}",
    "a token of Slack": r"\bxox[baprs]-[A-Za-z0-9-]{10,}",
    "a key of Groq, xAI, NVIDIA or Replicate": r"\b(gsk_|xai-|nvapi-|r8_)[A-Za-z0-9_-]{30,}",
    "a private key": r"-----BEGIN ([A-Z]+ )*PRIVATE KEY-----",
    "a password in an address": r"\b[a-z][a-z0-9+.-]*://[^\s/:@\"']+:[^\s/@\"']+@[A-Za-z0-9.-]+",
    "a bearer token": r"\b[Bb]earer [A-Za-z0-9._~+/-]{25,}",
}
SECRET = {kind: re.compile(pattern) for kind, pattern in SECRETS.items()}
TEXT_SUFFIXES = (".json", ".md", ".jinja", ".txt", ".html", ".jsonl", ".yaml", ".yml", ".csv")
VOCABULARY = ("vocab.json", "vocab.txt", "merges.txt")  # pieces of words, some of which look like paths
LISTED = 3
BATCH = 4096


def check_texts(uploads: list[Upload]) -> None:
    """No secret and no absolute local path in any file that is text."""
    found, own = [], own_secrets()
    for upload in uploads:
        if upload.name.endswith(".parquet"):
            check_parquet(upload, own)
            continue
        if not upload.name.endswith(TEXT_SUFFIXES) and "." in upload.name.rpartition("/")[2]:
            continue
        text = upload.read().decode(errors="replace")
        found += [(upload.name, where, what) for where, what in secrets_in(text, own)]
        if not upload.name.endswith(VOCABULARY):
            found += [(upload.name, where, f"the local path `{path}`") for where, path in paths_in(upload.name, text)]
    if found:
        shown = "; ".join(f"{name}, {where}: {what}" for name, where, what in found[:LISTED])
        raise ValueError(
            f"Not to be published: {shown}{more(len(found) - LISTED) if len(found) > LISTED else ''}. Remove it, and "
            "take back a key that others may have seen."
        )


def own_secrets() -> dict[str, str]:
    """Keys of whoever pushes, by where they are from: their form may be one that no pattern knows."""
    from huggingface_hub import get_token

    names = [name for name in os.environ if re.search(r"(KEY|TOKEN|SECRET|PASSWORD)$", name)]
    own = {os.environ[name]: f"the value of {name}" for name in names}
    own[get_token() or ""] = "your token of the Hub"
    return {value: name for value, name in own.items() if len(value) >= 16}


def secrets_in(text: str, own: dict[str, str]) -> Iterator[tuple[str, str]]:
    for kind, pattern in SECRET.items():
        for found in pattern.finditer(text):
            yield line_of(text, found.start()), f"what looks like {kind}"
    for value, name in own.items():
        if value in text:
            yield line_of(text, text.index(value)), name


def line_of(text: str, position: int) -> str:
    return f"line {text.count(chr(10), 0, position) + 1}"


def paths_in(name: str, text: str) -> Iterator[tuple[str, str]]:
    if name.endswith(".jsonl"):
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                yield from ((f"line {number}, `{place}`", path) for place, path in row_paths(name, number, line))
    elif name.endswith(".json"):
        yield from ((f"`{place}`", path) for place, path in local_paths.in_json(without_vocabulary(name, text)))
    else:
        yield from ((line_of(text, found.start()), found[0]) for found in local_paths.find(text))


def without_vocabulary(name: str, text: str) -> Any:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"`{name}` is no JSON: {error}. It was cut off or damaged; write it again.") from error
    if name.endswith("tokenizer.json") and isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content | {"model": {k: v for k, v in content["model"].items() if k not in ("vocab", "merges")}}
    return content


def row_paths(name: str, number: int, line: str) -> Iterator[tuple[str, str]]:
    """Of a row of data: what its text says of paths is not about this machine, but where its pictures lie is."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"`{name}`, line {number} is no JSON: {error}. Repair or remove the line.") from error
    if not isinstance(row, dict):
        raise ValueError(f"`{name}`, line {number} holds a {type(row).__name__}, wanted an object. Repair the line.")
    for column, value in row.items():
        if column not in ("messages", "id"):
            for place, text in local_paths.strings(value, column):
                if local_paths.WHOLE.fullmatch(text):
                    yield place, text


# -- rows of parquet files --


def check_parquet(upload: Upload, own: dict[str, str]) -> None:
    """Every string of every row, a batch in memory at a time; pictures are left unread."""
    try:
        file = pq.ParquetFile(pa.BufferReader(upload.source) if isinstance(upload.source, bytes) else upload.source)
    except pa.ArrowInvalid as error:
        raise ValueError(f"`{upload.name}` is no parquet file that can be read: {error}. Write it again.") from error
    with file:
        leaves = [file.schema.column(i) for i in range(len(file.schema))]
        columns = [leaf.path for leaf in leaves if str(leaf.logical_type) == "String"]
        row = 0
        for batch in file.iter_batches(batch_size=BATCH, columns=columns):
            for name in batch.schema.names:
                for place, values in string_leaves(name, batch.column(name)):
                    check_strings(upload.name, place, values, own, row)
            row += batch.num_rows


def string_leaves(name: str, column: pa.Array) -> Iterator[tuple[str, pa.Array]]:
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        yield name, column
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        yield from string_leaves(name, column.flatten())
    elif pa.types.is_struct(kind):
        for number, inner in enumerate(kind):
            yield from string_leaves(f"{name}.{inner.name}", column.field(number))


def check_strings(file: str, place: str, values: pa.Array, own: dict[str, str], row: int) -> None:
    rows = f"among the rows from {row:,} on"
    for kind, pattern in SECRETS.items():
        if hits := pc.sum(pc.match_substring_regex(values, pattern)).as_py():
            raise ValueError(f"Not to be published: {file}, `{place}`, {rows}: {hits} times what looks like {kind}.")
    for value, name in own.items():
        if pc.any(pc.match_substring(values, value)).as_py():
            raise ValueError(f"Not to be published: {file}, `{place}`, {rows}: {name}.")
    if place.partition(".")[0] in ("messages", "id"):
        return
    is_path = pc.match_substring_regex(values, r"^(/[^/\n]{1,255}){2,}/?$|^[A-Za-z]:[\\/]|^\\\\")
    if hits := pc.sum(is_path).as_py():
        example = values.filter(is_path)[0].as_py()
        raise ValueError(
            f"Not to be published: {file}, `{place}`: {hits:,} local paths {rows}, such as `{example}`. Make the data "
            "set with pictures in it, or with paths relative to an --image-root."
        )


# -- the checkpoint --


def check_loads(folder: Path, uploads: list[Upload]) -> int:
    """Loads what would be published with stock transformers, weights without memory; gives the number of parameters.

    In a folder of its own, where there is nothing but that: whatever is missing there will be missing for others.
    """
    config = read_json(folder / "config.json")
    if config.get("model_type") != "llava":
        raise ValueError(
            f"`{folder / 'config.json'}` has the `model_type` {config.get('model_type')!r}, wanted `llava`. "
            "`llava convert` makes such a checkpoint of an original one."
        )
    if "auto_map" in config:
        raise ValueError(f"`{folder / 'config.json'}` has an `auto_map`: it needs code of its own. Remove that field.")
    if not any(upload.name.endswith(".safetensors") for upload in uploads):
        raise ValueError(f"`{folder}` has no model.safetensors. Give a checkpoint with its weights.")
    with TemporaryDirectory() as place:
        for upload in uploads:
            if "/" in upload.name:
                continue
            if isinstance(upload.source, bytes):
                Path(place, upload.name).write_bytes(upload.source)
            else:
                Path(place, upload.name).symlink_to(upload.source.resolve())
        parameters = load_stock_model(folder, place)
        load_stock_processor(folder, place, config)
    return parameters


def load_stock_model(folder: Path, place: str) -> int:
    from transformers import LlavaForConditionalGeneration
    from transformers.utils import logging

    shows_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model, report = LlavaForConditionalGeneration.from_pretrained(
            place, device_map={"": "meta"}, output_loading_info=True, local_files_only=True
        )
    except Exception as error:
        # Whatever transformers, safetensors or torch raise: to whoever would load it, it is all the same.
        raise ValueError(
            f"Stock transformers does not load `{folder}`: {first_line(error)}. It was cut off, damaged or made for "
            "another class: write it again."
        ) from error
    finally:
        if shows_bars:
            logging.enable_progress_bar()
    for kind, words in (("missing_keys", "lacks"), ("unexpected_keys", "has, besides those of the model,")):
        if names := sorted(map(str, report[kind])):
            raise ValueError(
                f"`{folder}` {words} {len(names)} weights, such as `{names[0]}`: stock transformers would not load "
                "the model that was trained. Write the checkpoint again."
            )
    return sum(parameter.numel() for parameter in model.parameters())


def load_stock_processor(folder: Path, place: str, config: dict) -> None:
    from PIL import Image
    from transformers import AutoProcessor, LlavaProcessor

    content = [{"type": "image", "image": Image.new("RGB", (32, 24))}, {"type": "text", "text": "What is this?"}]
    try:
        processor = AutoProcessor.from_pretrained(place, local_files_only=True)
        if not isinstance(processor, LlavaProcessor):
            raise ValueError(f"its processor is a {type(processor).__name__}, wanted a LlavaProcessor")
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=True, return_dict=True, add_generation_prompt=True
        )
    except Exception as error:
        # As above.
        raise ValueError(
            f"Stock transformers does not load the processor of `{folder}`: {first_line(error)}. Wanted "
            "processor_config.json, tokenizer files and a chat template, as `llava build` writes them."
        ) from error
    found = inputs["input_ids"][0].count(config["image_token_index"])
    if found != config["image_seq_length"]:
        raise ValueError(
            f"`{folder}`: the processor makes {found} image tokens of a picture, and the model wants "
            f"{config['image_seq_length']}. Processor and model are of two checkpoints."
        )


def first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(". ")[:300]
