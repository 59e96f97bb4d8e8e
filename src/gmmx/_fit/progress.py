"""A progress bar that shows the likelihood, or nothing."""

from typing import Any, Self

import numpy as np

from .state import FitState


class Bar:
    """tqdm's bar, or nothing."""

    def __init__(self, total: int, shown: bool):
        self._bar = None
        if shown:
            try:
                from tqdm.auto import tqdm
            except ImportError as error:
                raise ImportError("progress=True needs tqdm: pip install tqdm") from error
            self._bar = tqdm(total=total, desc="fit", unit="step")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, steps: int, state: FitState) -> None:
        """So many steps more."""
        if self._bar is not None:
            value = float(np.max(np.asarray(state.log_likelihood)))
            self._bar.set_postfix_str(f"log-likelihood {value:.6f}", refresh=False)
            self._bar.update(steps)
