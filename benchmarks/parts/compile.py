"""What compiling costs: first calls, a script from start to labels, fits of many sizes.

Each measurement is of a new process, with JAX's persistent cache off unless its row says otherwise.
CPU time is the user and system time of all threads. With `--beside PATH` the workers run on the
checkout at PATH as well, in turn with this one.
"""

import tempfile
import time
from pathlib import Path

import numpy as np

from ..cases import Case, inputs
from ..peers import HERE, SOURCE, Failure, fresh
from ..session import stored
from ..timing import ratio, summary

SIZES = ((300, 3, 3), (5_000, 16, 10), (65_536, 16, 16), (65_536, 32, 64))
SMALL, MIDDLE = SIZES[:2]
COUNTS = np.linspace(500, 5_000, 100).astype(int)
IRIS = HERE.parent / "examples" / "iris.csv"


def run(session):
    sources = {"gmmx": SOURCE}
    if session.beside:
        path = session.beside.resolve()
        sources[f"gmmx at {path.name}"] = path / "src"
    session.report.part("compile", first_calls(session, sources), libraries=list(sources))
    session.report.part("scripts", scripts(session, sources))
    session.report.part("sizes", **many_sizes(session, sources))


def measured(task, path, source):
    found = fresh("compile.py", task, path, source=source)
    if not Path(found.pop("file")).is_relative_to(source):
        raise Failure(f"another gmmx than the one at {source} was imported")
    return found


def in_turn(session, sources, task, arrays, **options):
    """The worker's answers for a task: {library: [answer, …]}."""
    with stored(arrays) as path:
        calls = {
            name: lambda source=source: measured(task, path, source)
            for name, source in sources.items()
        }
        return session.interleave(calls, **options)


def first_calls(session, sources):
    """A row for each task at each size."""
    sizes, middle = ((SMALL,), SMALL) if session.quick else (SIZES, MIDDLE)
    tasks = [(task, size) for task in ("fit", "predict") for size in sizes]
    tasks += [("initialize", middle), ("gradient", middle)]
    points = [(task, size, inputs(Case("train", *size))) for task, size in tasks]
    k = 2 if session.quick else 6
    points.append(("select", (150, 4, k), {"x": iris(), "n_components": k}))
    rows = []
    for task, (n, d, k), arrays in points:
        found = in_turn(session, sources, task, arrays)
        columns = {
            key: {name: [answer[key] for answer in answers] for name, answers in found.items()}
            for key in ("first", "again")
        }
        rows.append({"task": task, "n": n, "d": d, "k": k, **columns})
        shown = [f"{name} {summary(s)['median']:.2f} s" for name, s in columns["first"].items()]
        for name in list(sources)[1:]:
            share = ratio(columns["first"][name], columns["first"]["gmmx"])
            shown.append(f"{share['median']:.2f}×")
        print(f"  first {task}, n={n:,} d={d} K={k}: " + ", ".join(shown), flush=True)
    return rows


def scripts(session, sources):
    """Rows of the wall and CPU times of a process that labels the iris data."""
    with stored({"x": iris()}) as path, tempfile.TemporaryDirectory() as folder:
        calls = {}
        for name, source in sources.items():
            for kind, cache in (("no cache", None), ("warm cache", Path(folder) / name)):
                calls[f"{name}, {kind}"] = lambda source=source, cache=cache: timed(
                    "gmmx", path, source=source, cache=cache
                )
        calls["scikit-learn"] = lambda: timed("scikit-learn", path)
        for call in calls.values():
            call()  # fills the caches, also those of the file system
        found = session.interleave(calls)
    rows = []
    for name, answers in found.items():
        rows.append({"name": name} | {key: [a[key] for a in answers] for key in ("wall", "cpu")})
        wall = summary(rows[-1]["wall"])["median"]
        print(f"  iris, from start to labels, {name}: {wall:.2f} s", flush=True)
    return rows


def timed(library, path, **options):
    begin = time.perf_counter()
    answer = fresh("labels.py", library, path, **options)
    return {"wall": time.perf_counter() - begin, "cpu": answer["cpu"]}


def many_sizes(session, sources):
    """Fits of 100 numbers of rows: a row for each library, and the case."""
    d, k = 8, 5
    counts = COUNTS[:: 49 if session.quick else 1]
    arrays = inputs(Case("train", int(counts[-1]), d, k)) | {"counts": counts}
    answers = in_turn(session, sources, "sizes", arrays, repeats=1)
    rows = [{"name": name, **answer} for name, (answer,) in answers.items()]
    for row in rows:
        print(
            f"  {len(counts)} sizes, {row['name']}: {row['programs_first']} programs, then "
            f"{row['programs_later']}; a new size {row['new']:.3f} s, a known one "
            f"{row['known']:.3f} s",
            flush=True,
        )
    case = {"count": len(counts), "min": int(counts[0]), "max": int(counts[-1]), "d": d, "k": k}
    return {"rows": rows, "case": case}


def iris():
    return np.loadtxt(IRIS, delimiter=",", skiprows=1, dtype=np.float32)
