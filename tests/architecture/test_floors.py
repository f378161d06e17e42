"""Imports go down only. The same rule stands in pyproject.toml as an import-linter contract; this one needs no tool."""

from __future__ import annotations

import ast

import pytest

from architecture.tree import Module, call_name, functions, imports, modules

FLOORS = {
    0: ("errors", "results", "watch"),
    1: ("linalg", "tasks"),
    2: ("gradients",),
    3: ("curvature",),
    4: ("scores",),
    5: ("store",),
    6: ("candidates", "evaluate", "select", "plan", "check", "report"),
    7: ("options", "loading", "pipeline", "assemble", "api"),
    8: ("cli", "demo"),
}
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names}
# floors whose rooms may use each other; on all others siblings are strangers
OPEN_FLOORS = {0, 7}
# who may import by file name: the lookups of methods, tasks and verbs, and the lazy public names
LOOKUPS = {"", "tasks.base", "curvature.base"}
# packages that come with an extra are imported by the function that draws or searches with them
EXTRAS = {"matplotlib", "faiss"}

TORCH_FREE = ("errors", "results", "watch", "report")
HEAVY = ("transformers", "datasets", "peft")
MAY_LOAD_HEAVY = ("tasks", "gradients.layers", "api", "loading", "cli", "demo", "unrolled")


def _inside(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(place + ".") for place in places)


def _ids(items: tuple[Module, ...]) -> list[str]:
    return [m.name or "whence" for m in items]


every_module = pytest.mark.parametrize("module", modules(), ids=_ids(modules()))


@every_module
def test_module_lives_on_a_floor(module: Module) -> None:
    if module.name not in ("", "__main__"):
        assert module.top in FLOOR, f"{module.path.name} is on no floor: add {module.top!r} here and to pyproject.toml"


@every_module
def test_imports_go_down(module: Module) -> None:
    if module.name in ("", "__main__"):
        return
    here = FLOOR[module.top]
    for node, target in imports(module.tree):
        head, _, rest = target.partition(".")
        if head != "whence" or not rest or rest == "__version__":
            continue
        top = rest.split(".")[0]
        there = FLOOR.get(top)
        assert there is not None, f"{module.at(node)}: {target} is on no floor"
        allowed = there < here or top == module.top or (there == here and here in OPEN_FLOORS)
        assert allowed, f"{module.at(node)}: floor {here} ({module.name}) imports floor {there} ({rest})"


@every_module
def test_no_import_inside_functions(module: Module) -> None:
    for function in functions(module.tree):
        for node, target in imports(function):
            ours_to_defer = module.name == "results" and target == "pandas"
            assert ours_to_defer or target.split(".")[0] in EXTRAS, f"{module.at(node)}: {target} inside a function"


@every_module
def test_only_lookups_import_by_name(module: Module) -> None:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and call_name(node) in ("importlib.import_module", "import_module", "__import__"):
            assert module.name in LOOKUPS or module.top == "cli", f"{module.at(node)}: imports by name"


@every_module
def test_torch_stays_out_of_the_answer(module: Module) -> None:
    if not _inside(module.name, TORCH_FREE):
        return
    for node, target in imports(module.tree):
        assert target.split(".")[0] not in ("torch", *HEAVY), f"{module.at(node)}: {target}"


@every_module
def test_heavy_libraries_stay_at_the_edges(module: Module) -> None:
    if _inside(module.name, MAY_LOAD_HEAVY):
        return
    for node, target in imports(module.tree):
        assert target.split(".")[0] not in HEAVY, f"{module.at(node)}: {target}"


def test_no_import_cycles() -> None:
    names = {m.name for m in modules()}
    graph: dict[str, set[str]] = {}
    for module in modules():
        if module.name in ("", "__main__"):
            continue
        used = set()
        for _, target in imports(module.tree):
            if target.startswith("whence."):
                path = target.removeprefix("whence.")
                used.add(path if path in names else path.rpartition(".")[0])
        graph[module.name] = (used & names) - {module.name}
    done: set[str] = set()

    def walk(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, "import cycle: " + " -> ".join([*trail[trail.index(name) :], name])
        if name in done:
            return
        for other in sorted(graph.get(name, ())):
            walk(other, (*trail, name))
        done.add(name)

    for name in sorted(graph):
        walk(name, ())
