"""The original's JSON to rows and back: every id is kept, and what cannot be read is counted by reason."""

import errno
import json
from pathlib import Path

import datasets
import pytest

from data_generation.llava_json import ImageRoots, read_llava, write_llava
from data_generation.rejections import Counts
from data_generation.replacing import replacing
from data_generation.rows import messages_of, read_rows, row_features, write_rows
from processing.conversation import check_conversation
from recipes import data
from recipes.training.train_data import load_rows
from tests.conversations import png


def entry(name, *turns, image=None):
    speakers = ("human", "gpt")
    conversations = [{"from": speakers[n % 2], "value": value} for n, value in enumerate(turns)]
    return {"id": name, **({"image": image} if image else {}), "conversations": conversations}


# As in LLaVA-Instruct (one id for several rows of a picture), LLaVA-Pretrain, mix665k and ScienceQA.
GOOD = [
    entry("000000033471", "<image>\nWhat is it?", "A bus.", "Which colour?", "Red.", image="000000033471.jpg"),
    entry("000000033471", "Describe it.\n<image>", "A red\n\nbus.", image="000000033471.jpg"),
    entry("004539375", "Render a clear summary.\n<image>", "a bus", image="00453/004539375.jpg"),
    entry("wgByO4Y_0", "How do I write `<image>` in HTML?", "Like so: <img>. Not <image>"),
    entry("27", "<image>\n<image>\nWhich is larger?", "The first.", image=["vg/VG_100K/1.jpg", "gqa/images/2.jpg"]),
]


def write(path, entries):
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


def test_a_file_comes_back_as_it_was(tmp_path):
    counts = Counts()
    rows = list(read_llava(counts, write(tmp_path / "mix.json", GOOD)))
    assert counts.kept == len(GOOD) and not counts.num_rejected
    assert [row["id"] for row in rows] == [one["id"] for one in GOOD]
    assert [row["kind"] for row in rows] == ["conversation"] * 3 + ["chat", "conversation"]
    assert rows[1]["messages"] == messages_of([("Describe it.", "A red\n\nbus.")], images_first=False)
    assert rows[0]["images"] == rows[0]["image_id"] == ["000000033471.jpg"]
    assert (rows[3]["images"], rows[3]["source"]) == ([], "mix")
    for row in rows:
        check_conversation(row["messages"], for_training=True)
    assert write_llava(Counts(), rows, tmp_path / "back.json") == len(GOOD)
    assert json.loads((tmp_path / "back.json").read_text()) == GOOD


def test_rows_survive_parquet_and_train_reads_them(tmp_path):
    (tmp_path / "coco").mkdir()
    for name in ("1.png", "2.png"):
        (tmp_path / "coco" / name).write_bytes(png()["bytes"])
    entries = [entry("1", "<image>\nA?", "B.", image="coco/1.png"), entry("2", "C?", "D.")]
    write(tmp_path / "x.json", entries)
    data.main(["import", f"{tmp_path}/x.json", "--out", f"{tmp_path}/x.parquet", "--image-root", str(tmp_path)])
    rows = load_rows(str(tmp_path / "x.parquet"), str(tmp_path))
    assert rows["id"][:] == ["1", "2"]
    assert rows[0]["images"][0]["path"] == str(tmp_path / "coco/1.png")
    assert rows[1]["images"] == []
    data.main(["export", f"{tmp_path}/x.parquet", "--out", f"{tmp_path}/back.json"])
    assert json.loads((tmp_path / "back.json").read_text()) == entries


BAD = {
    "odd-row": "row",
    "odd-id": {"id": [1], "conversations": []},
    "no-turns": {"id": "1", "conversations": []},
    "odd-turn": {"id": "1", "conversations": [{"from": "human"}]},
    "odd-speaker": {"id": "1", "conversations": [{"from": "bot", "value": "x"}]},
    "empty-turn": entry("1", "A?", " "),
    "not-alternating": {"id": "1", "conversations": [{"from": "human", "value": "x"}] * 2},
    "no-answer": entry("1", "A?", "B.", "C?"),
    "no-place": entry("1", "A?", "B.", image="a.jpg"),
    "odd-places": entry("1", "<image>\n<image>\nA?", "B.", image="a.jpg"),
    "no-picture": entry("1", "<image>\nA?", "B."),
    "odd-image": entry("1", "<image>\nA?", "B.", image=[1]),
    "bad-unicode": entry("1", "half \ud83d", "B."),
    "path-outside": entry("1", "<image>\nA?", "B.", image="../../secret.jpg"),
    "missing-file": entry("1", "<image>\nA?", "B.", image="a.jpg"),
}


