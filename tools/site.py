"""What the site needs beyond mkdocs.yml: links to files outside of docs/ are left out."""

import re
from typing import Any


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A link that leaves docs/ becomes its text: the site does not hold what is there."""
    depth = page.file.src_uri.count("/")
    outside = re.compile(rf"\[([^\]]+)\]\((?:\.\./){{{depth + 1}}}[^)]*\)")
    return outside.sub(r"\1", markdown)
