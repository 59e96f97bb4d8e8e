"""The page of the documentation, from results that were written before."""

from pathlib import Path

from . import figures, report, tables

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


def publish(folder, others, page):
    """Write the tables between the page's two marks, and the figures beside it."""
    page = Path(page)
    reports = [report.load(f) for f in (folder, *others)]
    paths = figures.draw(reports, page.parent / "images" / page.stem)
    folder = f"images/{page.stem}"
    shown = [f"![{p.stem.replace('-', ', time against ')}]({folder}/{p.name})" for p in paths]
    text = page.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise SystemExit(f"{page.name} lacks the lines {BEGIN} and {END}.")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    parts = [BEGIN, *shown, tables.page(reports[0]).strip(), END]
    page.write_text(before + "\n\n".join(parts) + after, encoding="utf-8")
    print(f"{page.name} and {len(paths)} figures written")
    return 0
