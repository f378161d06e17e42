"""Which rows may be near a question: one bit per number of every row, scanned by FAISS, a library that is optional.

RaBitQ (Gao and Long 2024, "RaBitQ: quantizing high-dimensional vectors with a theoretical error bound") keeps the sign
of each number and two factors per row, and estimates inner products without bias. Codes are plain arrays from which an
``IndexRaBitQ`` is filled: nothing here reads a file of FAISS's own format, which must not be read from strangers.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

import numpy as np

from whence.errors import OptionError

QUERY_BITS = 8  # of each number of a question
INSTALL = "pip install 'whence[faiss]' (faiss-cpu)"


def require_faiss() -> Any:
    """The library.

    Raises:
        OptionError: not installed.
    """
    if importlib.util.find_spec("faiss") is None:
        raise OptionError("cache faiss without faiss", wanted="the library that searches", try_=INSTALL)
    return importlib.import_module("faiss")  # takes a moment, and few need it


def version() -> str:
    """Of the library: codes are made again for another one.

    Raises:
        OptionError: not installed.
    """
    return str(require_faiss().__version__)


@dataclass(frozen=True)
class Coder:
    """Codes of rows of M numbers, as distances from a center.

    Attributes:
        center_M: float32.
    """

    center_M: np.ndarray

    def _index(self) -> Any:
        faiss = require_faiss()
        made = faiss.IndexRaBitQ(len(self.center_M), faiss.METRIC_INNER_PRODUCT)
        faiss.copy_array_to_vector(np.ascontiguousarray(self.center_M, dtype=np.float32), made.center)
        made.is_trained, made.qb = True, QUERY_BITS
        return made

    @property
    def bytes(self) -> int:
        """Of a code."""
        return int(self._index().sa_code_size())

    def codes(self, x_BM: np.ndarray) -> np.ndarray:
        """B x bytes codes, uint8."""
        return self._index().sa_encode(np.ascontiguousarray(x_BM, dtype=np.float32))

    def nearest(self, codes_NC: np.ndarray, query_QM: np.ndarray, count: int, *, threads: int = 1) -> np.ndarray:
        """Q x count places of the rows with the largest estimated products, largest first; -1: there are fewer."""
        faiss, index = require_faiss(), self._index()
        faiss.omp_set_num_threads(threads)
        index.add_sa_codes(np.ascontiguousarray(codes_NC))
        return index.search(np.ascontiguousarray(query_QM, dtype=np.float32), min(count, len(codes_NC)))[1]
