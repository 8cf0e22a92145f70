"""distilabel or curator against the server of `generate_speed`, in the environment of the one to be measured.

    python3.11 -m venv peer && peer/bin/pip install 'distilabel[openai]' requests   # or bespokelabs-curator
    peer/bin/python benchmarks/generate_peers.py --url http://127.0.0.1:8000/v1 --in-flight 256 --waves 5 --system FILE

Imports nothing of this project, for it runs where that is not installed; prints one line of JSON. Counted is what
`generate_speed` counts, from the end of the second wave to the last answer, at the call of each peer that returns when
an answer is there. distilabel's `LLM.generate` has no
bound of its own on what is in flight: it is given one wave at a time, as its pipelines do by `input_batch_size`, and
waits for the last of each. Both are as they come: distilabel without its pipeline's processes, curator with its cache,
which is its store, in an empty folder.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace


Prompt = list[dict[str, str]]


def ask_distilabel(url: str, prompts: list[Prompt], in_flight: int, meter: "Meter") -> list[str]:
    llm = import_module("distilabel.models").OpenAILLM(model="m", base_url=url, api_key="none")
    llm.load()
    completions = llm._aclient.chat.completions
    completions.create = meter.around(completions.create)
    texts = []
    for first in range(0, len(prompts), in_flight):
        wave = llm.generate(inputs=prompts[first : first + in_flight], max_new_tokens=600, temperature=0.7)
        texts += [found["generations"][0] for found in wave]
    return texts


def ask_curator(url: str, prompts: list[Prompt], in_flight: int, meter: "Meter") -> list[str]:
    curator = import_module("bespokelabs.curator")
    online = import_module("bespokelabs.curator.request_processor.online.openai_online_request_processor")
    # It begins with a request without messages, to read the account's limits from the headers: here there are none.
    online.OpenAIOnlineRequestProcessor.get_header_based_rate_limits = lambda self: (0, 0)
    # tiktoken would fetch its tables. To count by length is cheaper for curator, never dearer.
    counting = SimpleNamespace(encode=lambda text, **_: range(len(text) // 4))
    online.OpenAIOnlineRequestProcessor.get_token_encoding = lambda self: counting

    online.fetch_response = meter.around(online.fetch_response)

    class Ask(curator.LLM):
        def prompt(self, row):
            return row["messages"]

        def parse(self, row, response):
            return {"text": response}

    limits = {"max_requests_per_minute": 10**7, "max_tokens_per_minute": 10**10, "max_concurrent_requests": in_flight}
    params = {"base_url": url, "api_key": "none", **limits}
    llm = Ask(model_name="m", backend="openai", backend_params=params, generation_params={"temperature": 0.7})
    found = llm([{"messages": prompt} for prompt in prompts])
    rows = getattr(found, "dataset", found)
    return [row["text"] for row in rows]


ASK: dict[str, Callable[[str, list[Prompt], int, "Meter"], list[str]]] = {
    "distilabel": ask_distilabel,
    "bespokelabs-curator": ask_curator,
}


class Meter:
    """Wall and CPU time from answer number `first` to the last one."""

    def __init__(self, first: int):
        self.first, self.count = first, 0
        self.times: list[tuple[float, float]] = []

    def around(self, call: Callable) -> Callable:
        async def counted(*words, **fields):
            answer = await call(*words, **fields)
            self.count += 1
            if self.count >= self.first:
                self.times[1:] = [(time.perf_counter(), time.process_time())]
            return answer

        return counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--in-flight", type=int, required=True)
    parser.add_argument("--waves", type=int, required=True)
    parser.add_argument("--system", required=True, help="file with the system message")
    args = parser.parse_args()
    for name in ASK:
        try:
            release = version(name)
            break
        except PackageNotFoundError:
            continue
    else:
        raise ValueError(f"{sys.executable} has none of {', '.join(ASK)}. Install one of them there.")

    # No question to the Hub, none to their makers; and no cache of an earlier run.
    os.environ |= {"HF_HUB_OFFLINE": "1", "TELEMETRY_ENABLED": "false", "OPENAI_API_KEY": "none"}
    system = {"role": "system", "content": Path(args.system).read_text(encoding="utf-8")}
    count = (args.waves + 2) * args.in_flight
    prompts = [[system, {"role": "user", "content": f"q{number}"}] for number in range(count)]
    meter = Meter(2 * args.in_flight)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CURATOR_CACHE_DIR"] = folder
        texts = ASK[name](args.url, prompts, args.in_flight, meter)
    wrong = sum(not (text or "").startswith(f"answer to q{number} ") for number, text in enumerate(texts))
    if wrong or len(texts) != count:
        raise ValueError(f"{name}: {len(texts)} answers, {wrong} wrong; wanted {count} right ones.")
    (wall, cpu), (last_wall, last_cpu) = meter.times
    answers = meter.count - meter.first
    speed, cost = answers / (last_wall - wall), 1000 * (last_cpu - cpu) / answers
    print(json.dumps({"peer": f"{name} {release}", "requests_per_s": speed, "cpu_ms_per_request": cost}))


if __name__ == "__main__":
    main()
