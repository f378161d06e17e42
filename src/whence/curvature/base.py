"""Methods as tuples of stages; a fit is one pass per stage, and every stage's state is a *sum*.

A stage says what to sum over the rows (``terms``) and what to make of the sums (``finish``). Because states are sums,
merging two halves, two machines or two shards is addition, and a split-half check costs nothing extra.

Dtype policy: gradients arrive in float32 at least (capture widens half precision), sums are kept in that dtype,
eigendecompositions run in float64. Curvature is of the **mean over examples** of the summed loss.

Adding a method is adding a file here with a module constant ``METHOD``. A method with settings also has a function
``method(*, steps: int = 100, ...) -> Method``, whose keyword parameters are what users write as ``name:steps=50``;
``METHOD`` is then ``method()``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from torch import Tensor

from whence.curvature.settings import Setting, join_spec, read_settings, settings_of, split_spec
from whence.errors import OptionError, did_you_mean
from whence.gradients.ranks import Ranks
from whence.gradients.source import GradientSource
from whence.linalg.matrix_batch import MatrixBatch
from whence.linalg.operators import Blocks, Operator
from whence.tasks.base import Task

LayerTensors = Mapping[str, Mapping[str, Tensor]]
Fisher = Literal["sampled", "empirical"]
Value = TypeVar("Value")


class Memo:
    """Remembers the last value computed from a tensor, by identity: q, k and v are fed the same input object."""

    def __init__(self) -> None:
        self._key: tuple[Tensor, object] | None = None
        self._value: Any = None

    def once(self, tensor: Tensor, tag: object, compute: Callable[[], Value]) -> Value:
        """``compute()``, or its last result when asked about the same tensor object and tag again."""
        if self._key is None or self._key[0] is not tensor or self._key[1] is not tag:
            self._key, self._value = (tensor, tag), compute()
        return self._value

    def forget(self) -> None:
        """Let the last tensor go (end of a batch)."""
        self._key = self._value = None


@dataclass
class Sums:
    """A stage's state: named sums per layer, and how many examples and token positions they run over.

    Attributes:
        place: where the sums are kept; None = where the gradients are.
    """

    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    examples: int = 0
    place: str | None = None

    def add(self, layer: str, terms: Mapping[str, Tensor], positions: int) -> None:
        mine = self.tensors.setdefault(layer, {})
        for name, value in terms.items():
            value = value if self.place is None else value.to(self.place)
            if name in mine:
                mine[name] += value
            else:
                mine[name] = value.clone()  # the value may be shared with another layer through the memo
        self.positions[layer] = self.positions.get(layer, 0) + positions

    def shared(self, ranks: Ranks) -> Sums:
        """The sums over the rows of all ranks, the same bytes on every rank."""
        flat = {f"{n}|{layer}": value for layer, t in self.tensors.items() for n, value in t.items()}
        result = Sums(examples=sum(ranks.everyone(self.examples)), place=self.place)
        for key, value in ranks.totals(flat).items():
            name, _, layer = key.partition("|")
            result.tensors.setdefault(layer, {})[name] = value
        for part in ranks.everyone(self.positions):
            for layer, count in part.items():
                result.positions[layer] = result.positions.get(layer, 0) + count
        return result

    def take(self, other: Sums) -> None:
        """Add the other sums to these, which then own them."""
        if not self.tensors:
            self.tensors, self.positions, self.examples = other.tensors, other.positions, other.examples
            return
        for layer, terms in other.tensors.items():
            self.add(layer, terms, other.positions[layer])
        self.examples += other.examples

    def merged(self, other: Sums) -> Sums:
        """The sums over both sets of rows: the whole of data-parallel fitting."""
        result = Sums(examples=self.examples + other.examples, place=self.place)
        for part in (self, other):
            for layer, terms in part.tensors.items():
                result.add(layer, terms, part.positions[layer])
        return result


Terms = Callable[[str, MatrixBatch, LayerTensors, Memo], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Stage:
    """One pass over training rows.

    Attributes:
        name: for progress and provenance.
        prepare: factors of earlier stages -> factors this stage works with (an eigendecomposition, say).
        terms: (layer, gradients of a batch, factors, memo) -> what to add to the layer's sums.
        finish: (sums, factors) -> factors.
        operator: factors -> the undamped curvature so far; used by the split-half check and, of the last stage, by
            the method.
        apart: whether ``prepare`` takes long and looks at each layer alone, so that layers may be shared out.
    """

    name: str
    prepare: Callable[[LayerTensors], LayerTensors]
    terms: Terms
    finish: Callable[[Sums, LayerTensors], LayerTensors]
    operator: Callable[[LayerTensors], Blocks]
    apart: bool = False


@dataclass(frozen=True)
class Factors:
    """What a fit yields: tensors per layer, and how they came about (rows used, agreement, seconds per stage)."""

    tensors: LayerTensors
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """What a method that needs more than factors may use: the training rows themselves, and the questions."""

    source: GradientSource
    fisher: Fisher = "sampled"
    seed: int = 0
    queries: GradientSource | None = None


@dataclass(frozen=True)
class Method:
    """A way to apply an inverse curvature.

    Attributes:
        name: file name.
        idea, reference, passes, memory, exact_when: for people; ``whence methods`` and the docs print them.
        stages: passes over the rows; may be empty.
        operator: (factors, problem) -> undamped operator; ``operator.power(-1, damping)`` is its damped inverse.
        notes: layer sizes (name -> (O, I)) -> what to say aloud before a fit on such layers.
        settings: what was chosen other than the defaults, as given to ``get_method``.
        begin: layer sizes -> tensors known before any row is read (a projection).
        measure: the query's task -> the task whose measurement this method explains (TRAK: a margin).
        normalise: what scores are divided by unless the user asks for something else.
        damping: what it is damped by unless the user says; "" = the customary relative:0.1.
    """

    name: str
    idea: str
    reference: str
    passes: str
    memory: str
    exact_when: str
    stages: tuple[Stage, ...]
    operator: Callable[[Factors, Problem], Operator]
    notes: Callable[[Mapping[str, tuple[int, int]]], tuple[str, ...]] = lambda _sizes: ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    begin: Callable[[Mapping[str, tuple[int, int]]], LayerTensors] = lambda _sizes: {}
    measure: Callable[[Task], Task] = lambda task: task
    normalise: str = "none"
    damping: str = ""

    @property
    def spec(self) -> str:
        """Name and settings as ``get_method`` takes them: ``ekfac:blocks=2``."""
        return join_spec(self.name, self.settings)


def method_names() -> list[str]:
    """Methods found in this folder: modules that define ``METHOD``."""
    package = importlib.import_module("whence.curvature")
    names = [m.name for m in pkgutil.iter_modules(package.__path__)]
    return sorted(n for n in names if hasattr(importlib.import_module(f"whence.curvature.{n}"), "METHOD"))


def get_method(name: str | Method) -> Method:
    """A method by file name, by ``package.module`` of a third party, or given as it is; ``name:key=value`` sets it up.

    Raises:
        OptionError: no such method or setting; lists the folder or the settings with near matches.
    """
    if isinstance(name, Method):
        return name
    own_name, given = split_spec(name)
    module = _module_of(own_name)
    if not given:
        return module.METHOD
    factory = getattr(module, "method", None)
    settings = read_settings(own_name, factory, given)
    assert factory is not None  # read_settings raised
    return replace(factory(**settings), settings=settings)


def method_settings(name: str) -> dict[str, Setting]:
    """What can be set of a method, by name.

    Raises:
        OptionError: no such method.
    """
    return settings_of(getattr(_module_of(name), "method", None))


def _module_of(name: str) -> Any:
    known = method_names()
    path = f"whence.curvature.{name}" if name in known else name
    try:
        found = importlib.import_module(path) if name in known or "." in name else None
    except (ImportError, ValueError, TypeError):  # the last two: a name that is no module path
        found = None
    if not isinstance(getattr(found, "METHOD", None), Method):
        raise OptionError(
            f"unknown method {name!r}",
            wanted="a method of whence, or package.module with a METHOD",
            try_=did_you_mean(name, known),
        )
    return found
