from __future__ import annotations

import numpy as np
import pytest
from metrics.yardsticks import Split

from diffx.data import Digits


@pytest.fixture(scope="session")
def digits() -> Split:
    """The split that claims on digits are made for."""
    data = Digits()
    train, val = (source.fetch(np.arange(len(source)), 0) for source in (data.train, data.val))
    return Split(train["x"], train["label"], val["x"], val["label"])
