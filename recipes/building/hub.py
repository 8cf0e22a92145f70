"""A name that is no path here is a Hub id; where the Hub cannot be reached that is known after one try."""

from pathlib import Path
from typing import Literal

import httpx2
from datasets import config as datasets_config
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id


FIRST = {"model": "config.json", "dataset": "README.md"}  # what is asked for first
SECONDS = 10.0


def check_reachable(name: str, kind: Literal["model", "dataset"] = "model") -> None:
    """The libraries would try six times in half a minute to find what may be a misspelt path. What a cache has is not
    asked for here, and what the Hub answers is theirs to tell.
    """
    try:
        validate_repo_id(name)
    except HFValidationError:
        return
    caches = (
        Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type=kind)),
        Path(datasets_config.HF_DATASETS_CACHE, name.replace("/", "___")),
    )
    if constants.is_offline_mode() or any(cache.exists() for cache in caches):
        return
    try:
        get_hf_file_metadata(hf_hub_url(name, FIRST[kind], repo_type=kind), timeout=SECONDS)
    except HfHubHTTPError:
        return
    except httpx2.TransportError as error:
        raise FileNotFoundError(
            f"`{name}` is no file or folder here, and the Hub cannot be reached ({error}). Check the path, or the "
            "network."
        ) from error
