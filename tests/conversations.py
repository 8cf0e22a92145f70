"""Conversations, pictures and encoded data sets for tests of rows."""

from functools import cache
from io import BytesIO

from datasets import Dataset
from PIL import Image

from processing.rows import ENCODED


def user(text, num_images=0):
    return {
        "role": "user",
        "content": [{"type": "image", "text": None}] * num_images + [{"type": "text", "text": text}],
    }


def assistant(text):
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


@cache
def png(color="red", side=20):
    file = BytesIO()
    Image.new("RGB", (side, side), color).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def sample(name, question="What is it?", answer="A circle.", color="red", **columns):
    return {
        "id": name,
        "messages": [user(question, 1), assistant(answer)],
        "images": [png(color)],
        **columns,
    }


def encoded_dataset(records):
    """What `encode_rows` gives, of `(ids, answers, key)` with one image token for every 2; images take 4 tokens."""
    rows = {column: [] for column in ENCODED}
    for number, (ids, answers, key) in enumerate(records):
        num_images = ids.count(2)
        values = (str(number), ids, answers, len(ids) + 3 * num_images, num_images, key, 0, "" if ids else "why not")
        for column, value in zip(ENCODED, values, strict=True):
            rows[column].append(value)
    return Dataset.from_dict(rows, features=ENCODED)


def ids_in(row):
    """The ids of the conversations in a row of trees."""
    return [name for tree in row["trees"] for name in tree.ids]
