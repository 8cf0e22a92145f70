"""Scores answers to public benchmarks, by the rules in recipes/measuring/metrics.

    llava score pope --questions llava_pope_test.jsonl --annotations coco --answers answers.jsonl --out scores.json
    llava score vqav2 --questions llava_vqav2_mscoco_test2015.jsonl --answers answers.jsonl --submission upload.json

Every question needs one answer, unless --allow-missing. What cannot be read as an answer is counted and listed in
the file of `--out`, and is not left out of the score.
"""

import argparse
import json
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_generation.batch_files import write_lines
from recipes.measuring import mmbench
from recipes.measuring.metrics import choice, intervals, open_answers, yes_no
from recipes.measuring.metrics.intervals import Estimate
from recipes.measuring.score_files import (
    SHOWN,
    Answer,
    Question,
    TextvqaIds,
    pair,
    read_answers,
    read_gqa,
    read_pope,
    read_seed,
    read_textvqa,
    read_vizwiz,
    read_vqav2,
    shown,
)


BENCHMARKS = {
    "pope": "accuracy, precision, recall, F1 and share of yes",
    "textvqa": "soft accuracy against ten people",
    "vqav2": "soft and exact accuracy against ten people; file for the server",
    "vizwiz": "soft accuracy against ten people; file for the server",
    "gqa": "exact accuracy; file for the official eval.py",
    "mmbench": "letters, circular evaluation; file for the server",
    "seed": "letters",
}
SECRET = ("vqav2", "vizwiz")  # the answers of a split are on the server only: --annotations may be left out
SUBMITTED = (*SECRET, "gqa", "mmbench")
Row = dict[str, Any]  # question_id, text, read (None where nothing could be), score from 0 to 1, question


def run(args: argparse.Namespace) -> None:
    if args.out is None and args.submission is None:
        raise ValueError("There is nothing to write. Give --out FILE for scores, or --submission FILE for a server.")
    if args.annotations is None and (args.questions is None or args.out is not None):
        raise ValueError("--annotations is not given. Only --submission does without it, and it wants --questions.")
    from data_generation.rows import check_out

    read_files = [path for path in (args.answers, args.questions, args.annotations) if path is not None]
    for out in filter(None, (args.out, args.submission)):
        check_out(out, *read_files)
    questions, answers = read(args)
    answered, missing = pair(questions, answers, args.answers, args.allow_missing)
    if args.out is not None:
        write_scores(args, questions, answered, missing)
    if args.submission is not None:
        write_lines(
            [submission(args.benchmark, questions, answered).encode(errors="backslashreplace")], args.submission
        )
        print(f"{args.submission}: {len(questions)} questions, {len(missing)} of them without an answer")


def read(args: argparse.Namespace) -> tuple[dict[str, Question], list[Answer]]:
    if args.benchmark == "mmbench":
        answers = read_answers(args.answers, mmbench.answer_id)
        return mmbench.with_turns(mmbench.read_mmbench(args.annotations), answers), answers
    if args.benchmark == "textvqa":
        questions = read_textvqa(args.annotations, args.questions)
        return questions, read_answers(args.answers, TextvqaIds(questions))
    readers = {"pope": read_pope, "vqav2": read_vqav2, "vizwiz": read_vizwiz, "gqa": read_gqa, "seed": read_seed}
    return readers[args.benchmark](args.annotations, args.questions), read_answers(args.answers)


def read_and_score(benchmark: str, question: Question, text: str) -> tuple[str | None, float]:
    """What an answer says, None where that cannot be told, and its score."""
    if benchmark == "pope":
        said = yes_no.yes_or_no(text)
        return said, float((said or yes_no.ELSE) == question.truth)
    if benchmark in ("mmbench", "seed"):
        said = choice.letter(text, choice.rotated(question.options, question.turns))
        said = said and choice.unrotated(said, question.options, question.turns)
        return said, float(said == question.truth)
    if not text.strip():
        return None, 0.0
    if benchmark == "gqa":
        said = open_answers.gqa_form(text)
        return said, float(said == open_answers.gqa_form(question.truth))
    return open_answers.normalize(text), open_answers.soft(text, question.truth)


