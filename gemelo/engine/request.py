"""Request: a checked prompt, how to continue it, for whom, and until when.

request = Request(tokens, Sampling(temperature=0), salt="a tenant's name", deadline_s=30)
"""

from __future__ import annotations

from dataclasses import dataclass

from gemelo.config import Submodel
from gemelo.config.sampling import Sampling
from gemelo.engine.elastic.speculative import Draft
from gemelo.engine.tokens import Tokens


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
