"""Annotated images from COCO, data sets and JSONL: what is read, and what is refused with which reason."""

import json
from io import BytesIO

import datasets
import pytest
from PIL import Image

from data_generation.coco import read_coco
from data_generation.rejections import Counts, Rejected
from data_generation.sources import AnnotatedImage, Box, RawBox, annotate
from data_generation.tables import Columns, read_dataset, read_jsonl
from tests.conversations import png


def coco_files(folder, images=None, captions=None, instances=None, extra=""):
    """Files with the members in the order that COCO's have: the categories stand last."""
    images = images or [
        {"id": 9, "file_name": "000000000009.jpg", "width": 640, "height": 480},
        {"id": 25, "file_name": "000000000025.jpg", "width": 200, "height": 100},
    ]
    captions = captions if captions is not None else [(25, "A  cat\non a mat. "), (9, "Dogs."), (25, "A cat.")]
    instances = instances if instances is not None else [(25, 18, [50, 20, 100, 80.5], 0), (9, 1, [1, 2, 3, 4], 1)]
    (folder / "captions.json").write_text(
        json.dumps(
            {
                "info": {"year": 2017},
                "images": images,
                "licenses": [],
                "annotations": [{"image_id": i, "id": n, "caption": c} for n, (i, c) in enumerate(captions)],
            }
        )
        + extra
    )
    entries = [
        {"segmentation": [[1.0, 2.5]], "image_id": i, "category_id": c, "bbox": b, "iscrowd": crowd, "id": n}
        for n, (i, c, b, crowd) in enumerate(instances)
    ]
    categories = [{"id": 1, "name": "person"}, {"id": 18, "name": "cat"}]
    (folder / "instances.json").write_text(
        json.dumps({"images": images[::-1], "annotations": entries, "categories": categories})
    )
    return {"captions": folder / "captions.json", "instances": folder / "instances.json"}


def test_coco_joins_captions_and_instances(tmp_path):
    counts = Counts()
    images = list(read_coco(counts, **coco_files(tmp_path)))
    assert [image.id for image in images] == ["000000000009", "000000000025"]
    cat = images[1]
    assert cat.captions == ("A cat on a mat.", "A cat.")
    # 0.5 pixel below the edge is cut off
    assert cat.boxes == (Box("cat", 0.25, 0.2, 0.75, 1.0),)
    assert (cat.width, cat.height, str(cat.image)) == (200, 100, "000000000025.jpg")
    assert images[0].boxes == ()  # the crowd's
    assert (counts.kept, counts.rejected, counts.trimmed) == (2, {}, {"crowd-region": 1})


def test_coco_takes_either_file_alone(tmp_path):
    files = coco_files(tmp_path, captions=[(25, "A cat.")])
    counts = Counts()
    assert [image.id for image in read_coco(counts, captions=files["captions"])] == ["000000000025"]
    assert counts.rejected == {"no-caption": 1}
    counts = Counts()
    (cat,) = read_coco(counts, instances=files["instances"])
    assert (cat.id, cat.captions, len(cat.boxes)) == ("000000000025", (), 1)
    assert counts.rejected == {"no-annotation": 1}
    with pytest.raises(ValueError, match="captions file, an instances file, or both"):
        list(read_coco(counts))


@pytest.mark.parametrize(
    "stored", ["000000000009.jpg", "COCO_val2014_000000000009.jpg", "train2014/COCO_train2014_000000000009.jpg"]
)
@pytest.mark.parametrize("listed", ["000000000009.jpg", "COCO_train2014_000000000009.jpg"])
def test_coco_pictures_are_found_in_both_layouts(tmp_path, stored, listed):
    if "val2014" in stored and "train2014" in listed:
        listed = "COCO_val2014_000000000009.jpg"
    (tmp_path / stored).parent.mkdir(exist_ok=True)
    (tmp_path / stored).touch()
    files = coco_files(tmp_path, images=[{"id": 9, "file_name": listed, "width": 640, "height": 480}])
    counts = Counts()
    (image,) = read_coco(counts, captions=files["captions"], image_root=tmp_path)
    assert (image.image, image.id) == (tmp_path / stored, "000000000009")
    assert counts.rejected == {"unknown-image": 1}


