"""Selection, folders, pages: what does not need a teacher."""

import json
import random
from collections import Counter
from html.parser import HTMLParser

import pytest
from datasets import load_dataset

from data_generation import data_set
from data_generation.card import YOURS, card
from data_generation.data_set import features, write_data_set
from data_generation.prompting import load_prompt
from data_generation.rejections import Counts, Rejected
from data_generation.report import histogram, report
from data_generation.rows import messages_of
from data_generation.selection import Part, Selection, part_of, select
from data_generation.sources import AnnotatedImage
from data_generation.summary import Sample, Summary
from tests.teaching import draw_coco


def images(count: int, captions: tuple[str, ...] = ("A cat.",)) -> list[AnnotatedImage]:
    return [AnnotatedImage(f"{number}", None, captions) for number in range(count)]


PROMPTS = {kind: load_prompt(kind) for kind in ("conversation", "reasoning")}


def taken(selection: Selection, kind: str, count: int = 1000) -> set[str]:
    return {image.id for image in images(count) if selection.takes(kind, image.id)}


def test_a_selection_has_the_numbers_wanted_in_any_order():
    source = images(1000)
    selection = select(source, PROMPTS, {"conversation": 100, "reasoning": 250}, seed=3)
    assert (len(taken(selection, "conversation")), len(taken(selection, "reasoning"))) == (100, 250)
    assert taken(selection, "conversation") < taken(selection, "reasoning")
    random.Random(0).shuffle(source)
    assert select(source, PROMPTS, {"conversation": 100, "reasoning": 250}, seed=3) == selection
    other = select(source, PROMPTS, {"conversation": 100, "reasoning": 250}, seed=4)
    assert 0 < len(taken(other, "conversation") & taken(selection, "conversation")) < 30


def test_only_images_that_can_be_asked_about_are_selected():
    bare = [AnnotatedImage(f"bare-{number}", None, ()) for number in range(50)]
    selection = select([*bare, *images(50)], PROMPTS, {"conversation": 50}, seed=0)
    assert len(taken(selection, "conversation", 50)) == 50
    with pytest.raises(ValueError, match="conversation: 50 of 51"):
        select([*bare, *images(50)], PROMPTS, {"conversation": 51}, seed=0)


def test_parts_are_even_and_an_image_keeps_its_part():
    numbers = Counter(part_of(image.id, 4) for image in images(4000))
    assert all(900 < numbers[part] < 1100 for part in range(4))
    assert all(sum(Part(part, 4).has(image.id) for part in range(4)) == 1 for image in images(50))


def row(number: int, words: str = "Yes.") -> dict:
    turns = messages_of([("Is it?", words)])
    picture = {"bytes": f"picture {number}".encode() * 100, "path": None}
    about = {"kind": "detail", "source": "s", "image_id": [f"{number}"]}
    return (
        {"id": f"{number}", "images": [picture], "messages": turns}
        | about
        | dict.fromkeys(("model", "prompt_version", "request_key"), "x")
    )


def minimal_card(pattern: str) -> str:
    return card(Summary(), "t", {}, pattern, None, "")


def put(folder, rows, shard_bytes: int = 10**9):
    return write_data_set(folder, rows, features(True), minimal_card, lambda: "page", shard_bytes)


def ids(folder) -> list[str]:
    return load_dataset(str(folder))["train"]["id"][:]


def test_shards_by_size_in_order(tmp_path):
    folder = put(tmp_path / "d", map(row, range(25)), shard_bytes=10_000)
    names = sorted(file.name for file in folder.iterdir())
    assert names == [f"train-{number:05d}-of-00003.parquet" for number in range(3)]
    assert ids(tmp_path / "d") == [f"{number}" for number in range(25)]


