"""Digits that kill the process that reads them, as a power cut would, after as many reads as ``DIE_AFTER`` says."""

import os
import signal

from diffx.data import Digits


class Fragile(Digits):
    """The digits themselves, unless ``DIE_AFTER`` is set."""

    def sources(self):
        train, val = super().sources()
        fetch, left = train.fetch, [int(os.environ.get("DIE_AFTER", -1))]

        def counted(indices, epoch):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return fetch(indices, epoch)

        train.fetch = counted
        return train, val
