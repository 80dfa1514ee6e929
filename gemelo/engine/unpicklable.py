"""Unpicklable: what lives in one process, and can be neither pickled nor copied.

A model is views of mapped files, and weights that compiled kernels read where they lie. Python's
own pickle and deepcopy would first gather all of that in memory and then fail at the first part
that cannot travel; here they are refused at once, with what does the same.

    class Model(Unpicklable): ...
"""

from __future__ import annotations

from typing import NoReturn

from gemelo.errors import UnsupportedError


class Unpicklable:
    """Base of a class whose objects pickle, copy and multiprocessing leave where they are."""

    def __reduce__(self) -> NoReturn:
        raise UnsupportedError(
            f"a {type(self).__name__} can be neither pickled nor copied: call gemelo.load in every "
            "process (with repack=False they share the file's memory), and model.session() for one "
            "more conversation on the same weights"
        )