def test_nothing_else_in_the_folder_is_read(tmp_path):
    put(tmp_path / "d", map(row, range(3)))
    (tmp_path / "d" / "ledger").mkdir()
    (tmp_path / "d" / "ledger" / "x.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "d" / "ledger" / "train-0.parquet").write_bytes(b"no parquet")
    (tmp_path / "d" / "summary.json").write_text("{}")
    (tmp_path / "d" / "data" / "7-00000000").mkdir()  # of a process that was killed while it wrote
    (tmp_path / "d" / "data" / "7-00000000" / "train-00000-of-00001.parquet").write_bytes(b"half")
    assert ids(tmp_path / "d") == ["0", "1", "2"]
    folder = put(tmp_path / "d", map(row, range(2)))
    assert ids(tmp_path / "d") == ["0", "1"] and list((tmp_path / "d" / "data").iterdir()) == [folder]


def test_two_data_sets_of_one_name_are_two(tmp_path):
    for number in (1, 2):
        put(tmp_path / f"{number}" / "d", map(row, range(number)))
        assert len(ids(tmp_path / f"{number}" / "d")) == number


@pytest.mark.parametrize("broken", ["rows", "report"])
def test_an_error_leaves_the_old_data_set(tmp_path, broken, monkeypatch):
    folder = put(tmp_path / "d", map(row, range(3)))

    def fail(*_):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        rows = map(fail, range(3)) if broken == "rows" else map(row, range(3))
        write_data_set(tmp_path / "d", rows, features(True), minimal_card, fail)
    assert ids(tmp_path / "d") == ["0", "1", "2"] and list((tmp_path / "d" / "data").iterdir()) == [folder]
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(data_set, "write_atomically", fail)
        put(tmp_path / "d", map(row, range(9)))
    assert len(ids(tmp_path / "d")) == 3


def test_what_the_owner_wrote_into_the_card_stays():
    first = minimal_card("data/1/train-*.parquet")
    assert "licence of the pictures:" in first
    edited = first.replace("licence of the pictures:", "licence of the pictures: CC BY 4.0")
    second = card(Summary(), "other", {"model": "a <b>\nc"}, "data/2/train-*.parquet", "cc-by-4.0", edited)
    assert "CC BY 4.0" in second and second.count(YOURS) == 1 and "data/1" not in second
    assert "license: cc-by-4.0" in second and "- model: a &lt;b> c" in second
    assert second.partition(YOURS)[2] == edited.partition(YOURS)[2]


class Balanced(HTMLParser):
    """Every tag that is opened is closed, in order."""

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img", "br", "line", "rect") or self.open[-1:] == ["g"] and tag == "rect":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_html_and_shows_text_as_text(tmp_path):
    draw_coco(tmp_path, 1)
    picture = tmp_path / "pictures" / "000000000000.png"
    nasty = "</p><script>alert(1)</script>"
    summary = Summary(source=Counts(), rows=Counts(kept=1))
    for counts in (summary.source, summary.rows, summary.replies):
        counts.reject(nasty, Rejected("odd-size", nasty))
    summary.refused["odd-size"] = [(nasty, nasty, nasty)]
    summary.wanted["detail"], summary.kept["detail"], summary.turns["detail"] = 2, 1, 1
    summary.lengths["detail", "answer"] = Counter({0: 1, 400: 5})
    samples = [Sample(nasty, "detail", image, (nasty,), [(nasty, nasty)]) for image in (picture, b"broken", None)]
    summary._samples["detail"] = [(0, f"{number}", sample) for number, sample in enumerate(samples)]
    page = report(summary, nasty, {"model": nasty})
    assert Balanced(page).open == []
    assert "<script" not in page and page.count("data:image/jpeg") == 1 and page.count("picture not found") == 2
    assert "http://" not in page and "https://" not in page  # nothing is fetched


@pytest.mark.parametrize("lengths", [{0: 1}, {20: 3, 40: 1}, {n * 20: 1 for n in range(500)}, {0: 999, 10**6: 1}])
def test_a_histogram_counts_all_within_its_frame(lengths):
    drawn = histogram("detail", "answer", Counter(lengths))
    numbers = [int(part.split("<")[0].replace(",", "")) for part in drawn.split(": ")[1:] if "</title>" in part]
    assert sum(numbers) == sum(lengths.values())
    places = [part.split('"')[0] for part in drawn.split('<rect x="')[1:]]
    assert all(0 <= float(x) <= 360 for x in places) and len(places) <= 41
    assert json.dumps(drawn)
