"""Hooks of MkDocs: formulas, and links to files of the repository.

Formulas are written as GitHub reads them, in fences named ``math`` and as $`..`$. They become MathML, which browsers
draw without a script.
"""

import re
from typing import Any

from latex2mathml.converter import convert

DISPLAY = re.compile(r"^```math\n(.*?)\n```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"\$`(.+?)`\$", re.DOTALL)
OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)]+)\)")

_formulas: list[str] = []


def _kept(latex: str, display: str) -> str:
    """A word that stands for the formula until the page is HTML; Markdown would change the formula itself."""
    _formulas.append(convert(latex, display=display))
    return f"formula{len(_formulas) - 1}endofformula"


def on_page_markdown(markdown: str, *, config: Any, **_: Any) -> str:
    """Takes the formulas out, and points links that leave docs/ to the repository, if ``repo_url`` names one."""
    markdown = DISPLAY.sub(lambda found: f"\n{_kept(found[1], 'block')}\n", markdown)
    markdown = INLINE.sub(lambda found: _kept(found[1], "inline"), markdown)
    if not config.repo_url:
        return OUTSIDE.sub(r"\1", markdown)
    return OUTSIDE.sub(rf"[\1]({config.repo_url.rstrip('/')}/blob/main/\2)", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Puts the formulas in as MathML."""
    return re.sub(r"formula(\d+)endofformula", lambda found: _formulas[int(found[1])], html)
