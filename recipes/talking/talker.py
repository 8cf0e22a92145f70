"""Talking to one checkpoint: loading it, a conversation with pictures, and an answer that comes word by word."""

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

import torch
from peft import PeftModel
from transformers import BitsAndBytesConfig, GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.generation import BaseStreamer

from modeling_llava import LlavaForConditionalGeneration
from processing import LlavaProcessor
from recipes.building.parts import load_llava
from recipes.measuring.answer_local import load
from recipes.measuring.answering import Features, before, has_ended, stops_of
from recipes.measuring.generation_flags import chosen_generation
from recipes.measuring.questions import Picture
from recipes.merge import base_of


QUICKSTART = Path("runs/quickstart/stage2")


@dataclass(frozen=True)
class Said:
    """An answer so far; the last one says how it ended."""

    text: str
    ended: Literal["", "stop", "length", "interrupted"] = ""


class Conversation:
    """Turns, and pictures in the order of their places; those of `waiting` go into the next question."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.pictures: list[Picture] = []
        self.waiting: list[Picture] = []

    def ask(self, text: str) -> None:
        """A question that was not answered gives way to this one, which shows its pictures too."""
        if self.messages and self.messages[-1]["role"] == "user":
            self.take_back()
        content: list[dict[str, Any]] = [{"type": "image"} for _ in self.waiting]
        if text:
            content.append({"type": "text", "text": text})
        self.messages.append({"role": "user", "content": content})
        self.pictures += self.waiting
        self.waiting = []

    def answered(self, text: str) -> None:
        self.messages.append({"role": "assistant", "content": [{"type": "text", "text": text}]})

    def take_back(self) -> str:
        """Removes the last question, with its answer if it has one, and gives its words; its pictures wait again."""
        if self.messages[-1]["role"] == "assistant":
            self.messages.pop()
        content = self.messages.pop()["content"]
        number = sum(part["type"] == "image" for part in content)
        first = len(self.pictures) - number
        self.waiting = self.pictures[first:] + self.waiting
        self.pictures = self.pictures[:first]
        return "".join(part.get("text", "") for part in content)


def picture_of(path: str | Path, name: str | None = None) -> Picture:
    """A picture that is read now: what happens to its file later changes no conversation."""
    data = Path(path).read_bytes()
    return Picture(name or str(path), hashlib.blake2b(data, digest_size=16).hexdigest(), data)


class Talker:
    def __init__(self, model: LlavaForConditionalGeneration, processor: LlavaProcessor, given: dict[str, Any]):
        """
        Args:
            given: fields of GenerationConfig, over the checkpoint's.
        """
        self.model, self.processor = model.eval(), processor
        self.features, self.looking = Features(model, processor), threading.Lock()
        self.given = given
        self.generation()

    def generation(self, **given: Any) -> GenerationConfig:
        chosen = chosen_generation(
            self.model.generation_config, self.given | given, self.processor.tokenizer.pad_token_id
        )
        if (chosen.num_beams or 1) > 1:
            raise ValueError(f"`--num_beams {chosen.num_beams}` gives no words before the last. Leave it out.")
        return chosen

    def answer(self, conversation: Conversation, stop: threading.Event | None = None, **given: Any) -> Iterator[Said]:
        """What the model says to the last question, growing. Whoever leaves the loop early ends the generation.

        Args:
            stop: ends the generation with what is there.
            given: fields of GenerationConfig, over those of the talker.
        """
        stop = stop or threading.Event()
        chosen = self.generation(**given)
        ids = self.encode(conversation)
        holds = self.model.config.get_text_config().max_position_embeddings
        chosen.max_new_tokens = min(chosen.max_new_tokens, holds - len(ids))
        inputs: dict[str, Any] = {"input_ids": torch.tensor([ids], device=self.model.device)}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if conversation.pictures:
            with torch.no_grad(), self.looking:
                inputs["image_features"] = self.features.of(conversation.pictures)
                # Those of one conversation are kept, not of all that ever were.
                kept = {picture.key for picture in conversation.pictures}
                self.features.kept = {key: seen for key, seen in self.features.kept.items() if key in kept}
        if chosen.stop_strings:
            inputs["tokenizer"] = self.processor.tokenizer
        return self._stream(inputs, chosen, stop)

    def encode(self, conversation: Conversation) -> list[int]:
        """Its ids, or an error where it leaves no room for an answer."""
        ids = self.processor.encode_text(conversation.messages).input_ids
        holds = self.model.config.get_text_config().max_position_embeddings
        if len(ids) >= holds:
            raise ValueError(
                f"The conversation has {len(ids):,} tokens with this question, of which each picture takes "
                f"{self.processor.num_image_tokens:,}, and the model sees {holds:,} with the answer. Begin a new one."
            )
        return ids

    def _stream(self, inputs: dict[str, Any], chosen: GenerationConfig, stop: threading.Event) -> Iterator[Said]:
        tokens, gone = Tokens(), threading.Event()

        def generate() -> None:
            try:
                rule = StoppingCriteriaList([Stopped(stop, gone)])
                self.model.generate(**inputs, generation_config=chosen, streamer=tokens, stopping_criteria=rule)
            except BaseException as error:  # told where the answer is read
                tokens.queue.put(error)
            tokens.queue.put(None)

        thread = threading.Thread(target=generate, daemon=True)
        stops = stops_of(chosen)
        said: list[int] = []
        try:
            thread.start()  # Ctrl-C may come while it is waited for, too
            while (new := tokens.queue.get()) is not None:
                if isinstance(new, torch.OutOfMemoryError):
                    raise ValueError(
                        "The device has no memory left for this conversation. Begin a new one, or load fewer bits."
                    ) from new
                if isinstance(new, BaseException):
                    raise new
                said += new
                yield Said(steady(self.processor.tokenizer.decode(said, skip_special_tokens=True), stops))
        finally:
            gone.set()
            if thread.is_alive():
                thread.join()
        text = self.processor.tokenizer.decode(said, skip_special_tokens=True)
        if has_ended(said, text, chosen):
            ended: Literal["stop", "length", "interrupted"] = "stop"
        else:
            ended = "interrupted" if stop.is_set() else "length"
        yield Said(before(text, stops).strip(), ended)


class Tokens(BaseStreamer):
    """What `generate` says, a list of ids at a time; the first thing it hands over is the prompt."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[Any] = SimpleQueue()
        self.has_prompt = False

    def put(self, value: torch.Tensor) -> None:
        if self.has_prompt:
            self.queue.put(value.flatten().tolist())
        self.has_prompt = True

    def end(self) -> None:
        """The thread says when it is done, as it also does after an error."""


