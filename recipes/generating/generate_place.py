"""What lies in `--out` already: the data set of one source does not take the place of another's unasked."""

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data_generation.card import YOURS, read_card
from data_generation.data_set import first_rows
from data_generation.rejections import Counts
from data_generation.sources import AnnotatedImage


class Place:
    """Watches the images of a run go by, for one that the data set in `out` is about too. Without `out` nothing is to
    be written, and any source will do."""

    def __init__(self, out: Path | None, name: str, read: Callable[[Counts], Iterator[AnnotatedImage]]):
        self._out, self._name, self._read = out, name, read
        rows = first_rows(out) if out is not None else []
        self._pictures = {(row["image_id"][0], picture_name(row["images"][0])) for row in rows}
        self._is_ours = not rows
        card = read_card(out / "README.md") if out is not None else ""
        if card and YOURS not in card:
            raise ValueError(
                f"`{out}/README.md` is no card of `llava generate`, which would write its own there. Take another "
                f"--out, or give that file another name; its words can go into the card, below `{YOURS}`."
            )
        if rows and rows[0]["source"] != name:
            raise ValueError(
                f"{self._other(rows[0]['source'])} If they are the same under another name: --source-name "
                f"{shlex.quote(rows[0]['source'])}."
            )

    def watch(self, images: Iterator[AnnotatedImage]) -> Iterator[AnnotatedImage]:
        for image in images:
            self._is_ours = self._is_ours or self._has(image)
            yield image

    def check(self) -> None:
        """An error where the source has none of the pictures; reads it only as far as it has not been watched."""
        if not self._is_ours and not any(map(self._has, self._read(Counts()))):
            first = min(self._pictures)[0]
            raise ValueError(
                f"{self._other(self._name)} They have no picture in common: this source lacks `{first}`, for one."
            )
        self._is_ours = True

    def _has(self, image: AnnotatedImage) -> bool:
        return (image.id, picture_name(image.image)) in self._pictures

    def _other(self, there: str) -> str:
        return (
            f"`{self._out}` holds a data set made from the source `{there}`, and this run, from `{self._name}`, would "
            f"replace it. Take another --out; or, if it is no longer wanted, delete `{self._out}/data` and "
            f"`{self._out}/README.md`: the answers in `{self._out}/ledger` stay."
        )


def picture_name(image: Any) -> str | None:
    """Of a source's path, or of what a row holds of it; None for pictures that come as bytes."""
    path = image.get("path") if isinstance(image, dict) else image
    return Path(path).name if isinstance(path, str | Path) else None
