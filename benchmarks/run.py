"""Run the benchmarks of gmmx and of its alternatives on this machine.

    python benchmarks/run.py                    everything
    python benchmarks/run.py train predict      some parts
    python benchmarks/run.py --quick            tiny sizes, to check that everything runs
    python benchmarks/run.py page               write docs/benchmarks.md from the results

benchmarks/README.md describes what each part measures, and how.
"""

import argparse
import importlib
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [str(ROOT), *(p for p in sys.path if Path(p or ".").resolve() != ROOT / "benchmarks")]

PARTS = (
    "roof",
    "train",
    "predict",
    "memory",
    "cold",
    "compile",
    "many",
    "gradient",
    "accuracy",
    "quality",
)


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="benchmarks/run.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "parts", nargs="*", default=["all"], metavar="part",
        help=f"all (default), page, or any of {', '.join(PARTS)}",
    )  # fmt: skip
    parser.add_argument("--dtype", choices=("float32", "float64"), help="only this one")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--repeats", type=int, default=5, help="rounds for each point (default 5)")
    parser.add_argument(
        "--budget", type=float, default=25,
        help="seconds for each point, which gets 3 rounds or more (default 25)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument(
        "--add", type=Path, nargs="*", default=[],
        help="page: other folders of results, to add their lines to the figures",
    )  # fmt: skip
    parser.add_argument(
        "--page", type=Path, default=ROOT / "docs" / "benchmarks.md", help="page: the file to write"
    )
    parser.add_argument(
        "--beside", type=Path, metavar="PATH",
        help="compile: another checkout of gmmx, to measure in turn with this one",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - {"all", "page", *PARTS}:
        parser.error(f"unknown part: {', '.join(sorted(unknown))}")
    if options.repeats < 1:
        parser.error(f"expected --repeats of 1 or more, got {options.repeats}")
    if options.beside and not (options.beside / "src" / "gmmx").is_dir():
        parser.error(f"expected a checkout of gmmx, with src/gmmx in it, at {options.beside}")
    out = options.out or ROOT / "benchmarks" / "outputs" / ("quick" if options.quick else "full")

    if "page" in options.parts:
        from benchmarks.publish import publish

        return publish(out, options.add, options.page)
    return measure(out, options)


def measure(out, options):
    from benchmarks import figures
    from benchmarks.cases import REG_COVAR
    from benchmarks.report import Report
    from benchmarks.session import Session

    settings = {
        "quick": options.quick, "repeats": options.repeats, "budget": options.budget,
        "reg_covar": REG_COVAR,
    }  # fmt: skip
    dtypes = (options.dtype,) if options.dtype else ("float32", "float64")
    report = Report(out, settings)
    session = Session(
        report, dtypes, options.quick, options.repeats, options.budget, beside=options.beside
    )
    start, failed = time.perf_counter(), []
    try:
        for name in PARTS if "all" in options.parts else options.parts:
            print(f"{name} ({time.perf_counter() - start:.0f} s since the start)", flush=True)
            try:
                importlib.import_module(f"benchmarks.parts.{name}").run(session)
            except Exception as error:  # the other parts are still useful
                failed.append(name)
                print(f"  {name} failed: {type(error).__name__}: {error}", file=sys.stderr)
    finally:
        session.close()
    report.write()
    figures.draw([report.as_dict()], out)
    print(f"{time.perf_counter() - start:.0f} s; results in {out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
