"""Encoding a data set once: columns, who may share, what is cached, what is refused; and reading rows again."""

import json

import pytest
import torch
from datasets import Dataset, Features, Image, List, Value, load_dataset

from processing import LlavaProcessor
from processing.collator import TreeCollator
from processing.packing import plan_rows
from processing.rows import PackedRows, encode_rows
from tests import tiny_text
from tests.conversations import assistant, ids_in, png, sample, user
from tests.tiny import NUM_PATCHES


def encode(samples, processor=None, max_length=400, **options):
    dataset = samples if isinstance(samples, Dataset) else Dataset.from_list(samples)
    return encode_rows(dataset, processor or tiny_text.processor(), max_length, **options)


def keys(*samples):
    return encode(list(samples))[0]["prefix_key"]


def test_columns():
    processor = tiny_text.processor()
    two = {"id": "b", "messages": [user("Q", 2), assistant("A"), user("R"), assistant("B C")], "images": [png()] * 2}
    encoded, report = encode([sample("a"), two])
    for row, one in zip(encoded, [sample("a"), two], strict=True):
        whole = processor.encode_text(one["messages"], for_training=True)
        ids = [i for i in row["input_ids"] if i != processor.image_token_id]
        assert ids == [i for i in whole.input_ids if i != processor.image_token_id]
        assert row["input_ids"].count(processor.image_token_id) == row["num_images"] == whole.num_images
        assert row["num_tokens"] == len(whole.input_ids)
        assert [row["input_ids"][a:b] for a, b in row["answers"]] == [whole.input_ids[a:b] for a, b in whole.answers]
    assert encoded["id"] == ["a", "b"] and encoded["rejected"] == ["", ""]
    assert encoded.features["input_ids"] == List(Value("int32"))
    assert not report.counts and str(report) == "0 of 2 conversations cannot be used."


def test_without_ids_conversations_are_called_by_their_number():
    samples = [{k: v for k, v in sample("a").items() if k != "id"}] * 2
    assert encode(samples)[0]["id"] == ["0", "1"]


def test_conversations_about_the_same_image_may_share():
    first, second = keys(sample("a", "What?"), sample("b", "Where?"))
    assert first == second != ""


SYSTEM = {"role": "system", "content": [{"type": "text", "text": "Be short."}]}


@pytest.mark.parametrize(
    "messages, images",
    [
        (sample("b")["messages"], [png("blue")]),
        ([user("What is it?", 2), assistant("A.")], [png(), png()]),
        ([SYSTEM, *sample("b")["messages"]], [png()]),
    ],
    ids=["another image", "one more image", "another system prompt"],
)
def test_different_beginnings_are_not_shared(messages, images):
    first, second = keys(sample("a"), {"id": "b", "messages": messages, "images": images})
    assert first and second and first != second


def test_an_image_after_an_answer_and_no_image_at_all_are_not_shared():
    late = {"id": "a", "messages": [user("Hi"), assistant("Yes?"), user("See", 1), assistant("A dot.")]}
    none = {"id": "b", "messages": [user("Hi"), assistant("Yes?")], "images": []}
    assert keys({**late, "images": [png()]}, none) == ["", ""]


def with_images(*references, image_ids=None):
    rows = [{k: v for k, v in sample(str(i)).items() if k != "images"} for i in range(len(references))]
    for i, reference in enumerate(references):
        rows[i]["images"] = [reference]
        if image_ids:
            rows[i]["image_id"] = image_ids[i]
    found = keys(*rows)
    return [found.index(key) for key in found]


def test_identity_of_images():
    red, blue = png("red")["bytes"], png("blue", side=30)["bytes"]
    assert with_images("a.png", "a.png", "b.png") == [0, 0, 2]
    # Bytes say more than the bare file name that comes with them.
    same_name = [{"bytes": red, "path": "image.png"}, {"bytes": blue, "path": "image.png"}]
    assert with_images(*same_name) == [0, 1]
    assert with_images({"bytes": red, "path": "a.png"}, {"bytes": red, "path": "b.png"}) == [0, 0]
    # A name given by the data set holds, unless the images cannot be the same.
    assert with_images({"bytes": red, "path": "a"}, {"bytes": red, "path": "b"}, image_ids=["x", "x"]) == [0, 0]
    assert with_images(*same_name, image_ids=["7", "7"]) == [0, 1]
    assert with_images("coco/7.png", "vqa/7.png", image_ids=["7", "7"]) == [0, 1]
    assert with_images("a.png", "a.png", image_ids=["7", "8"]) == [0, 1]
    assert with_images("a.png", "a.png", image_ids=[["7"], ["7"]]) == [0, 0]