def scores_of(benchmark: str, rows: list[Row]) -> dict[str, dict[str, Any]]:
    """Lines of the table: all, then each group."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        for group, value in row["question"].groups.items():
            groups[f"{group}: {value}"].append(row)
    if benchmark == "pope":
        counts = {name: yes_no.outcomes(*said_and_labels(group)) for name, group in sorted(groups.items())}
        lines = {name: (sum(c), yes_no.pope(*c)) for name, c in counts.items()}
        if len(counts) > 1:
            lines = {"mean of categories": (len(rows), yes_no.pope_mean(list(counts.values())))} | lines
    else:
        tables = {"all": rows} | dict(sorted(groups.items()))
        lines = {name: (len(group), estimates(benchmark, group)) for name, group in tables.items()}
    return {
        name: {"answers": count} | {metric: asdict(estimate) for metric, estimate in metrics.items()}
        for name, (count, metrics) in lines.items()
    }


def said_and_labels(rows: list[Row]) -> tuple[list[str], list[str]]:
    return [row["read"] or yes_no.ELSE for row in rows], [row["question"].truth for row in rows]


def estimates(benchmark: str, rows: list[Row]) -> dict[str, Estimate]:
    if benchmark in ("textvqa", "vizwiz", "vqav2"):
        found = {"soft": intervals.mean(row["score"] for row in rows)}
        if benchmark == "vqav2":
            exact = [open_answers.same(row["text"], row["question"].most_said) for row in rows]
            found["exact"] = intervals.share(sum(exact), len(rows))
        return found
    found = {"accuracy": intervals.share(sum(row["score"] == 1 for row in rows), len(rows))}
    if benchmark == "mmbench":
        asked = [(row["question"], row["score"] == 1) for row in rows]
        if right := choice.circular((q.origin, len(q.options), is_right) for q, is_right in asked):
            found["circular"] = intervals.share(sum(right.values()), len(right))
    return found


def write_scores(
    args: argparse.Namespace, questions: dict[str, Question], answered: dict[str, Answer], missing: list[str]
) -> None:
    if secret := sum(question.truth is None for question in questions.values()):
        raise ValueError(
            f"`{args.annotations}` tells the right answer to {len(questions) - secret} of {len(questions)} questions. "
            "Where they are secret, leave --out away and give --submission for the benchmark's server."
        )
    if not answered:
        raise ValueError(f"`{args.answers}` answers none of the {len(questions)} questions.")
    rows = []
    for name, answer in tqdm(answered.items(), desc="scoring", unit=" answers", disable=None):
        said, score = read_and_score(args.benchmark, questions[name], answer.text)
        rows.append(
            {"question_id": name, "text": answer.text, "read": said, "score": score, "question": questions[name]}
        )
    unreadable = [{"question_id": row["question_id"], "text": row["text"]} for row in rows if row["read"] is None]
    scores = scores_of(args.benchmark, rows)
    result = {
        "benchmark": args.benchmark,
        "files": {
            name: str(path)
            for name in ("questions", "annotations", "answers")
            if (path := getattr(args, name)) is not None
        },
        "counts": {
            "questions": len(questions),
            "answered": len(rows),
            "missing": len(missing),
            "unreadable": len(unreadable),
        },
        "scores": scores,
        "missing": missing,
        "unreadable": unreadable,
        "each": [{key: row[key] for key in ("question_id", "read", "score")} for row in rows],
    }
    write_lines([json.dumps(result, indent=1).encode()], args.out)
    print("\n".join(table(args.benchmark, result)))
    print(args.out)


def table(benchmark: str, result: dict[str, Any]) -> list[str]:
    """Per cent with 95 % intervals, for the terminal."""
    scores = result["scores"]
    metrics = [name for name in next(iter(scores.values())) if name != "answers"]
    lines = [[benchmark, "answers", *metrics]]
    for name, found in scores.items():
        lines.append([name, str(found["answers"]), *(cell(found.get(metric)) for metric in metrics)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    shown_lines = [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    ]
    counts = result["counts"]
    shown_lines.append(
        f"{counts['answered']} of {counts['questions']} questions answered, in per cent with 95 % interval"
    )
    if result["unreadable"]:
        how = f"counted as {yes_no.ELSE}" if benchmark == "pope" else "counted as wrong"
        some = ", ".join(f"`{one['question_id']}` {shown(one['text'])}" for one in result["unreadable"][:SHOWN])
        shown_lines.append(f"{counts['unreadable']} answers could not be read and are {how}, such as {some}")
    if result["missing"]:
        some = ", ".join(f"`{name}`" for name in result["missing"][:SHOWN])
        shown_lines.append(f"{counts['missing']} questions without an answer are left out, such as {some}")
    return shown_lines


def cell(estimate: dict[str, float | None] | None) -> str:
    if estimate is None or estimate["value"] is None:
        return "–"
    return f"{100 * estimate['value']:.1f} [{100 * estimate['low']:.1f}, {100 * estimate['high']:.1f}]"


def submission(benchmark: str, questions: dict[str, Question], answered: dict[str, Answer]) -> str:
    """What the benchmark's own server or script takes; a missing answer is an empty one."""
    if benchmark == "mmbench":
        return mmbench.submission(questions, answered)
    texts = {name: answered[name].text if name in answered else "" for name in questions}
    if benchmark == "gqa":
        entries = [{"questionId": name, "prediction": open_answers.gqa_form(text)} for name, text in texts.items()]
    elif benchmark == "vizwiz":
        entries = [{"image": questions[name].image, "answer": open_answers.normalize(t)} for name, t in texts.items()]
    else:
        if odd := next((name for name in texts if not name.isdecimal()), None):
            raise ValueError(f"The server of VQAv2 takes whole numbers as ids, and a question has {shown(odd)}.")
        entries = [{"question_id": int(name), "answer": open_answers.normalize(t)} for name, t in texts.items()]
    return json.dumps(entries)


