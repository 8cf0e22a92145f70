"""What `llava generate` leaves behind: the data set with its card and page, out of what the ledgers hold."""

from functools import partial

from data_generation.card import card, read_card
from data_generation.data_set import features, write_data_set
from data_generation.duplicates import Duplicates
from data_generation.pictures import embedded, path_from
from data_generation.pipeline import Failures, outcomes
from data_generation.report import report
from data_generation.summary import Summary
from recipes.circumstances import written_with
from recipes.generating.generate_run import Run, watched


DUPLICATES = {"near": partial(Duplicates), "exact": partial(Duplicates, threshold=2.0), "keep": lambda: None}


def write(run: Run, failures: Failures) -> Summary:
    """The data set as the ledgers have it now. Always the same for the same ledgers and flags."""
    args = run.args
    is_embedded = args.images == "embed"
    root = run.source.root

    def picture_of(image):
        return embedded(image.image) if is_embedded else path_from(image.image, root)

    summary = Summary()
    found = outcomes(run.plan, run.tasks(summary), run.find, run.host, failures)
    found = watched(found, "writing rows", run.total)
    rows = summary.rows_of(found, run.plan, DUPLICATES[args.duplicates](), run.source.name, picture_of)
    run.account(summary)
    title = f"{args.out.resolve().name}: visual instruction data"
    try:
        write_data_set(
            args.out,
            rows,
            features(is_embedded),
            lambda pattern: card(
                summary, title, facts(run, summary), pattern, args.license, read_card(args.out / "README.md")
            ),
            lambda: report(summary, title, facts(run, summary)),
        )
    except ValueError as error:
        if summary.rows.kept:
            raise
        raise ValueError(f"{error} {describe(summary)}") from error
    return summary


def facts(run: Run, summary: Summary) -> dict[str, str]:
    """How the data set was made, for its card and page; nothing that is secret, so no values of --extra."""
    args, plan = run.args, run.plan
    asked = {
        "source": f"{run.source.name} (--source {args.source})",
        "model": f"{args.model}; the server said {', '.join(sorted(summary.models))}",
        "server": run.host,
        "prompts": ", ".join(f"{kind} {prompt.version}" for kind, prompt in plan.prompts.items())
        + (f", from {args.prompts.name}" if args.prompts else ""),
        "answers": "by JSON schema" if args.json else "as text",
        "sees boxes": ", ".join(kind for kind, prompt in plan.prompts.items() if prompt.with_boxes) or "none",
        "temperature": "the server's" if args.temperature is None else f"{args.temperature:g}",
        "tokens of an answer": f"{args.max_output:,} at most",
        "service tier": args.service_tier or "",
        "other fields of a request": ", ".join(sorted(args.extra)),
        "attempts": f"up to {plan.attempts}",
        "duplicates": args.duplicates,
        "images": (args.count or "all") + (f", at most {args.limit:,}" if args.limit else ""),
        "seed": f"{args.seed}",
        "paths of pictures start from": f"{run.source.root}" if args.images == "paths" and run.source.root else "",
        "written with": written_with(),
    }
    return {name: value for name, value in asked.items() if value}


def describe(summary: Summary) -> str:
    """The counts for the terminal."""
    sections = [
        ("images", summary.source),
        ("tasks", summary.tasks),
        ("answers", summary.replies),
        ("rows", summary.rows),
    ]
    return "\n".join(f"{name}: {counts}" for name, counts in sections if counts.kept or counts.num_rejected)
