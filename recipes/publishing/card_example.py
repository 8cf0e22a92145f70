"""A picture, a question and what the model answered, for its card: asked now, or taken from `samples.html`."""

import base64
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path


MAX_NEW_TOKENS = 128
PAGE = "samples.html"
SIDE = 512  # pixels of the picture on a card


@dataclass(frozen=True)
class Example:
    picture: bytes
    suffix: str  # of the picture's file
    question: str
    answer: str
    wanted: str | None = None  # the answer in held-out data


def ask(folder: Path, picture: Path, question: str) -> Example:
    """The answer of stock transformers, greedy."""
    from PIL import Image
    from transformers import pipeline

    from processing import open_image

    if not picture.is_file():
        raise ValueError(f"--picture `{picture}` is no file. Check the path.")
    try:
        image = open_image(picture)
    except OSError as error:
        raise ValueError(f"--picture `{picture}` cannot be opened: {error}. Give another.") from error
    asked = pipeline("image-text-to-text", model=str(folder))
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    options = {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False}
    answer = asked(text=[{"role": "user", "content": content}], return_full_text=False, generate_kwargs=options)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    file = BytesIO()
    image.save(file, "PNG")
    return Example(file.getvalue(), ".png", question, answer[0]["generated_text"].strip())


def from_page(folder: Path) -> Example | None:
    """The first picture of `samples.html`, with the newest answer; none where the page is not there."""
    path = folder / PAGE
    if not path.is_file():
        return None
    reader = FirstArticle()
    reader.feed(path.read_text(encoding="utf-8"))
    found = re.match(r"data:image/jpeg;base64,(.+)", reader.picture, re.DOTALL)
    if found is None or not reader.cells:
        return None  # a conversation without a picture is no example of what this model does
    asked = re.findall(r"^user: (.*?)(?=^\w+: |\Z)", reader.asked, re.DOTALL | re.MULTILINE)
    wanted = reader.faint.partition("in the data: ")[2]
    return Example(base64.b64decode(found[1]), ".jpg", asked[-1].strip() if asked else "", reader.cells[1], wanted)


class FirstArticle(HTMLParser):
    """What `recipes.training.samples` writes: picture, question in bold, the data's answer, a table of answers."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.articles, self.picture, self.asked, self.faint = 0, "", "", ""
        self.cells: list[str] = []
        self.inside = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.articles += tag == "article"
        given = dict(attributes)
        if self.articles != 1:
            return
        if tag == "img" and not self.picture:
            self.picture = given.get("src") or ""
        self.inside = {"b": "asked", "p": "faint" if given.get("class") == "faint" else "", "td": "cell"}.get(tag, "")
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "asked":
            self.asked += data
        elif self.inside == "faint":
            self.faint += data
        elif self.inside == "cell":
            self.cells[-1] += data
