"""Progress bars that show the likelihood, or nothing."""

from typing import Any, Self

import numpy as np

from .state import FitState


class Bar:
    """tqdm's bar of the steps, or nothing."""

    def __init__(self, total: int, shown: bool):
        self._bar = _tqdm(total, unit="step") if shown else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, steps: int, state: FitState) -> None:
        """So many steps more."""
        if self._bar is not None:
            self._bar.set_postfix_str(_likelihood(state), refresh=False)
            self._bar.update(steps)


class RowBar:
    """tqdm's bar of the rows that all steps read, or nothing."""

    def __init__(self, n_rows: int, limit: int, shown: bool):
        # The start is a pass too.
        self._n_rows, total = n_rows, (limit + 1) * n_rows
        self._bar = _tqdm(total, unit="row", unit_scale=True) if shown else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, rows: int) -> None:
        """So many rows more."""
        if self._bar is not None:
            self._bar.update(rows)

    def step(self, n_iter: int, state: FitState) -> None:
        """After a pass over all rows."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"step {n_iter}, {_likelihood(state)}", refresh=False)

    def resume(self, n_passes: int, state: FitState) -> None:
        """After the passes that an earlier run made."""
        if self._bar is not None and n_passes:
            self._bar.initial = (n_passes + 1) * self._n_rows
            self._bar.reset()
            self.step(n_passes, state)


def _tqdm(total: int, **more: Any) -> Any:
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("progress=True needs tqdm: pip install tqdm") from error
    return tqdm(total=total, desc="fit", **more)


def _likelihood(state: FitState) -> str:
    return f"log-likelihood {float(np.max(np.asarray(state.log_likelihood))):.6f}"