def write_mmbench_questions(args: argparse.Namespace) -> None:
    from data_generation.rows import check_out

    check_out(args.out, args.annotations)
    lines = list(mmbench.write_questions(args.annotations, args.images, args.language, args.all_turns))
    write_lines((line.encode() for line in lines), args.out)
    print(f"{args.out}: {len(lines)} questions; pictures in {args.images}")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llava score", description="Score answers to public benchmarks.")
    actions = parser.add_subparsers(dest="benchmark", required=True)
    for name, summary in BENCHMARKS.items():
        one = actions.add_parser(name, help=summary, description=summary)
        one.add_argument("--answers", type=Path, required=True, help="JSONL with `question_id` and `text`")
        if name != "mmbench":
            one.add_argument("--questions", type=Path, help="those that were asked; without it all annotated ones")
        what = "folder of POPE's files, or one of them" if name == "pope" else "file of the benchmark"
        one.add_argument("--annotations", type=Path, required=name not in SECRET, help=what)
        one.add_argument("--out", type=Path, required=name not in SUBMITTED, help="scores, .json to write")
        if name in SUBMITTED:
            one.add_argument("--submission", type=Path, help="file to write for the benchmark's own server or script")
        one.add_argument("--allow-missing", action="store_true", help="score the rest where answers are missing")
        one.set_defaults(**{"questions": None} if name == "mmbench" else {})
        one.set_defaults(**{} if name in SUBMITTED else {"submission": None})
    asked = actions.add_parser("mmbench-questions", help="questions and pictures of MMBench's TSV, to be answered")
    asked.add_argument("annotations", type=Path, help="the .tsv")
    asked.add_argument("--images", type=Path, required=True, help="folder for the pictures")
    asked.add_argument("--out", type=Path, required=True, help="questions, .jsonl to write")
    asked.add_argument(
        "--all-turns", action="store_true", help="ask each rotation of the options, for circular scores"
    )
    asked.add_argument("--language", choices=list(mmbench.ASK), default="en", help="of the last line (%(default)s)")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    if args.benchmark == "mmbench-questions":
        write_mmbench_questions(args)
    else:
        run(args)


if __name__ == "__main__":
    main()
