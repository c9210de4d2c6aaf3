"""A drive that does not answer: wait and ask again before giving up.

Only calls that return an error can be repeated. Bytes of a memory-mapped file (`.npy`) come when
they are touched; where the drive fails then, the system ends the process with SIGBUS, and no code
can prevent it. `worker_watch` names the loader process and the clip it was reading.
"""

import errno
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

logger = logging.getLogger(__name__)

# A network drive that stalls says one of these; waiting helps, unlike for a missing file.
PASSING_ERRORS = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN)
RETRY_PAUSES_S = (0.1, 0.5, 2.0)

Result = TypeVar("Result")


def with_patience(path: str | Path, action: Callable[[], Result]) -> Result:
    """Return what `action` returns; repeat it with pauses where the drive of `path` stalls.

    Raises:
        OSError: another error, or still an error after the last pause.
    """
    for pause in RETRY_PAUSES_S:
        try:
            return action()
        except OSError as error:
            if error.errno not in PASSING_ERRORS:
                raise
            logger.warning("%s: %s; trying again in %.1f s", path, error.strerror, pause)
            time.sleep(pause)
    return action()