class Stopped(StoppingCriteria):
    def __init__(self, *events: threading.Event):
        self.events = events

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: Any) -> torch.BoolTensor:
        is_stopped = any(event.is_set() for event in self.events)
        return torch.full((len(input_ids),), is_stopped, device=input_ids.device)


def steady(text: str, stops: list[str]) -> str:
    """What can be shown of an unfinished answer: no half character, and nothing that may begin a stop string."""
    text = before(text, stops).strip().rstrip("\N{REPLACEMENT CHARACTER}")
    half = max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
    return text[: len(text) - half].rstrip()


def load_talker(
    name: str | None, dtype: str, device: str | None, load_in: str | None, given: dict[str, Any]
) -> Talker:
    """
    Args:
        name: folder of a checkpoint or adapter, or Hub id; None for the quickstart's.
        load_in: `4bit` or `8bit`; None for the weights as they are.
    """
    name = checkpoint_or_quickstart(name)
    place = device_of(device)
    if load_in is None:
        model, processor = load(name, dtype)
        return Talker(model.to(place), processor, given)
    return Talker(load_quantized(name, dtype, place, load_in), LlavaProcessor.from_pretrained(name), given)


def checkpoint_or_quickstart(name: str | None) -> str:
    if name is None and not (QUICKSTART / "config.json").is_file():
        raise ValueError(
            f"There is no `{QUICKSTART}`. Make it with `make quickstart`, or give a checkpoint by --model."
        )
    return name or str(QUICKSTART)


def device_of(name: str | None) -> torch.device:
    """The one of that name, else the fastest there is."""
    if name is None:
        fast = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(fast)
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"--device {name} cannot be used here: {reason}. Give another, or leave it out.") from error
    return device


def load_quantized(name: str, dtype: str, device: torch.device, load_in: str) -> LlavaForConditionalGeneration:
    """With a language model of 4 or 8 bits; an adapter lies over it, since folding it in would round it."""
    if find_spec("bitsandbytes") is None:
        raise ValueError(
            f'--load-in {load_in} needs bitsandbytes, which is not installed: pip install -e ".[qlora]". Or leave it '
            "out."
        )
    if device.type == "mps":
        raise ValueError(f"--load-in {load_in} runs on CUDA and CPU, not on mps. Leave it out, or add --device cpu.")
    is_adapter = (Path(name) / "adapter_config.json").is_file()
    base = base_of(Path(name)) if is_adapter else name
    compute = torch.bfloat16 if dtype == "auto" else getattr(torch, dtype)
    if load_in == "4bit":
        bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
    else:
        bits = BitsAndBytesConfig(load_in_8bit=True)
    model = load_llava(base, dtype=dtype, quantization_config=bits, device_map={"": device})
    return PeftModel.from_pretrained(model, name).get_base_model() if is_adapter else model
