"""Request: a checked prompt, how to continue it, for whom, and until when.

request = Request(tokens, Sampling(temperature=0), salt="a tenant's name", deadline_s=30)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from gemelo.config import Submodel
from gemelo.config.sampling import Sampling
from gemelo.engine.elastic.speculative import Draft
from gemelo.engine.tokens import Tokens
from gemelo.errors import InputError, shown


@dataclass(frozen=True)
class Request:
    """A checked prompt, and how to continue it.

    submodel is the size that answers, None the engine's own; draft speculates. It fails when
    deadline_s have passed since it was handed in. salt keeps callers apart who must not find each
    other's prompts held: a request that is answered sooner shows what others have asked.
    """

    tokens: Tokens
    sampling: Sampling
    submodel: Submodel | None = None
    draft: Draft | None = None
    salt: str = ""
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        """Raises InputError for a field of another type, and a deadline that is no time to come."""
        for name, kind in _KINDS.items():
            value = getattr(self, name)
            if not isinstance(value, kind):
                raise InputError(
                    f"a request's {name} is {shown(value)}; model.request(prompt, ...) makes one"
                )
        number = self.deadline_s
        is_number = isinstance(number, int | float) and not isinstance(number, bool)
        if number is not None and not (is_number and 0 < number < math.inf):
            raise InputError(f"deadline_s = {shown(number)}; expected seconds above 0, or None")


_KINDS: dict[str, Any] = {
    "tokens": Tokens,
    "sampling": Sampling,
    "submodel": Submodel | None,
    "draft": Draft | None,
    "salt": str,
}
