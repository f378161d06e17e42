"""Damage, other people's manifests, other models and too little memory: found, named, and made good."""

from __future__ import annotations

from pathlib import Path

from reliability import damage_sweeps


def test_every_damage_is_found_and_alone_repaired(place: Path) -> None:
    found = damage_sweeps.corruption(place, flips=400, truncations=64, repairs=4)
    assert found.failed == 0 and found.tried >= 460, found


def test_two_faults(place: Path) -> None:
    found = damage_sweeps.compound(place, count=6)
    assert found.failed == 0, found


def test_power_cuts(place: Path) -> None:
    found = damage_sweeps.power_loss(place, orders=12)
    assert found.failed == 0, found


def test_every_field_of_the_identity_is_compared(place: Path) -> None:
    found = damage_sweeps.mismatch(place)
    assert found.failed == 0 and found.facts["fields"] >= 20, found


def test_hostile_manifests(place: Path) -> None:
    found = damage_sweeps.hostile_manifests(place, count=40)
    assert found.failed == 0, found


def test_memory_runs_out(place: Path) -> None:
    found = damage_sweeps.memory_backoff(place, schedules=4)
    assert found.failed == 0 and found.facts["rows_left_out_by_name"] >= 1, found