def test_images_are_not_opened_and_any_image_column_will_do():
    kinds = {
        "paths": List(Value("string")),
        "pictures": List(Image()),
        "references": List(Image(decode=False)),
    }
    samples = [{**sample("a"), "images": ["/nowhere/a.png"]}, {**sample("b"), "images": ["/nowhere/a.png"]}]
    for kind in kinds.values():
        dataset = Dataset.from_list(samples)
        dataset = dataset.cast_column("images", kind)
        encoded, _ = encode(dataset)
        assert encoded["prefix_key"][0] == encoded["prefix_key"][1] != ""


BAD = [
    {"id": "fine", "messages": [user("Q"), assistant("A")], "images": []},
    {"id": "mute", "messages": [user("Q"), assistant(" ")], "images": []},
    {"id": "mute too", "messages": [user("Q"), assistant("A"), user("Q"), assistant("")], "images": []},
    {"id": "long", "messages": [user("word " * 500), assistant("A")], "images": []},
    {"id": "longer", "messages": [user("word " * 600), assistant("A")], "images": []},
    {"id": "role", "messages": [{**user("Q"), "role": "human"}, assistant("A")], "images": []},
    {"id": "no image", "messages": [user("Q", 1), assistant("A")], "images": []},
    {"id": "null image", "messages": [user("Q", 1), assistant("A")], "images": None},
    {"id": "images", "messages": [user("Q"), assistant("A")], "images": [png()]},
]
COUNTS = {
    "Message N of a conversation is an empty answer": 2,
    "a conversation needs N tokens before its first answer, but `max_length` is N": 2,
    "Message N of a conversation has the role …, wanted one of system, user, assistant": 1,
    "a conversation has N image places but N images": 3,
}


def test_bad_conversations_stop_the_run_with_counts_and_names():
    with pytest.raises(ValueError) as error:
        encode(BAD)
    text = str(error.value)
    assert text.startswith(
        "8 of 9 conversations cannot be used.\n- 3 x a conversation has N image places but N images"
    )
    assert "- 2 x Message N of a conversation is an empty answer: `mute`, `mute too`. The first: Message 1 of" in text
    assert text.endswith("Repair or remove them, or set `skip_invalid` to train on the others.")


def test_bad_conversations_are_skipped_on_demand_and_counted():
    encoded, report = encode(BAD, skip_invalid=True)
    assert report.counts == COUNTS
    assert report.reasons["Message N of a conversation is an empty answer"] == ["mute", "mute too"]
    assert len(encoded) == len(BAD)
    made = plan_rows(encoded, max_length=400, rows_per_step=1, tokens_per_image=NUM_PATCHES)
    rows = PackedRows(Dataset.from_list(BAD), encoded, made)
    assert [ids_in(rows[i]) for i in range(len(rows))] == [["fine"]]


def test_only_some_examples_are_named():
    with pytest.raises(ValueError, match="7 x Message N.*: `0`, `1`, `2`, `3`, `4`, .... The first"):
        encode([{"id": str(i), "messages": [user("Q"), assistant("")], "images": []} for i in range(7)] + BAD[:1])


def test_nothing_left_is_an_error():
    with pytest.raises(ValueError, match="Nothing is left to train on"):
        encode(BAD[1:3], skip_invalid=True)


def test_what_the_template_refuses_is_named():
    processor = tiny_text.processor("llama", "plain")
    with pytest.raises(ValueError, match="The chat template refuses conversation `fine`: The `plain` template"):
        encode(BAD[:1], processor)


def test_a_data_set_of_something_else_is_refused():
    with pytest.raises(ValueError, match="no column `messages`, but text"):
        encode([{"text": "hello"}])


@pytest.fixture
def stored(tmp_path):
    """A data set of files, as only those are cached; read anew by every call."""
    lines = [{**sample(str(i)), "images": ["a.png"]} for i in range(5)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))

    def load():
        return load_dataset(
            "json", data_files=str(tmp_path / "rows.jsonl"), split="train", cache_dir=str(tmp_path / "cache")
        )

    return load