@pytest.mark.parametrize("reason", BAD)
def test_what_cannot_be_read_has_a_reason(tmp_path, reason):
    counts = Counts()
    path = write(tmp_path / "x.json", [BAD[reason], GOOD[3]])
    assert [row["id"] for row in read_llava(counts, path, ImageRoots(tmp_path))] == ["wgByO4Y_0"]
    assert counts.rejected == {reason: 1}
    assert counts.examples[reason][0][0] == ("row 0" if reason in ("odd-row", "odd-id") else "1")


def test_strict_writes_nothing(tmp_path, capsys):
    path = write(tmp_path / "x.json", [GOOD[3], BAD["no-answer"]])
    command = ["import", str(path), "--out", f"{tmp_path}/out.parquet"]
    with pytest.raises(ValueError, match="1 rejected, no-answer: `1`"):
        data.main([*command, "--strict"])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.json"]
    data.main(command)
    assert "1 of 2 rows kept, 1 rejected." in capsys.readouterr().out
    write(path, [BAD["no-answer"]])
    with pytest.raises(ValueError, match="Nothing is left"):
        data.main(command)
    assert len(list(read_rows(tmp_path / "out.parquet"))) == 1  # still that of before
    write(path, [{"id": "1", "conversations": [{"from": "gpt", "value": "Hi."}, *GOOD[3]["conversations"]]}])
    with pytest.raises(ValueError, match="1 parts left out, leading-answer"):
        data.main([*command, "--strict"])


def test_a_leading_answer_is_left_out_and_a_system_message_kept(tmp_path):
    turns = [{"from": "gpt", "value": "Hi."}, {"from": "human", "value": "A?"}, {"from": "gpt", "value": "B."}]
    rows = [{"id": 7, "conversations": turns}, {"conversations": [{"from": "system", "value": "S."}, *turns[1:]]}]
    counts = Counts()
    first, second = read_llava(counts, write(tmp_path / "x.json", rows))
    assert (first["id"], first["messages"]) == ("7", messages_of([("A?", "B.")], 0))
    assert (second["id"], [message["role"] for message in second["messages"]]) == (
        "x-0000001",
        ["system", "user", "assistant"],
    )
    assert counts.trimmed == {"leading-answer": 1}


