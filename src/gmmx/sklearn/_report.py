"""The lines that `verbose` prints, in scikit-learn's words."""

import sys
import time


class Report:
    """Prints nothing, the progress (`verbose=1`), or also times and likelihoods (`verbose=2`).

    Steps are made in blocks, so a line may come a few steps later than `interval` asks for.
    """

    def __init__(self, verbose: int, interval: int):
        self._verbose = int(verbose)
        self._interval = interval

    def _say(self, line: str, details: str = "") -> None:
        if self._verbose:
            # To the standard output, as scikit-learn does.
            sys.stdout.write(line + (details if self._verbose > 1 else "") + "\n")

    def begin(self, index: int) -> None:
        """A start begins."""
        self._began = self._last_time = time.perf_counter()
        self._last_step = 0
        self._say(f"Initialization {index}")

    def step(self, n_iter: int, change: float) -> None:
        """The fit has made this many steps."""
        if n_iter // self._interval == self._last_step // self._interval:
            return
        now = time.perf_counter()
        lapse, self._last_time, self._last_step = now - self._last_time, now, n_iter
        self._say(f"  Iteration {n_iter}", f"\t time lapse {lapse:.5f}s\t ll change {change:.5f}")

    def end(self, converged: bool, lower_bound: float) -> None:
        """A start has ended."""
        lapse = time.perf_counter() - self._began
        self._say(
            f"Initialization {'converged' if converged else 'did not converge'}.",
            f" time lapse {lapse:.5f}s\t lower bound {lower_bound:.5f}.",
        )
