"""Notebooks stand in `notebooks/`, beside `docs/`: each becomes a page and an entry of the nav."""

from pathlib import Path

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

# In this order; others follow by name.
ORDER = [
    "gradient_and_em", "published_analysis", "measured_catalogue", "image_patches", "vae_prior",
    "score_sampling", "through_the_fit",
]  # fmt: skip


def _notebooks(config):
    folder = Path(config.config_file_path).parent / "notebooks"
    rank = {name: i for i, name in enumerate(ORDER)}
    return sorted(folder.glob("*.ipynb"), key=lambda p: (rank.get(p.stem, len(ORDER)), p.stem))


def on_config(config):
    pages = [f"notebooks/{path.name}" for path in _notebooks(config)]
    sections = [section for section in config.nav if "Notebooks" in section]
    for section in sections:
        section["Notebooks"] = pages
        if not pages:
            config.nav.remove(section)
    return config


# Before mkdocs-jupyter looks for notebooks among the files.
@event_priority(100)
def on_files(files, config):
    root = Path(config.config_file_path).parent
    for path in _notebooks(config):
        name = path.relative_to(root).as_posix()
        files.append(File(name, str(root), config.site_dir, config.use_directory_urls))
    return files
