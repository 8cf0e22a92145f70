"""The fields of transformers' `GenerationConfig` as flags, read from that class, and what is made of them."""

import argparse
import copy
import difflib
import json
import re
from typing import Any

from transformers import GenerationConfig


MAX_NEW_TOKENS = 512
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
ONE_ANSWER = "a question has one answer, which is text"
FROM_HUB = "transformers runs it with code from the Hub only"
NOT_OFFERED = {
    "max_length": "it counts the question and what pads it; --max_new_tokens counts the answer",
    "min_length": "it counts the question and what pads it; --min_new_tokens counts the answer",
    "num_return_sequences": ONE_ANSWER,
    "return_dict_in_generate": ONE_ANSWER,
    "output_attentions": ONE_ANSWER,
    "output_hidden_states": ONE_ANSWER,
    "output_scores": ONE_ANSWER,
    "output_logits": ONE_ANSWER,
    "is_assistant": "it is for the small model beside another",
    "compile_config": "it is no value that a command line can hold",
    "watermarking_config": "it is no value that a command line can hold",
    "continuous_batching_config": "it is no value that a command line can hold",
    "transformers_version": "it is no setting",
    "low_memory": FROM_HUB,
    "penalty_alpha": FROM_HUB,
    "dola_layers": FROM_HUB,
    "diversity_penalty": FROM_HUB,
    "num_beam_groups": FROM_HUB,
    "constraints": FROM_HUB,
    "force_words_ids": FROM_HUB,
}


def field_names() -> list[str]:
    return [name for name in vars(GenerationConfig()) if not name.startswith("_")]


def add_generation_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "how is answered",
        "fields of transformers' GenerationConfig; the rest is the checkpoint's, but greedy",
    )
    kinds = dict(re.findall(r"^ {8}(\w+) ?\((.*)\)", GenerationConfig.__doc__ or "", re.MULTILINE))
    for name in field_names():
        if name in NOT_OFFERED:
            continue
        flags = [f"--{name}", f"--{name.replace('_', '-')}"] if "_" in name else [f"--{name}"]
        kind = kinds.get(name, "")
        options: dict[str, Any] = {"dest": f"generation.{name}", "default": argparse.SUPPRESS}
        if name == "max_new_tokens":
            options["help"] = f"({MAX_NEW_TOKENS})"
        if re.match("`bool`(?! or)", kind):
            group.add_argument(*flags, **options, type=_truth, nargs="?", const=True, metavar="true|false")
        elif re.match("`(int|float)`(?! or)", kind):
            group.add_argument(*flags, **options, type=int if "int" in kind[:5] else float, metavar="N")
        else:
            group.add_argument(*flags, **options, type=_words if kind.startswith("`str`") else _value, metavar="VALUE")


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r}; wanted true or false")
    return text.lower() == "true"


def _value(text: str) -> Any:
    """JSON, or else a word."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _words(text: str) -> Any:
    """A JSON list, or else the text as it is."""
    return _value(text) if text.startswith("[") else text


def given_fields(args: argparse.Namespace) -> dict[str, Any]:
    return {name.removeprefix("generation."): v for name, v in vars(args).items() if name.startswith("generation.")}


def parse_all(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    args, unknown = parser.parse_known_args(argv)
    refuse_unknown(unknown, parser)
    return args


def refuse_unknown(words: list[str], parser: argparse.ArgumentParser) -> None:
    """Of words that the parser left over, the first is told, with what may have been meant."""
    if not words:
        return
    name = words[0].lstrip("-").split("=")[0]
    if reason := NOT_OFFERED.get(name.replace("-", "_")):
        raise ValueError(f"`{words[0]}` cannot be given: {reason}. Leave it out.")
    known = [flag for action in parser._actions for flag in action.option_strings]
    near = difflib.get_close_matches(f"--{name}", known, n=2)
    guess = f" Did you mean {' or '.join(f'`{one}`' for one in near)}?" if near else " --help lists what is."
    raise ValueError(f"`{words[0]}` is no flag of this command.{guess}")


def chosen_generation(own: GenerationConfig, given: dict[str, Any], pad_token_id: int | None) -> GenerationConfig:
    """The checkpoint's settings with those given over them, greedy unless `do_sample` is given."""
    given = dict(given)
    is_sampling = given.get("do_sample") or False
    if not is_sampling and given.get("temperature") == 0:
        del given["temperature"]  # another way to say greedy
    if not is_sampling and (idle := [name for name in SAMPLING if name in given]):
        raise ValueError(f"`--{idle[0]}` changes nothing while answers are greedy. Add --do_sample, or leave it out.")
    chosen = copy.deepcopy(own)
    if not is_sampling:
        chosen.update(**dict.fromkeys(SAMPLING))
    if chosen.pad_token_id is None:
        chosen.pad_token_id = pad_token_id
    chosen.max_length = chosen.min_length = None
    chosen.update(**{"max_new_tokens": MAX_NEW_TOKENS} | given | {"do_sample": is_sampling})
    try:
        chosen.validate(strict=True)
    except ValueError as error:
        raise ValueError(f"These settings of generation do not go together: {' '.join(str(error).split())}") from error
    return chosen


def written(chosen: GenerationConfig) -> dict[str, Any]:
    """What differs from transformers' defaults, as JSON has it."""
    facts = {name: value for name, value in chosen.to_diff_dict().items() if name not in NOT_OFFERED}
    return json.loads(json.dumps({name: value for name, value in facts.items() if not name.startswith("_")}))