def test_coco_rejects_with_reasons(tmp_path):
    sizes = {"file_name": "x.jpg", "width": 100, "height": 100}
    boxes = {
        1: (1, [10, 10, 0, 5]),
        2: (1, [10, 10, 95, 5]),
        3: (7, [10, 10, 5, 5]),
        4: (1, [10, 10, float("nan"), 5]),
        5: (1, [10, 10, 5]),
        6: (1, "box"),
        7: (1, [10, 10, 90.9, 5]),
        8: ([], [1, 1, 1, 1]),
        9: (1, [0, 0, 10**400, 1]),
    }
    files = coco_files(
        tmp_path,
        images=[{"id": number, **sizes} for number in [*boxes, 7]] + [{"file_name": "no id"}, {"id": [1]}, 5],
        captions=[(number, "Words.") for number in boxes] + [(99, "Nothing.")],
        instances=[(number, *box, 0) for number, box in boxes.items()],
    )
    counts = Counts()
    assert [image.id for image in read_coco(counts, **files)] == ["000000000007"]
    assert counts.rejected == {
        "odd-entry": 6,  # three in each file
        "duplicate-id": 1,
        "unknown-image": 1,
        "empty-box": 1,
        "box-outside": 1,
        "unknown-category": 2,
        "non-finite-box": 2,
        "odd-box": 2,
    }
    assert counts.examples["box-outside"][0][0] == "000000000002"
    assert "[10, 10, 95, 5] (xywh), the picture ends at 100 x 100" in counts.examples["box-outside"][0][1]


def test_a_missing_picture_and_a_cut_file_are_named(tmp_path):
    files = coco_files(tmp_path)
    counts = Counts()
    assert not list(read_coco(counts, image_root=tmp_path, **files))
    assert counts.rejected == {"missing-file": 2}
    text = files["captions"].read_text()
    files["captions"].write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match=r"captions.json`: .* at character \d+.*cut short"):
        list(read_coco(Counts(), **files))


def jpeg(color):
    file = BytesIO()
    Image.new("RGB", (20, 20), color).save(file, "JPEG")
    return {"bytes": file.getvalue(), "path": None}


ROWS = {
    "name": ["a", "b", "c", "a"],
    "image": [jpeg("red"), jpeg("blue"), jpeg("red"), jpeg("red")],
    "texts": [["One.", "Two."], ["Three."], [], ["Four."]],
    "objects": [
        {"bbox": [[5, 5, 10, 10]], "category": [1]},
        {"bbox": [], "category": []},
        {"bbox": [], "category": []},
        {"bbox": [], "category": []},
    ],
}
FEATURES = datasets.Features(
    {
        "name": datasets.Value("string"),
        "image": datasets.Image(),
        "texts": datasets.List(datasets.Value("string")),
        "objects": {
            "bbox": datasets.List(datasets.List(datasets.Value("float32"))),
            "category": datasets.List(datasets.ClassLabel(names=["dog", "cat"])),
        },
    }
)
COLUMNS = Columns(captions="texts", boxes="objects.bbox", labels="objects.category", id="name", box_format="xywh")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_is_read_by_its_columns(streaming):
    rows = datasets.Dataset.from_dict(ROWS, features=FEATURES)
    counts = Counts()
    images = list(read_dataset(counts, rows.to_iterable_dataset() if streaming else rows, COLUMNS))
    # The size for boxes in pixels is read from the picture, of 20 x 20.
    assert images[0] == AnnotatedImage(
        "a", jpeg("red")["bytes"], ("One.", "Two."), (Box("cat", 0.25, 0.25, 0.75, 0.75),), 20, 20
    )
    assert [image.id for image in images] == ["a", "b"]
    assert counts.rejected == {"no-caption": 1, "duplicate-id": 1}


def test_boxes_and_captions_may_be_lists_of_structs(tmp_path):
    (tmp_path / "1.png").write_bytes(png()["bytes"])
    row = {
        "file": "1.png",
        "sentences": [{"raw": "A cat."}, {"raw": "Again."}],
        "things": [{"box": (0.1, 0.2, 0.3, 1.001), "what": "cat"}, {"box": (0, 0, 1, 1), "what": "rug"}],
    }
    columns = Columns("file", "sentences.raw", "things.box", "things.what", box_scale="normalised")
    counts = Counts()
    (image,) = read_dataset(counts, [row], columns, tmp_path)
    assert image.captions == ("A cat.", "Again.")
    assert image.boxes == (Box("cat", 0.1, 0.2, 0.3, 1.0), Box("rug", 0, 0, 1, 1))
    assert (image.id, image.image, image.width) == ("0", tmp_path / "1.png", None)


