"""What held_out.yaml takes out of a row. lmms-eval loads it beside the YAML, without this project."""


def pictures(row: dict) -> list:
    return [image.convert("RGB") for image in row["images"]]


def question(row: dict, **kwargs) -> str:
    return text_of(row, "user")


def answer(row: dict) -> str:
    return text_of(row, "assistant")


def compare(row: dict, results: list[str]) -> dict[str, float]:
    return {"exact": float(results[0].strip().lower() == answer(row).strip().lower())}


def text_of(row: dict, role: str) -> str:
    """Of the first turn of the role."""
    turn = next(message for message in row["messages"] if message["role"] == role)
    return "".join(part["text"] for part in turn["content"] if part["type"] == "text")
