"""How many tokens a request is, without a tokenizer: an estimate for the rates, a bound for the budget."""

from typing import Any

from data_generation.exchange import Usage


CHARACTERS_PER_TOKEN = 3.0  # until the server's own counts are known; the digits of boxes take more tokens than words
UNBOUNDED = 4096  # output tokens assumed where a request sets no limit
FOLLOW = 0.05  # how quickly the estimate follows the server's counts


class Sizes:
    """The estimate learns from `usage`, apart for every `prompt_cache_key`, that is for every template."""

    def __init__(self):
        self._characters_per_token: dict[str, float] = {}
        self._excess = 1.0  # tokens that a server counts for a byte, if it adds more of its own than JSON has quotes

    def estimate(self, body: dict[str, Any], payload: bytes) -> Usage:
        ratio = self._characters_per_token.get(body.get("prompt_cache_key", ""), CHARACTERS_PER_TOKEN)
        return Usage(int(len(payload) / ratio) + 1, most_output(body) or UNBOUNDED)

    def worst(self, body: dict[str, Any], payload: bytes) -> Usage:
        """Never fewer tokens than will be billed: no tokenizer makes more tokens of a text than it has bytes."""
        return Usage(int(len(payload) * self._excess) + 1, most_output(body) or UNBOUNDED)

    def learn(self, body: dict[str, Any], payload: bytes, usage: Usage) -> None:
        if not usage.input:
            return
        template, ratio = body.get("prompt_cache_key", ""), len(payload) / usage.input
        old = self._characters_per_token.get(template, ratio)
        self._characters_per_token[template] = (1 - FOLLOW) * old + FOLLOW * ratio
        self._excess = max(self._excess, 1.1 * usage.input / len(payload))


def most_output(body: dict[str, Any]) -> int | None:
    """Tokens that all answers to a request can have together; None without a limit."""
    most = body.get("max_completion_tokens") or body.get("max_tokens")
    return most and most * (body.get("n") or 1)