def test_class_labels_in_structs_of_lists_are_names():
    label = datasets.ClassLabel(names=["dog", "cat"])
    features = datasets.Features(
        {
            "image": datasets.Value("binary"),
            "text": datasets.Value("string"),
            "things": datasets.List({"box": datasets.List(datasets.Value("float32")), "what": label}),
        }
    )
    things = [[{"box": [0, 0, 1, 1], "what": 1}], [{"box": [0, 0, 1, 1], "what": None}]]
    rows = datasets.Dataset.from_dict({"image": [b"1", b"2"], "text": ["One.", "Two."], "things": things}, features)
    columns = Columns(captions="text", boxes="things.box", labels="things.what", box_scale="normalised")
    counts = Counts()
    (image,) = read_dataset(counts, rows, columns)
    assert (image.boxes[0].label, image.image, image.captions) == ("cat", b"1", ("One.",))
    assert counts.rejected == {"unknown-category": 1}


def test_open_pictures_and_bad_rows_of_any_iterable():
    rows = [
        {"image": Image.new("RGB", (4, 3)), "text": "A."},
        {"image": b"no picture", "text": "B.", "boxes": [[0, 0, 1, 1]], "labels": ["x"]},
        {"image": None, "text": "C."},
        {"image": "missing.png", "text": "D."},
        {"image": "a\0b", "text": "E."},
        {"image": "a" * 5000, "text": "E."},
        {"image": png(), "text": {"no": "string"}},
        {"image": png(), "text": "half \ud83d"},
        {"image": png(), "text": "F.", "boxes": [[0, 0, 1, 1]], "labels": []},
        {"image": png(), "text": "G.", "boxes": [[0, 0, 1, 1]], "labels": [" "]},
        {"image": png()},
    ]
    rows = [{"boxes": [], "labels": []} | row for row in rows]
    counts = Counts()
    (image,) = read_dataset(counts, rows, Columns(captions="text", boxes="boxes", labels="labels"))
    assert image.image.startswith(b"\x89PNG")
    assert counts.rejected == {
        "unreadable-picture": 1,
        "no-picture": 1,
        "missing-file": 3,
        "odd-caption": 1,
        "bad-unicode": 1,
        "odd-labels": 1,
        "odd-label": 1,
        "no-column": 1,
    }


def test_columns_that_are_not_there_are_named():
    rows = datasets.Dataset.from_dict(ROWS, features=FEATURES)
    with pytest.raises(ValueError, match="no column `caption`, but name, image, texts, objects"):
        list(read_dataset(Counts(), rows, Columns(captions="caption")))
    with pytest.raises(ValueError, match="Neither `captions` nor `boxes`"):
        Columns()
    with pytest.raises(ValueError, match="go together"):
        Columns(boxes="b")


def test_jsonl_in_both_layouts_and_its_bad_lines(tmp_path):
    (tmp_path / "1.png").write_bytes(png()["bytes"])
    row = {"id": "1", "image": "1.png", "captions": ["A cat."], "width": 20, "height": 20}
    lines = [
        json.dumps(row | {"boxes": [{"label": "cat", "box": [0, 0.5, 1, 1]}]}),
        "",
        json.dumps(row | {"id": 2, "instances": [{"category": "cat", "bbox": [0.1, 0.2, 0.3, 0.4]}]}),
        json.dumps(row),
        json.dumps(row | {"id": None}),
        json.dumps(row | {"id": "3", "image": "2.png"}),
        json.dumps(row | {"id": "4", "captions": []}),
        json.dumps(row | {"id": "5", "boxes": [{"label": "cat"}]}),
        json.dumps(row | {"id": "6", "boxes": [{"label": "cat", "box": [0.5, 0.5, 0.4, 0.6]}]}),
        json.dumps(row | {"id": "7", "width": -1}),
        json.dumps(row | {"id": "8", "captions": ["", "B."]}),
        "[1]",
        '{"id": "9"',
        "[" * 100_000,
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    counts = Counts()
    first, second = read_jsonl(counts, tmp_path / "rows.jsonl")
    assert (first.id, first.boxes) == ("1", (Box("cat", 0, 0.5, 1, 1),))
    assert (second.id, second.boxes) == ("2", (Box("cat", 0.1, 0.2, 0.3, 0.4),))
    assert counts.rejected == {
        "duplicate-id": 1,
        "no-id": 1,
        "missing-file": 1,
        "no-caption": 1,
        "odd-box": 1,
        "empty-box": 1,
        "odd-size": 1,
        "empty-caption": 1,
        "no-json": 3,
    }
    assert counts.examples["no-json"][0][0] == "line 12"
    assert str(counts).startswith("2 of 13 rows kept, 11 rejected.\n- 3 rejected, no-json: `line 12`, `line 13`, ")


def test_boxes_in_pixels_need_a_size():
    with pytest.raises(Rejected, match="no-size"):
        annotate("1", None, [], [RawBox("cat", [0, 0, 1, 1])], box_scale="absolute", need_captions=False)
