"""What all parts use: options, running peers, the rate of the matrix product."""

import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .peers import Failure, Peer
from .report import Report
from .timing import rounds

# Sizes of square products that take at most a few hundred milliseconds.
SQUARES = (1024, 2048, 3072)


@dataclass
class Session:
    """One run of the benchmark."""

    report: Report
    dtypes: tuple[str, ...] = ("float32", "float64")
    quick: bool = False
    repeats: int = 5
    budget: float = 25.0
    """Seconds for one point, after the peers have compiled"""
    beside: Path | None = None
    """Another checkout of gmmx, for the parts that compare two"""
    peers: dict = field(default_factory=dict)

    def peer(self, name, dtype="float32"):
        if (name, dtype) not in self.peers:
            self.peers[name, dtype] = Peer(name, dtype)
        return self.peers[name, dtype]

    def versions(self):
        """Add versions and devices of all peers that answered to the report."""
        for (name, dtype), peer in self.peers.items():
            if peer.about:
                self.report.peers[name] = peer.about
            elif peer.lacks and not peer.lacks.endswith(dtype):
                self.report.peers[name] = {"absent": peer.lacks}

    def close(self, dtype=None):
        """Stop all peers, or those of one dtype."""
        for (_, own), peer in self.peers.items():
            if dtype in (None, own):
                peer.stop()

    def interleave(self, calls, **options):
        return self.rounds([calls], **options)[0]

    def rounds(self, points, **options):
        return rounds(points, **({"repeats": self.repeats, "budget": self.budget} | options))

    def roof(self, dtype):
        """GFLOP/s of the best square matrix product, measured anew: a shared machine changes."""
        sizes = (512,) if self.quick else SQUARES
        return max(
            self.products(dtype, [((m, m, m), False) for m in sizes]), key=lambda row: row["rate"]
        )["rate"]

    def products(self, dtype, shapes):
        """GFLOP/s of matrix products in JAX: the fastest of five runs of each."""
        peer, rows = self.peer("gmmx", dtype), []
        for i, (shape, transposed) in enumerate(shapes):
            options = {"shape": shape, "transposed": transposed}
            peer.prepare("matmul", None, options, slot=f"matmul {i}")
        slots = {i: (lambda i=i: peer.time(f"matmul {i}")) for i in range(len(shapes))}
        times = self.interleave(slots, repeats=5)
        for i, (shape, transposed) in enumerate(shapes):
            rate = 2 * np.prod([float(s) for s in shape]) / min(times[i]) / 1e9
            rows.append({"shape": shape, "transposed": transposed, "dtype": dtype, "rate": rate})
        peer.forget()
        return rows


@contextmanager
def stored(arrays):
    """A file with these arrays, for workers to read."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inputs.npz"
        np.savez(path, **arrays)
        yield path


def too_large(case):
    """Why GMMX 0.7 skips a case, or None: it holds several n × K × d arrays at once."""
    needed = 3 * case.n * case.k * case.d * np.dtype(case.dtype).itemsize
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    free = next((int(s.split()[1]) * 1024 for s in lines if s.startswith("MemAvailable")), needed)
    return f"needs about {needed / 1e9:.0f} GB" if needed > 0.8 * free else None


def attempt(reasons, name, fn):
    """The value of `fn()`. If it fails, None, and `reasons[name]` says why."""
    try:
        return fn()
    except Failure as failure:
        reasons[name] = str(failure)
        return None
