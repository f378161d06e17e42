"""Settings written after a method's name."""

from __future__ import annotations

import sys
import types
from typing import Literal

import pytest

from whence.curvature.base import Method, get_method
from whence.curvature.identity import METHOD as PLAIN
from whence.curvature.settings import join_spec, settings_of, split_spec
from whence.errors import OptionError


def method(
    *,
    steps: int = 3,
    rate: float | None = None,
    side: Literal["left", "right"] = "left",
    exact: bool = False,
    name: str = "x",
) -> Method:
    heard.append((steps, rate, side, exact, name))
    return PLAIN


heard: list[tuple] = []


@pytest.fixture
def third_party(monkeypatch):
    module = types.ModuleType("someone.theirs")
    module.METHOD, module.method = PLAIN, method  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "someone", types.ModuleType("someone"))
    monkeypatch.setitem(sys.modules, "someone.theirs", module)
    heard.clear()
    return "someone.theirs"


def test_values_take_the_types_of_the_signature(third_party):
    found = get_method(f"{third_party}:steps=7, rate=none,side=right,exact=yes,name=relative:0.1")
    assert heard == [(7, None, "right", True, "relative:0.1")]
    assert found.settings == {"steps": 7, "rate": None, "side": "right", "exact": True, "name": "relative:0.1"}
    get_method(f"{third_party}:rate=1e-3")
    assert heard[-1][1] == 1e-3
    assert get_method(third_party) is PLAIN


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("stps=3", "did you mean 'steps'"),
        ("steps=2.5", "a whole number"),
        ("side=up", "left or right"),
        ("exact=perhaps", "true or false"),
        ("rate=nan", "(?s)rate=nan.*a finite number.*try:.*rate=none"),
        ("rate=-inf", "a finite number"),
        ("steps", "no setting"),
        ("steps=", "no setting"),
    ],
)
def test_bad_settings_are_explained(third_party, written, said):
    with pytest.raises(OptionError, match=said):
        get_method(f"{third_party}:{written}")


def test_a_method_without_settings_says_so():
    with pytest.raises(OptionError, match="has no settings"):
        get_method("identity:steps=3")


def test_unknown_methods_are_still_explained():
    for name in ("ekfc", "ekfc:blocks=2", "no.such.module", "."):
        with pytest.raises(OptionError, match="unknown method"):
            get_method(name)


def test_spec_is_split_and_joined():
    assert split_spec("a.b:x=1,y-z=2") == ("a.b", {"x": "1", "y_z": "2"})
    assert join_spec("ekfac", {"blocks": 2, "largest": 9}) == "ekfac:blocks=2,largest=9"
    assert join_spec("ekfac", {}) == "ekfac"
    assert [s.words for s in settings_of(method).values()][1] == "rate (a number or none, default none)"


@pytest.mark.parametrize(
    "spec",
    ["ekfac_cg:share=5", "ekfac_cg:share=-1", "ekfac_cg:rows=0", "ekfac_cg:steps=0", "ekfac_cg:tolerance=nan",
     "lissa:depth=0", "lissa:repeats=0", "lissa:scale=0", "lissa:scale=inf", "cg:tolerance=nan", "cg:tolerance=inf",
     "cg:tolerance=0", "cg:steps=0", "cg:rows=0", "arnoldi:steps=0", "arnoldi:keep=-1", "nystrom:rank=0",
     "nystrom:rows=0", "trackstar:share=-inf"],
)  # fmt: skip
def test_impossible_settings_are_refused_before_any_pass(spec):
    with pytest.raises(OptionError, match=spec.partition(":")[2].partition("=")[0] + "="):
        get_method(spec)
