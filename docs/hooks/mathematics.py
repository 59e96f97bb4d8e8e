"""TeX becomes MathML when the site is built, so pages need no script and no network for it.

In Markdown, docstrings included, `pymdownx.arithmatex` marks what is TeX. In the text cells of
notebooks it stands between dollar signs.
"""

import html
import re

from math_core import LatexError, LatexToMathML
from mkdocs.exceptions import PluginError

CONVERTER = LatexToMathML(fancy_error=False)
MARKED = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)
IN_NOTEBOOK = re.compile(
    r"(?P<code><(?P<element>code|pre|style|script)\b.*?</(?P=element)>)"
    r"|\$\$(?P<display>[^$]+)\$\$|(?<!\\)\$(?P<inline>[^$]+)\$",
    re.DOTALL,
)
CELL = re.compile(r'(?=<div\b[^>]*\bclass="jp-Cell\b)')
# The template of nbconvert loads MathJax, and Mermaid where there are diagrams, from the network.
LOADERS = re.compile(
    r"<!-- Load mathjax -->.*?<!-- End of mathjax configuration -->"
    r'|<script type="module">(?=[^<]*mermaid).*?</script>',
    re.DOTALL,
)
NO_TEXT = re.compile(r"<(code|pre|style|script|math|svg)\b.*?</\1>|<[^>]*>", re.DOTALL)
REST = re.compile(r"\\[A-Za-z]{2,}|\$\$|\\[()\[\]]")


def mathml(tex, *, display):
    """The MathML of TeX that stands in HTML."""
    made = CONVERTER.convert_with_local_state(html.unescape(tex).strip(), displaystyle=display)
    return f'<span class="formula">{made}</span>' if display else made


def of_marked(match):
    return mathml(match["tex"], display=match["tag"] == "div")


def of_notebook(match):
    if match["code"]:
        return match["code"]
    return mathml(match["display"] or match["inline"], display=bool(match["display"]))


def of_cell(cell):
    """A cell of a notebook, and what of it is text."""
    if "jp-RenderedMarkdown" not in cell:
        return cell, ""
    cell = IN_NOTEBOOK.sub(of_notebook, cell)
    return cell, cell


def on_page_content(content, page, config, files):
    try:
        content = text = MARKED.sub(of_marked, content)
        if page.file.src_uri.endswith(".ipynb"):
            cells = map(of_cell, CELL.split(LOADERS.sub("", content)))
            content, text = map("".join, zip(*cells, strict=True))
    except LatexError as error:
        raise PluginError(f"{page.file.src_uri}: {error}") from error
    # Markdown takes a formula apart if one of its lines begins like a list.
    if rest := REST.search(NO_TEXT.sub("", text)):
        raise PluginError(f"{page.file.src_uri}: {rest[0]} is left of a formula")
    return content