def test_encodings_are_kept_and_made_anew_when_something_changes(stored, monkeypatch):
    calls = []
    encode_text = LlavaProcessor.encode_text

    def counted(self, *args, **kwargs):
        calls.append(args)
        return encode_text(self, *args, **kwargs)

    monkeypatch.setattr(LlavaProcessor, "encode_text", counted)

    def number_of_calls(dataset, processor, max_length):
        calls.clear()
        encode_rows(dataset, processor, max_length)
        return len(calls)

    processor = tiny_text.processor()
    assert number_of_calls(stored(), processor, 400) == 5
    assert number_of_calls(stored(), processor, 400) == 0
    processor.tokenizer("a text", padding="max_length", max_length=20, truncation=True)  # leaves a state behind
    assert number_of_calls(stored(), processor, 400) == 0
    assert number_of_calls(stored(), tiny_text.processor(), 400) == 0
    assert number_of_calls(stored(), processor, 401) == 5
    assert number_of_calls(stored(), tiny_text.processor("llama", "llava_v0"), 400) == 5
    assert number_of_calls(stored(), tiny_text.processor("qwen"), 400) == 5
    assert number_of_calls(stored().select(range(3)), processor, 400) == 3
    more_image_tokens = tiny_text.processor()
    more_image_tokens.num_additional_image_tokens += 1
    assert number_of_calls(stored(), more_image_tokens, 400) == 5
    assert number_of_calls(stored(), processor, 400) == 0


def test_several_processes_encode_the_same(stored):
    alone, _ = encode_rows(stored(), tiny_text.processor(), 300)
    together, _ = encode_rows(stored(), tiny_text.processor(), 301, num_proc=2)
    assert alone.to_dict() == together.to_dict()


def test_rows_are_read_by_any_number_of_workers():
    processor = tiny_text.processor()
    samples = [sample(str(i), f"Question {i}", color=("red", "blue")[i // 3 % 2]) for i in range(12)]
    dataset = Dataset.from_list(samples)
    encoded, _ = encode(dataset)
    made = plan_rows(encoded, max_length=400, rows_per_step=2, tokens_per_image=NUM_PATCHES, epochs=2)
    rows = PackedRows(dataset, encoded, made)
    batches = [
        [
            (batch["input_ids"].tolist(), batch["pixel_values"].sum().item())
            for batch in torch.utils.data.DataLoader(
                rows, batch_size=2, collate_fn=TreeCollator(processor, "end"), num_workers=num_workers
            )
        ]
        for num_workers in (0, 2)
    ]
    assert len(batches[0]) == len(made) // 2
    assert batches[0] == batches[1]
    assert sorted(name for i in range(len(rows)) for name in ids_in(rows[i])) == sorted(s["id"] for s in samples * 2)


def test_pictures_inside_the_messages_are_found():
    messages = [
        {"role": "user", "content": [{"type": "image", "path": "a.png", "text": None}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A.", "path": None}]},
    ]
    dataset = Dataset.from_list([{"id": "a", "messages": messages}])
    encoded, _ = encode(dataset)
    made = plan_rows(encoded, max_length=400, rows_per_step=1, tokens_per_image=NUM_PATCHES)
    assert PackedRows(dataset, encoded, made)[0]["trees"][0].images == ["a.png"]


def test_rows_want_the_data_set_that_was_encoded():
    dataset = Dataset.from_list([sample("a"), sample("b")])
    encoded, _ = encode(dataset)
    made = plan_rows(encoded, max_length=400, rows_per_step=1, tokens_per_image=NUM_PATCHES)
    with pytest.raises(ValueError, match="has 1 rows, but 2 were encoded"):
        PackedRows(dataset.select([0]), encoded, made)


def test_embedded_images_are_not_copied(tmp_path):
    features = Features(Dataset.from_list([sample("a")]).features | {"images": List(Image())})
    Dataset.from_list([sample(str(i)) for i in range(3)], features=features).save_to_disk(tmp_path / "data")
    encoded, _ = encode(Dataset.load_from_disk(str(tmp_path / "data")))
    written = [file for file in tmp_path.rglob("cache-*.arrow")]
    assert len(written) == 1
    assert png()["bytes"] not in written[0].read_bytes()
    assert "images" not in encoded.column_names


def test_pictures_are_opened_where_conversations_may_be_left_out(tmp_path):
    """A training without them must not stop at one hours later."""
    rows = [sample(str(i), "Q?", "A", "red") for i in range(4)]
    rows[1]["images"] = [{"bytes": rows[1]["images"][0]["bytes"][:60], "path": None}]
    rows[2]["images"] = [{"bytes": None, "path": str(tmp_path / "none.png")}]
    data = Dataset.from_list(rows).cast_column("images", List(Image(decode=False)))
    encoded, report = encode_rows(data, tiny_text.processor(), 300, skip_invalid=True)
    assert [bool(reason) for reason in encoded["rejected"]] == [False, True, True, False]
    assert "broken or cut short" in encoded[1]["rejected"] and "does not exist" in encoded[2]["rejected"]
    assert report.counts.total() == 2 and "conversation `1`" in encoded[1]["rejected"]
    text_alone, _ = encode_rows(data, tiny_text.processor(), 300)
    assert not any(text_alone["rejected"])
