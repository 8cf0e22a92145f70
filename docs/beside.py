"""For the site: pages that lie beside docs/, and links out of it. A plain git host needs none of this.

README.md becomes the first page. What else is linked outside of docs/ is no part of the site: there the link becomes
its text, with the path where the text does not say it. A link that is called by its file gets the title of the page.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files


ROOT = Path(__file__).parent.parent
PAGES = {"README.md": "index.md", "recipes/README.md": "recipes.md"}  # in the repository -> in the site
FENCE = re.compile(r"^(```.*?^```)", re.MULTILINE | re.DOTALL)
ROW, CODE = re.compile(r"^\|.*$", re.MULTILINE), re.compile(r"`[^`]+`")
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    for path, name in PAGES.items():
        files.append(File.generated(config, name, content=(ROOT / path).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    source = {name: path for path, name in PAGES.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    parts = FENCE.split(markdown)
    parts[::2] = [LINK.sub(lambda link: in_site(link, source), part) for part in parts[::2]]
    parts[::2] = [ROW.sub(lambda row: CODE.sub(bare_bars, row[0]), part) for part in parts[::2]]
    return "".join(parts)


def bare_bars(code: re.Match) -> str:
    """Within a table git hosts want `\\|` for a bar in code; Python-Markdown wants `|`, and would show the other."""
    return code[0].replace(r"\|", "|")


def in_site(link: re.Match, source: str) -> str:
    """The link as the site has it; `source` is the page's path in the repository."""
    picture, text, target, anchor = link.groups()
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    if not (ROOT / path).exists():
        return link[0]  # mkdocs warns of it
    if path not in PAGES and not path.startswith("docs/"):
        return text if path in text else f"{text} (`{path}`)"
    if text in (target, path):
        text = (ROOT / path).read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
    return f"{picture}[{text}]({PAGES.get(path) or path.removeprefix('docs/')}{anchor or ''})"