def test_pictures_are_found_under_several_roots(tmp_path):
    for name in ("a/train2017/1.jpg", "b/3.jpg", "rest/gqa/2.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    names = ["coco/train2017/1.jpg", "coco/train2017/sub/3.jpg", "gqa/2.jpg", "cocoa/1.jpg"]
    path = write(tmp_path / "x.json", [entry(name, "<image>\nA?", "B.", image=name) for name in names])
    arguments = [f"coco={tmp_path}/a", f"coco/train2017/sub={tmp_path}/b", f"{tmp_path}/rest"]
    counts = Counts()
    rows = list(read_llava(counts, path, data.image_roots(arguments)))
    assert [row["images"] for row in rows] == [
        [str(tmp_path / "a/train2017/1.jpg")],
        [str(tmp_path / "b/3.jpg")],
        ["gqa/2.jpg"],
    ]
    assert [row["image_id"] for row in rows] == [[name] for name in names[:3]]
    assert counts.examples["missing-file"][0][0] == "cocoa/1.jpg"
    with pytest.raises(ValueError, match="Two image roots"):
        data.image_roots([str(tmp_path), str(tmp_path)])
    with pytest.raises(ValueError, match="is no folder"):
        data.image_roots([f"coco={tmp_path}/none"])


def test_embedded_pictures_are_written_out_once(tmp_path):
    row = {"messages": messages_of([("A?", "B.")]), "kind": "detail", "source": "s", "image_id": ["1"]}
    rows = [row | {"id": str(n), "images": [png(color)]} for n, color in enumerate(["red", "blue", "red"])]
    assert write_rows(rows, tmp_path / "x.parquet", row_features(embedded=True)) == 3
    loaded = datasets.load_dataset("parquet", data_files=str(tmp_path / "x.parquet"), split="train")
    assert loaded[1]["images"][0].getpixel((0, 0)) == (0, 0, 255)
    command = ["export", f"{tmp_path}/x.parquet", "--out", f"{tmp_path}/x.json"]
    with pytest.raises(ValueError, match="Say which folder"):
        data.main(command)
    assert not (tmp_path / "x.json").exists()
    data.main([*command, "--images", f"{tmp_path}/pictures"])
    written = json.loads((tmp_path / "x.json").read_text())
    assert written[0]["image"] == written[2]["image"] != written[1]["image"]
    assert (tmp_path / "pictures" / written[1]["image"]).read_bytes() == png("blue")["bytes"]
    assert len(list((tmp_path / "pictures").iterdir())) == 2
    assert Path(written[0]["image"]).suffix == ".png"
    (tmp_path / "plain").touch()
    assert (tmp_path / "x.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_cannot_be_written_has_a_reason(tmp_path):
    place = [*messages_of([("A?", "See <image>.")])]
    system = [{"role": "system", "content": [{"type": "text", "text": "S."}]}, *messages_of([("A?", "B.")], 0)]
    rows = [
        {"id": "1", "images": ["a.jpg"], "messages": place},
        {"id": "2", "images": [], "messages": system},
        {"id": "3", "images": [], "messages": messages_of([("A?", "B.")])},
        {"id": "4", "images": [{"bytes": None, "path": None}], "messages": messages_of([("A?", "B.")])},
        {"id": "5", "images": [], "messages": [{"role": "tool", "content": "x"}]},
        {
            "id": "6",
            "images": None,
            "messages": [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}],
        },
    ]
    rows += [{"id": "7"}, {"id": "8", "messages": [{"role": "user", "content": [{"type": "text"}]}]}]
    counts = Counts()
    assert write_llava(counts, rows, tmp_path / "x.json") == 1
    assert json.loads((tmp_path / "x.json").read_text()) == [entry("6", "A", "B")]
    assert counts.rejected == {
        "place-in-text": 1,
        "system-message": 1,
        "odd-places": 1,
        "no-picture": 1,
        "odd-speaker": 1,
        "no-turns": 1,
        "odd-message": 1,
    }
    with pytest.raises(ValueError, match="Nothing was written"):
        write_llava(Counts(), rows, tmp_path / "y.json", strict=True)
    with pytest.raises(ValueError, match="Nothing was written"):
        write_llava(Counts(), [], tmp_path / "y.json")
    assert not (tmp_path / "y.json").exists()


def test_rows_that_are_none_are_named(tmp_path):
    with pytest.raises(ValueError, match="is no .parquet or .jsonl file"):
        list(read_rows(tmp_path))
    (tmp_path / "x.jsonl").write_text('{"id": "1"}\n{')
    with pytest.raises(ValueError, match="line 2"):
        list(read_rows(tmp_path / "x.jsonl"))


def test_rows_of_any_editor_are_read(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": "1"}\r\n\r\n{"id": "2"}\r\n')
    assert [row["id"] for row in read_rows(path)] == ["1", "2"]


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("x.jsonl", b'{"id": "1"}\n{"id": "\xff"}', "x.jsonl`, line 2: 'utf-8' codec .*; wanted JSON in UTF-8"),
        ("x.jsonl", b"[" * 100_000, "x.jsonl`, line 1: no JSON, maximum recursion depth"),
        ("x.parquet", b"", "x.parquet`: Parquet file size is 0 bytes .*Wanted a whole parquet file"),
        ("x.parquet", b"PAR1 and no more", "x.parquet`: .*Wanted a whole parquet file"),
    ],
)
def test_rows_that_cannot_be_read_name_their_file(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        list(read_rows(tmp_path / name))


def test_what_is_read_is_not_written_over(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"id": "1", "conversations": []}]))
    rows = tmp_path / "x.jsonl"
    rows.write_text('{"id": "1", "messages": []}\n')
    (tmp_path / "link.jsonl").symlink_to(rows)
    before = path.read_bytes(), rows.read_bytes()
    for action, file, out in (("import", path, path), ("export", rows, rows), ("export", rows, "link.jsonl")):
        with pytest.raises(ValueError, match="is read, and would be written over. Give another --out"):
            data.main([action, str(file), "--out", str(tmp_path / out)])
    with pytest.raises(ValueError, match="is a folder. Name the file to write"):
        data.main(["import", str(path), "--out", str(tmp_path)])
    with pytest.raises(ValueError, match="x.json` is a file. Choose another place"):
        data.main(["import", str(path), "--out", str(path / "more" / "x.parquet")])
    assert (path.read_bytes(), rows.read_bytes()) == before


def test_a_full_disk_names_the_file(tmp_path):
    with pytest.raises(OSError, match="No space left on device: '.*x.parquet'"), replacing(tmp_path / "x.parquet"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No such file or directory: 'other'"), replacing(tmp_path / "x.parquet"):
        Path("other").read_bytes()
    assert not list(tmp_path.iterdir())
