"""Writes the page of the documentation from stored results."""

from pathlib import Path

from . import figures, report, tables


def publish(folder, others, page):
    """Write the page, and its figures to a folder beside it."""
    page = Path(page)
    reports = [report.load(f) for f in (folder, *others)]
    paths = figures.draw(reports, page.parent / "images" / page.stem)
    folder = f"images/{page.stem}"
    shown = [f"![{p.stem.replace('-', ', time against ')}]({folder}/{p.name})" for p in paths]
    page.write_text(tables.page(reports[0], shown), encoding="utf-8")
    print(f"{page.name} and {len(paths)} figures written")
    return 0
