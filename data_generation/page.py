"""What every page of ours has in common: one file, light or dark, narrow or wide, no script, nothing fetched."""

import html


STYLE = """
:root { color-scheme: light dark; --ink: #1d1d1f; --paper: #fff; --faint: #66666b; --line: #ddd; --blue: #2f6fb3;
  --card: #f5f5f7; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #eee; --paper: #17181a; --faint: #a0a0a6; --line: #36373a; --blue: #6ea8e0; --card: #212226; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 64rem;
  margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
h1 { line-height: 1.2; margin-bottom: .25rem; } h2 { margin: 2.5rem 0 .75rem; } h3 { margin: 1.5rem 0 .25rem; }
.faint { color: var(--faint); } code { font-size: .9em; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem; margin: 1.25rem 0; }
.figures div { background: var(--card); border-radius: .6rem; padding: .7rem .9rem; color: var(--faint);
  font-size: .9rem; }
.figures b { display: block; font-size: 1.5rem; line-height: 1.25; color: var(--ink);
  font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--line);
  overflow-wrap: normal; }
th { font-weight: 600; color: var(--faint); }
.number { text-align: right; font-variant-numeric: tabular-nums; } td.number { white-space: nowrap; }
td.what { min-width: 14rem; overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 1rem 2rem; }
figure { margin: 0; } figcaption { color: var(--faint); font-size: .9rem; } svg { display: block; width: 100%; }
pre { white-space: pre-wrap; background: var(--card); border-radius: .6rem; padding: .75rem; margin: .5rem 0; }
article { display: flex; flex-wrap: wrap; gap: 1.25rem; border-top: 1px solid var(--line); padding: 1.25rem 0; }
.picture { flex: 0 0 auto; max-width: 100%; } .picture img { max-width: 100%; display: block; border-radius: .4rem; }
.words { flex: 1 1 20rem; min-width: 0; } .words p { margin: 0 0 .6rem; white-space: pre-wrap; }
"""


def document(title: str, body: str, style: str = "") -> str:
    """
    Args:
        title: as text.
        style: what this page has besides.
    """
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title><style>{STYLE}{style}</style></head><body>
{body}
</body></html>
"""


def tiles(shown: list[tuple[str, str]]) -> str:
    """Figures, and what each of them is."""
    return f'<div class="figures">{"".join(f"<div><b>{number}</b>{what}</div>" for number, what in shown)}</div>'


def table(heads: list[str], rows: list[list[str]], columns: str) -> str:
    """Cells are HTML. `columns`: for each but the first, `n` for numbers; the others are words."""
    classes = [""] + [' class="number"' if c == "n" else ' class="what"' for c in columns.ljust(len(heads) - 1)]
    head = "".join(f"<th{c}>{h}</th>" for c, h in zip(classes, heads, strict=True))
    head = f"<tr>{head}</tr>" if any(heads) else ""
    body = "".join(
        f"<tr>{''.join(f'<td{c}>{cell}</td>' for c, cell in zip(classes, row, strict=True))}</tr>" for row in rows
    )
    return f'<div class="wide"><table>{head}{body}</table></div>'
