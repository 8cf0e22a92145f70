"""Image-caption pairs to the rows of the first training stage: a brief question, and the caption as its answer.

Pairs come from parquet, JSONL or tab-separated files, or from a captions file of COCO, and are read twice: once for
the captions alone, from which the filter of `concepts.py` may choose, and once for the rows. Neither pass holds more
than a batch of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .coco import coco_pairs
from .prompting import choose
from .rejections import Counts, Rejected
from .rows import Row, messages_of, open_parquet
from .sources import check_caption, check_unicode, shown
from .tables import dig, json_row


SUFFIXES = (".parquet", ".jsonl", ".tsv")


@dataclass(frozen=True)
class Pairs:
    """Where pairs are.

    Args:
        path: a file, or a folder whose files of these kinds are read in the order of their names. A file of COCO is
            named by itself: whatever else may be in a folder, ends in .json too.
        caption, image, id: columns; a dot goes into a struct. A .tsv has a first line with their names.
        pattern: for data that names no picture, its file by the row's number from 0: `GCC_train_{:09d}.jpg`.
        image_root: pictures that are not under it are rejected, before anything is counted; without it none is looked
            for.
    """

    path: Path
    caption: str = "caption"
    image: str = "image"
    id: str | None = None
    pattern: str | None = None
    image_root: Path | None = None

    def __post_init__(self) -> None:
        if self.pattern is not None and not _has_place(self.pattern):
            raise ValueError(f"`{self.pattern}` has no place for a number. Write it like `GCC_train_{{:09d}}.jpg`.")

    def files(self) -> list[Path]:
        folder = sorted(file for file in self.path.rglob("*") if file.suffix in SUFFIXES) if self.path.is_dir() else []
        files = folder or [self.path]
        if not all(file.is_file() and file.suffix in (*SUFFIXES, ".json") for file in files):
            raise ValueError(
                f"`{self.path}` is no {', '.join(SUFFIXES)} file, no captions file of COCO (.json), nor a folder with "
                "any of the three. Check the path."
            )
        return files

    def columns(self) -> list[str]:
        return [name for name in (self.caption, None if self.pattern else self.image, self.id) if name]

    def captions(self, counts: Counts) -> Iterator[tuple[int, str]]:
        """(number of the row, caption) of all that can be used; the others are counted."""
        for number, row in enumerate(self._rows()):
            name = str(number)
            try:
                if isinstance(row, Rejected):
                    raise row
                name = self._name(number, row)
                caption = check_caption(dig(row, self.caption))
                self._check_picture(self._picture(number, row))
            except Rejected as rejection:
                counts.reject(name, rejection)
                continue
            counts.keep()
            yield number, caption

    def rows(
        self, chosen: Iterator[int], questions: tuple[str, ...], seed: int, source: str, embedded: bool
    ) -> Iterator[Row]:
        """Rows of the usable pairs whose numbers are given, ascending; the question is drawn by seed and id."""
        wanted = next(chosen, None)
        for number, row in enumerate(self._rows()):
            if wanted is None:
                return
            if number != wanted or isinstance(row, Rejected):
                continue
            wanted = next(chosen, None)
            name = self._name(number, row)
            picture = self._picture(number, row)
            turn = (choose(questions, name, seed), check_caption(dig(row, self.caption)))
            yield {
                "id": name,
                "images": [{"bytes": None, "path": picture} if embedded and isinstance(picture, str) else picture],
                "messages": messages_of([turn]),
                "kind": "caption",
                "source": source,
                "image_id": [picture if isinstance(picture, str) else name],
            }

    def embedded(self) -> bool:
        """Whether pictures are in the files; the first row that has one tells."""
        for row in self._rows():
            try:
                if not isinstance(row, Rejected):
                    return not isinstance(self._picture(0, row), str)
            except Rejected:
                continue
        return False

    def _name(self, number: int, row: Row) -> str:
        if self.id is None:
            return f"{number:09d}"
        value = dig(row, self.id)
        if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
            raise Rejected("no-id", f"row {number} has the id {shown(value)}, wanted a string or a whole number.")
        check_unicode(str(value))
        return str(value)

    def _picture(self, number: int, row: Row) -> Any:
        """A path, or a struct with bytes."""
        picture = self.pattern.format(number) if self.pattern else dig(row, self.image)
        if isinstance(picture, dict) and not (isinstance(picture.get("bytes"), bytes) and picture["bytes"]):
            picture = picture.get("path")
        if isinstance(picture, bytes):
            picture = {"bytes": picture, "path": None}
        if not picture or not isinstance(picture, (str, dict)):
            raise Rejected("no-picture", f"the picture is {shown(picture)}, wanted a path or bytes.")
        if isinstance(picture, str):
            check_unicode(picture)
        return picture

    def _check_picture(self, picture: Any) -> None:
        if self.image_root is not None and isinstance(picture, str):
            try:
                is_there = (self.image_root / picture).is_file()
            except OSError:  # a name too long
                is_there = False
            if not is_there:
                raise Rejected("missing-file", f"no `{picture}` in `{self.image_root}`.")

    def _rows(self) -> Iterator[Row | Rejected]:
        for file in self.files():
            if file.suffix == ".parquet":
                yield from self._parquet(file)
                continue
            if file.suffix == ".json":
                yield from coco_pairs(file)
                continue
            with file.open("rb") as lines:
                names = (
                    next(lines, b"").decode(errors="replace").rstrip("\r\n").split("\t")
                    if file.suffix == ".tsv"
                    else None
                )
                if names is not None:
                    self._check_columns(file, names)
                for line in lines:
                    try:
                        yield json_row(line) if names is None else tsv_row(line, names)
                    except Rejected as rejection:
                        yield rejection

    def _parquet(self, file: Path) -> Iterator[Row]:
        with open_parquet(file) as parquet:
            self._check_columns(file, parquet.schema_arrow.names)
            for batch in parquet.iter_batches(1000, columns=sorted({name.split(".")[0] for name in self.columns()})):
                yield from batch.to_pylist()

    def _check_columns(self, file: Path, found: list[str]) -> None:
        missing = [name for name in self.columns() if name.split(".")[0] not in found]
        if missing:
            raise ValueError(
                f"`{file}` has no column {', '.join(f'`{name}`' for name in missing)}, but {', '.join(found)}. Name "
                "its columns, or give a pattern for the pictures."
            )


def _has_place(pattern: str) -> bool:
    try:
        return pattern.format(1) != pattern.format(2)
    except (LookupError, ValueError, AttributeError):  # more than one place, a name, an odd format
        return False


def tsv_row(line: bytes, names: list[str]) -> Row:
    try:
        fields = line.decode().rstrip("\r\n").split("\t")
    except UnicodeDecodeError as error:
        raise Rejected("bad-unicode", f"the line is no UTF-8: {error}.") from error
    if len(fields) != len(names):
        raise Rejected("odd-line", f"{len(fields)} fields, wanted {len(names)}: {', '.join(names)}.")
    return dict(zip(names, fields, strict=True))
