"""Those who stand in line for what goes at a rate are called: how many, and how long it is waited for them.

Common to the lines of lanes for what a tenant may send (`mta.delivery.limited`) and of paths for the rates of a
provider or source (`mta.delivery.rate_line`).
"""

from __future__ import annotations

import math
from typing import Final

CALL_S: Final = 1.0  # how long it is waited for one that was called, as its connection may have to be opened
CALL_CAP_S: Final = 15.0
CALLED_MOST: Final = 200


def patience_for(spacing_s: float) -> float:
    """How long it is waited for one that was called: where one goes seldom half of the time to the next one, up to
    CALL_CAP_S."""
    return max(min(spacing_s / 2, CALL_CAP_S), CALL_S)


def at_once(per_s: float) -> int:
    """How many may be called and not have come yet: what may be sent while connections are opened, some of which take
    longer than it is waited for."""
    return max(math.ceil(min(2 * per_s * CALL_S, CALLED_MOST)), 1)
