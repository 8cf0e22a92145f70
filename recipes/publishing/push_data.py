"""A data set as it is published: its files, and its card where `llava generate` has not written one."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import DatasetCardData

from data_generation.card import YOURS, read_card
from data_generation.rows import SUFFIXES, read_rows
from recipes.publishing import local_paths
from recipes.publishing.model_card import TASK, line
from recipes.publishing.model_history import UNKNOWN, models_of
from recipes.publishing.old_card import TO_FILL_OF_ROWS, header_of, old_words
from recipes.publishing.push_files import CARD, Selection, Upload, refuse_link_outside


REPORT, LEDGER = "report.html", "ledger"
KINDS = 20  # at most in a table
NAMES = 20  # of files, at most in a header
COLUMNS = ("id", "kind", "source", "model", "image_id")


def data_files(place: Path) -> Selection:
    """The files of a folder of `llava generate`, of another folder with parquet or JSONL files, or one such file."""
    selection = Selection()
    if place.is_file():
        if place.suffix not in SUFFIXES:
            raise ValueError(
                f"`{place}` is no .parquet or .jsonl file. `llava data import` reads the original's JSON."
            )
        name = "data/train-00000-of-00001.parquet" if place.suffix == ".parquet" else "data/train.jsonl"
        selection.uploads.append(Upload(name, place))
    elif place.is_dir():
        collect(place, selection)
    else:
        raise ValueError(f"`{place}` is no file and no folder. Check the path.")
    check_rows(selection.uploads)
    return selection


def collect(folder: Path, selection: Selection) -> None:
    if (folder / "state.json").is_file() or any(folder.glob("*.arrow")):
        raise ValueError(
            f"`{folder}` was written by `save_to_disk`, which the Hub does not read. Write it as parquet "
            "(`Dataset.to_parquet`), and push that file."
        )
    patterns = patterns_of(read_card(folder / CARD))
    wanted = [set(folder.glob(pattern)) for pattern in patterns]
    for pattern, found in zip(patterns, wanted, strict=True):
        if not found:
            raise ValueError(f"`{folder / CARD}` says that the data is `{pattern}`, and there is no such file.")
    named = set().union(*wanted)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if name == CARD:
            continue
        is_data = path in named if patterns else path.suffix in SUFFIXES
        if name == REPORT:
            refuse_link_outside(path, folder)
            selection.uploads.append(Upload(name, shortened_page(path)))
        elif is_data and LEDGER not in path.relative_to(folder).parts:
            if path.suffix not in SUFFIXES:
                raise ValueError(
                    f"`{folder / CARD}` says that `{name}` is data, which is no .parquet or .jsonl file. Name "
                    "those that are, under `configs` in its header."
                )
            refuse_link_outside(path, folder)
            selection.uploads.append(Upload(name, path))
        else:
            reason = "what was asked and answered" if name.startswith(f"{LEDGER}/") else "no part of the data set"
            selection.left_out[reason].append(name)


def patterns_of(card: str) -> list[str]:
    """Where the header of a card says that the data is."""
    configs = header_of(card).get("configs") or []
    files = [one for config in configs for one in config.get("data_files") or []]
    return [str(one["path"] if isinstance(one, dict) else one) for one in files]


def shortened_page(path: Path) -> bytes:
    """The page of `llava generate`; its pictures, which are in it, are not looked at."""
    return local_paths.shorten(path.read_text(encoding="utf-8", errors="replace")).encode()


def check_rows(uploads: list[Upload]) -> None:
    files = [upload for upload in uploads if upload.name.endswith(SUFFIXES)]
    if not files:
        raise ValueError("There is no .parquet or .jsonl file to push. Check the path.")
    first: tuple[str, ...] = ()
    for upload in files:
        columns = columns_of(upload.source)
        if not columns:
            raise ValueError(f"`{upload.source}` has no rows. Check how it was written.")
        if "messages" not in columns:
            raise ValueError(
                f"`{upload.source}` has the columns {', '.join(columns)}; wanted rows with `messages`, and `images` "
                "where there are pictures."
            )
        first = first or (upload.name, *sorted(columns))
        is_kind = upload.name.endswith(Path(first[0]).suffix)
        # Of rows of JSON the first one does not show all columns.
        if not is_kind or (upload.name.endswith(".parquet") and first[1:] != tuple(sorted(columns))):
            raise ValueError(
                f"`{upload.source}` has the columns {', '.join(columns)}, and {first[0]} has {', '.join(first[1:])}: "
                "`load_dataset` reads one kind of file with one set of columns. Push them apart, each by its name."
            )


def columns_of(path: Path) -> list[str]:
    """None where there are no rows."""
    if path.suffix == ".parquet":
        try:
            with pq.ParquetFile(path) as file:
                return file.schema_arrow.names if file.metadata.num_rows else []
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"`{path}` is no parquet file that can be read: {error}. Write it again.") from error
    return list(next(iter(read_rows(path)), {}))


# -- cards --


def data_card(repo_id: str, place: Path, uploads: list[Upload], old: str) -> str:
    """That of `llava generate`, which says where its files are, with local paths shortened; else one of what there is
    to see in the rows. `old` is the card that this one replaces, which begins as that of the folder."""
    use = f'```python\nfrom datasets import load_dataset\n\nrows = load_dataset("{repo_id}", split="train")\n```'
    if place.is_dir() and patterns_of(read_card(place / CARD)):
        made, forms = "\n## How it was made\n", set().union(*(forms_of(one.source) for one in uploads))
        if "load_dataset(" not in old:
            old = old.replace(made, f"\n## Use\n\n{use}\n\n{in_rows(forms)}\n{made}", 1)
        return local_paths.shorten(old)
    files = [upload for upload in uploads if upload.name.endswith(SUFFIXES)]
    rows, kinds, sources, pictures, forms = count(files)
    ours = {
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": paths_of(files)}]}],
        "task_categories": [TASK],
        "tags": list(dict.fromkeys([*(header_of(old).get("tags") or []), "llava"])),
    }
    kept = {name: value for name, value in header_of(old).items() if name not in ours}
    models = models_of([one.source for one in files if one.name.endswith(".parquet")])
    table = [f"| {line(kind) or UNKNOWN} | {number:,} |" for kind, number in kinds.most_common(KINDS)]
    sections = [
        f"# {repo_id.rpartition('/')[2]}",
        f"{rows:,} conversations about {pictures:,} pictures, for training a LLaVA: `messages` and `images` as TRL's "
        f"conversational vision format has them. {in_rows(forms)}",
        "\n".join(["| kind | rows |", "|---|---:|", *table]),
        f"- sources: {', '.join(map(line, sorted(sources))) or UNKNOWN}\n"
        f"- written by: {', '.join(map(line, models)) or UNKNOWN}",
        use,
        YOURS + old_words(old, TO_FILL_OF_ROWS),
    ]
    return f"---\n{DatasetCardData(**kept, **ours).to_yaml()}\n---\n\n" + "\n\n".join(sections)


def paths_of(files: list[Upload]) -> list[str]:
    """Their names, or where these are many, a pattern for each folder: all that has such a name in it is data."""
    names = [file.name for file in files]
    if len(names) <= NAMES:
        return names
    return sorted({str(PurePosixPath(name).with_name(f"*{PurePosixPath(name).suffix}")) for name in names})


def count(files: Iterable[Upload]) -> tuple[int, Counter[str], set[str], int, set[str]]:
    """Rows, rows by kind, sources, different pictures, and in which forms pictures are there."""
    total, kinds, sources, pictures, forms = 0, Counter(), set(), set(), set()
    for file in files:
        for row in rows_of(file.source):
            total += 1
            kinds[str(row.get("kind") or "")] += 1
            if row.get("source"):
                sources.add(str(row["source"]))
            images = row.get("images") or []
            forms.update("bytes" if isinstance(image, dict) else "names" for image in images)
            known = row.get("image_id") or [image for image in images if isinstance(image, str)]
            pictures.update(known if isinstance(known, list) else [known])
    return total, kinds, sources, len(pictures), forms


def forms_of(source: Path | bytes) -> set[str]:
    """In which form a parquet file has its pictures, by its columns."""
    if isinstance(source, bytes) or source.suffix != ".parquet":
        return set()
    with pq.ParquetFile(source) as file:
        names = [file.schema.column(number).path for number in range(len(file.schema))]
    images = [name for name in names if name.startswith("images.")]
    return {"bytes" if any(name.endswith(".bytes") for name in images) else "names"} if images else set()


def rows_of(path: Path) -> Iterable[dict]:
    """Of parquet files without the pictures' bytes."""
    if path.suffix == ".jsonl":
        yield from read_rows(path)
        return
    with pq.ParquetFile(path) as file:
        leaves = [file.schema.column(number).path for number in range(len(file.schema))]
        columns = [
            leaf for leaf in leaves if leaf.split(".")[0] in (*COLUMNS, "images") and not leaf.endswith(".bytes")
        ]
        for batch in file.iter_batches(columns=columns):
            yield from batch.to_pylist()


def in_rows(forms: set[str]) -> str:
    if not forms:
        return "There are no pictures in it."
    if forms == {"bytes"}:
        return "The pictures are in the rows."
    return "`images` has names of files; the pictures themselves are not part of this data set."
