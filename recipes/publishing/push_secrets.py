"""What may not be published in any file: secrets, and paths of this machine.

Every check names the file and the place, and of a secret no more than its kind: the terminal may be a log.
"""

import json
import os
import re
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow.types import is_binary, is_large_binary, is_large_string, is_string

from recipes.publishing import local_paths
from recipes.publishing.push_files import Upload, more


# Of a key that may hold hyphens: hyphenated words have no piece as long as one of its pieces.
WORDS = r"(?:[A-Za-z0-9]+[_-]+)*"
# For Python's engine and for Arrow's (RE2), which has no lookaround.
SECRETS = {
    "a token of the Hugging Face Hub": r"\bhf_[A-Za-z0-9]{30,}",
    "a key of OpenAI, Anthropic or the like": rf"\bsk-{WORDS}[A-Za-z0-9]{{16,}}",
    "a key of Amazon": r"\b(AKIA|ASIA)[0-9A-Z]{16}([^0-9A-Z]|$)",
    "a key of Google": r"\bAIza[0-9A-Za-z_-]{35}",
    "a token of GitHub": r"\b(gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,})",
    "a token of GitLab": r"\bglpat-[A-Za-z0-9_-]{20,}",
    "a token of Slack": r"\bxox[baprs]-[A-Za-z0-9-]{10,}",
    "a key of Groq, xAI, NVIDIA or Replicate": rf"\b(gsk_|xai-|nvapi-|r8_){WORDS}[A-Za-z0-9]{{20,}}",
    "a private key": r"-----BEGIN ([A-Z]+ )*PRIVATE KEY( BLOCK)?-----",
    "a password in an address": r"\b[a-z][a-z0-9+.-]*://[^\s/:@\"']+:[^\s/@\"']+@[A-Za-z0-9.-]+",
    "a bearer token": r"\b[Bb]earer [A-Za-z0-9._~+/-]{25,}",
    "a key beside its name": (
        r"(?i)(^|[^a-z0-9])(api|secret|access|auth|client|private)[_-]?(access[_-]?)?(key|token|secret)(\\*[\"'])?\s*[:=]"
        r"\s*(\\*[\"'])?[a-z0-9+/=_.-]*[a-z0-9+/]{20,}"
    ),
}
SECRET = {kind: re.compile(pattern) for kind, pattern in SECRETS.items()}
ANY = "|".join(f"({pattern})" for pattern in SECRETS.values())
# In the bytes of a picture, where an address with a password may come about by chance.
IN_PICTURES = "|".join(f"({pattern})" for kind, pattern in SECRETS.items() if "password" not in kind)
TEXT_SUFFIXES = (".json", ".md", ".jinja", ".txt", ".html", ".jsonl", ".yaml", ".yml", ".csv")
VOCABULARY = ("vocab.json", "vocab.txt", "merges.txt")  # pieces of words, some of which look like paths
NUMBERS = (".pt", ".pth")  # of an optimizer
LISTED = 3
BATCH = 4096


def check_contents(uploads: list[Upload]) -> None:
    """No secret in any file, also where it stands in a picture's remarks or beside weights; no absolute local path in
    any that is text."""
    found, own = [], own_secrets()
    for upload in uploads:
        if upload.name.endswith(".parquet"):
            check_parquet(upload, own)
            continue
        if upload.name.endswith(NUMBERS):
            continue
        is_weights = upload.name.endswith(".safetensors")
        is_text = is_weights or upload.name.endswith(TEXT_SUFFIXES) or "." not in upload.name.rpartition("/")[2]
        content = header_of_weights(upload) if is_weights else upload.read()
        text = content.decode(errors="replace") if is_text else content.decode("latin-1")
        found += [(upload.name, where, what) for where, what in secrets_in(text, own)]
        if is_text and not upload.name.endswith(VOCABULARY):
            found += [(upload.name, where, f"the local path `{path}`") for where, path in paths_in(upload.name, text)]
    if found:
        shown = "; ".join(f"{name}, {where}: {what}" for name, where, what in found[:LISTED])
        raise ValueError(
            f"Not to be published: {shown}{more(len(found) - LISTED) if len(found) > LISTED else ''}. Remove it, and "
            "take back a key that others may have seen."
        )


def header_of_weights(upload: Upload) -> bytes:
    """Of a safetensors file: names, and what somebody wrote beside them."""
    with BytesIO(upload.source) if isinstance(upload.source, bytes) else open(upload.source, "rb") as file:
        return file.read(int.from_bytes(file.read(8), "little"))


def own_secrets() -> dict[str, str]:
    """Keys of whoever pushes, by where they are from: their form may be one that no pattern knows."""
    from huggingface_hub import get_token

    names = [name for name in os.environ if re.search(r"(KEY|TOKEN|SECRET|PASSWORD)$", name)]
    own = {os.environ[name].strip(): f"the value of {name}" for name in names}
    own[get_token() or ""] = "your token of the Hub"
    return {value: name for value, name in own.items() if len(value) >= 16}


def secrets_in(text: str, own: dict[str, str]) -> Iterator[tuple[str, str]]:
    is_any = pc.match_substring_regex(pa.array([text], pa.large_string()), ANY)  # some hundred times Python's speed
    for kind, pattern in SECRET.items() if is_any[0].as_py() else []:
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
    """Every string and every picture of every row, a batch in memory at a time."""
    try:
        file = pq.ParquetFile(pa.BufferReader(upload.source) if isinstance(upload.source, bytes) else upload.source)
    except pa.ArrowInvalid as error:
        raise ValueError(f"`{upload.name}` is no parquet file that can be read: {error}. Write it again.") from error
    with file:
        row = 0
        for batch in file.iter_batches(batch_size=BATCH):
            for name in batch.schema.names:
                for place, values in leaves(name, batch.column(name)):
                    if is_string(values.type) or is_large_string(values.type):
                        check_strings(upload.name, place, values, own, row)
                    else:
                        check_pictures(upload.name, place, values, row)
            row += batch.num_rows


def check_pictures(file: str, place: str, values: pa.Array, row: int) -> None:
    if hits := pc.sum(pc.match_substring_regex(values, IN_PICTURES)).as_py():
        raise ValueError(
            f"Not to be published: {file}, `{place}`, among the rows from {row:,} on: {hits} pictures in whose bytes "
            "something looks like a key. Save them without remarks, and take back a key that others may have seen."
        )


def leaves(name: str, column: pa.Array) -> Iterator[tuple[str, pa.Array]]:
    kind = column.type
    if pa.types.is_dictionary(kind):
        yield from leaves(name, column.dictionary_decode())
    elif any(is_one(kind) for is_one in (is_string, is_large_string, is_binary, is_large_binary)):
        yield name, column
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        yield from leaves(name, column.flatten())
    elif pa.types.is_struct(kind):
        for number, inner in enumerate(kind):
            yield from leaves(f"{name}.{inner.name}", column.field(number))


def check_strings(file: str, place: str, values: pa.Array, own: dict[str, str], row: int) -> None:
    rows = f"among the rows from {row:,} on"
    is_any = pc.any(pc.match_substring_regex(values, ANY)).as_py()
    for kind, pattern in SECRETS.items() if is_any else []:
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
