"""Results as results.json and results.md, without host names and paths."""

import datetime
import json
import os
import platform
from pathlib import Path

from . import tables


def machine():
    """Processor, cores, memory, system and Python."""
    model = platform.processor() or platform.machine()
    memory = None
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((s.split(":")[1].strip() for s in lines if s.startswith("model name")), model)
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    except (OSError, ValueError, AttributeError):
        pass
    count = getattr(os, "process_cpu_count", None)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": model,
        "cores": count() if count else cores,
        "memory_gib": None if memory is None else round(memory, 1),
        "system": platform.system(),
        "python": platform.python_version(),
    }


class Report:
    """Results by part. A new run of a part replaces its former results."""

    def __init__(self, folder, settings):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / "results.json"
        self.parts, self.peers = {}, {}
        if self.path.exists():
            before = json.loads(self.path.read_text(encoding="utf-8"))
            if before["machine"] == machine():
                self.parts, self.peers = before["parts"], before["peers"]
        self.settings = settings

    def part(self, name, rows, **facts):
        date = datetime.date.today().isoformat()
        self.parts[name] = {"date": date, "settings": self.settings, **facts, "rows": rows}
        self.write()

    def as_dict(self):
        return {"machine": machine(), "peers": self.peers, "parts": self.parts}

    def write(self):
        content = self.as_dict()
        text = json.dumps(content, indent=1, ensure_ascii=False)
        self.path.write_text(text + "\n", encoding="utf-8")
        page = tables.page(content)
        (self.folder / "results.md").write_text(page, encoding="utf-8")


def load(folder):
    return json.loads((Path(folder) / "results.json").read_text(encoding="utf-8"))
