"""One commit to the Hub, whole or not at all, and the Hub's refusals in words.

Files go first, as the Hub keeps large ones apart from commits; then one commit names them all. Where that does not
come about, the repository is what it was, and what has been sent by then is not sent again.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from recipes.publishing.push_files import CARD, WEIGHTS, Upload


if TYPE_CHECKING:
    from huggingface_hub import HfApi


AGAIN = "Start the same command again: what has been sent is not sent twice."
AS_IT_WAS = "Nothing was committed"
WORDS = {
    400: "the Hub did not accept what was sent",
    401: "the Hub does not know you, or your token is not valid any more. Log in (`hf auth login`), or set HF_TOKEN",
    403: "your token may not write there. Take one with write access, and a name or organization that is yours",
    404: "there is no such place, or you may not see it. Check USER and NAME, and that you are logged in",
    409: f"somebody else changed the repository meanwhile. Look at it. {AGAIN}",
    412: f"somebody else changed the repository meanwhile. Look at it. {AGAIN}",
    413: "the Hub takes no files of that size, or not so many",
    429: f"the Hub takes no more requests from you for now. Wait some minutes. {AGAIN}",
}
# Weights and rows of an earlier push, which loaders would take for part of this one.
STALE = {
    "model": WEIGHTS,
    "dataset": re.compile(r"data/(\d+-[0-9a-f]{8}/)?train-\d{5}-of-\d{5}\.parquet|data/train\.jsonl"),
}


def check_repo_id(repo_id: str, name: str = "--repo-id") -> None:
    """As the Hub would have it, before it is asked: https://github.com/huggingface/huggingface_hub/issues/1008."""
    part = r"[A-Za-z0-9_]([\w.-]{0,94}[A-Za-z0-9_])?"
    if not re.fullmatch(f"{part}/{part}", repo_id, re.ASCII) or re.search(r"\.\.|--|\.git$", repo_id):
        raise ValueError(
            f"{name} is `{repo_id}`, wanted USER/NAME or ORGANIZATION/NAME, such as ada/llava-small: letters without "
            "accents, digits, and `-`, `_`, `.` between them."
        )


@contextmanager
def in_words(what: str, repo_id: str) -> Iterator[None]:
    """What goes wrong between here and the Hub, in one sentence that says what is to be done."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    def told(words: str) -> ValueError:
        return ValueError(f"{AS_IT_WAS}: {what} `{repo_id}`, {words.rstrip('.')}.")

    try:
        yield
    except RuntimeError as error:  # a file that did not get through; the Hub's own words are its cause
        cause = error.__cause__
        if isinstance(cause, HfHubHTTPError):
            raise told(words_of(cause)) from error
        if isinstance(cause, httpx2.TransportError):
            raise told(f"the connection was lost ({first_words(error)}). {AGAIN}") from error
        raise
    except HfHubHTTPError as error:
        raise told(words_of(error)) from error
    except OfflineModeIsEnabled as error:
        raise told("HF_HUB_OFFLINE is set. Take it back") from error
    except httpx2.TransportError as error:
        raise told(f"the Hub cannot be reached ({type(error).__name__}). Check the network. {AGAIN}") from error
    except UnicodeEncodeError as error:
        words = "your token has characters that no token has. Log in (`hf auth login`), or set HF_TOKEN"
        raise told(words) from error
    except ValueError as error:
        if "JSON" in type(error).__name__:
            raise told(f"the Hub did not answer as it should. {AGAIN}") from error
        raise told(first_words(error)) from error


def words_of(error: Exception) -> str:
    status = error.response.status_code
    if status in WORDS:
        said = re.sub(r"\s+", " ", error.server_message or "")[:200]
        return f"{WORDS[status].rstrip('.')} ({status}{f': {said}' if said and status in (400, 403, 413) else ''})"
    if status >= 500:
        return f"the Hub has trouble of its own ({status}). Wait some minutes. {AGAIN}"
    return f"the Hub answered {status}"


def first_words(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def make_repository(api: "HfApi", repo_id: str, repo_type: str, is_private: bool) -> None:
    """There is one afterwards. One that was there stays as it was; a public one is not taken for a private one."""
    with in_words("while making", repo_id):
        api.create_repo(repo_id, repo_type=repo_type, private=is_private or None, exist_ok=True)
        info = api.repo_info(repo_id, repo_type=repo_type)
    if is_private and info.private is False:
        raise ValueError(
            f"{AS_IT_WAS}: `{repo_id}` is public, and you asked for a private one. Make it private on its page, give "
            "another name, or leave --private out."
        )


def read_old_card(api: "HfApi", repo_id: str, repo_type: str) -> str:
    """The card that is there now; nothing where there is none."""
    from huggingface_hub.errors import EntryNotFoundError

    with in_words("while reading the card of", repo_id):
        try:
            path = api.hf_hub_download(repo_id, CARD, repo_type=repo_type)
        except EntryNotFoundError:
            return ""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def upload(
    api: "HfApi", repo_id: str, repo_type: str, uploads: list[Upload], message: str, revision: str | None = None
) -> tuple[str, list[str]]:
    """Gives the address of the commit, and the stale files that it removed."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    names = {upload.name for upload in uploads}
    with in_words("while writing to", repo_id):
        info = api.repo_info(repo_id, repo_type=repo_type, revision=revision)
        there = [file.rfilename for file in info.siblings or []]
        stale = sorted(name for name in there if STALE[repo_type].fullmatch(name) and name not in names)
        operations = [CommitOperationAdd(one.name, one.source) for one in uploads]
        commit = api.create_commit(
            repo_id,
            [*operations, *(CommitOperationDelete(name) for name in stale)],
            commit_message=message,
            repo_type=repo_type,
            revision=revision,
            parent_commit=info.sha,
        )
    return commit.commit_url, stale
