"""Files of the repository that pages link to, as pages of the site: a hook of mkdocs."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?<=\]\()\.\./([\w./-]+)(?=[)#])")


def as_page(name: str) -> str:
    """Where the site has a file of the repository: Markdown under its own name, others with `.md` behind it."""
    return posixpath.join("repository", name if name.endswith(".md") else f"{name}.md")


def content(name: str) -> str:
    """The file as Markdown. Raises PluginError, which ends the build, where it is not there."""
    try:
        text = (ROOT / name).read_text(encoding="utf-8")
    except OSError as error:
        raise PluginError(f"a page of docs/ links to {name}: {error.strerror}") from None
    if name.endswith(".md"):
        return re.sub(r"(?<=\]\()docs/", "../", text)
    return f"# {name}\n\n```{Path(name).suffix.lstrip('.')}\n{text}```\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page for each file outside docs/ that a page links to."""
    pages = [page.content_string for page in files.documentation_pages()]
    for name in sorted({name for text in pages for name in LINK.findall(text)}):
        page = File.generated(config, as_page(name), content=content(name))
        page.inclusion = page.inclusion.NOT_IN_NAV
        files.append(page)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links that lead out of docs/ lead to these pages."""
    if page.file.src_uri.startswith("repository/"):
        return markdown
    return LINK.sub(lambda found: as_page(found[1]), markdown)
