"""Imports go down only. The same rule stands in pyproject.toml as an import-linter contract; this one needs no tool."""

from __future__ import annotations

import ast

from architecture.tree import Module, call_name, functions, imports, modules

FLOORS = {
    0: ("errors", "results", "launch", "watch", "faults"),
    1: ("linalg", "tasks"),
    2: ("gradients",),
    3: ("curvature",),
    4: ("scores",),
    5: ("candidates", "store"),
    6: ("evaluate", "select", "plan", "check", "report"),
    7: (
        "options",
        "loading",
        "pipeline",
        "planning",
        "assemble",
        "asking",
        "asking_stages",
        "caching",
        "searching",
        "funnelling",
        "indexing",
        "resuming",
        "identity",
        "building",
        "repairing",
        "stages",
        "dampings",
        "evaluating",
        "suspecting",
        "retraining",
        "scoring",
        "checkpointed",
        "tokenwise",
        "questions",
        "present",
        "viewer",
        "selecting",
        "less",
        "weighing",
        "rounds",
        "pulling",
        "cleaning",
        "judging",
        "written",
        "unrolled",
        "recorded",
        "callback",
        "api",
    ),
    8: ("cli", "demo"),
}
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names}
# floors whose rooms may use each other; on all others siblings are strangers
OPEN_FLOORS = {0, 7}
# who may import by file name: the lookups of methods, tasks and verbs, the lazy public names, and peft (seconds to
# import), which only the users of adapters pay for
LOOKUPS = {"", "tasks.base", "curvature.base", "loading.load"}
# packages that come with an extra are imported by the function that draws or searches with them
EXTRAS = {"matplotlib", "faiss"}

TORCH_FREE = ("errors", "results", "launch", "watch", "report")
HEAVY = ("transformers", "datasets", "peft")
MAY_LOAD_HEAVY = ("tasks", "gradients.layers", "api", "loading", "cli", "demo", "callback")


def _inside(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(place + ".") for place in places)


def _rooms() -> list[Module]:
    """Every module but the two that only open the door: the lazy public names and ``python -m whence``."""
    return [m for m in modules() if m.name not in ("", "__main__")]


def _report(broken: list[str]) -> None:
    assert not broken, "\n".join(["", *broken])


def test_modules_live_on_a_floor() -> None:
    _report([f"{m.name}: give {m.top!r} a floor here and in pyproject.toml" for m in _rooms() if m.top not in FLOOR])


def test_imports_go_down() -> None:
    broken = []
    for module in _rooms():
        here = FLOOR[module.top]
        for node, target in imports(module.tree):
            head, _, rest = target.partition(".")
            if head != "whence" or not rest or rest == "__version__":
                continue
            top = rest.split(".")[0]
            there = FLOOR[top]
            if not (there < here or top == module.top or (there == here and here in OPEN_FLOORS)):
                broken.append(f"{module.at(node)}: floor {here} ({module.name}) imports floor {there} ({rest})")
    _report(broken)


def test_no_import_inside_functions() -> None:
    broken = []
    for module in modules():
        for function in functions(module.tree):
            for node, target in imports(function):
                ours_to_defer = module.name == "results" and target == "pandas"
                if not ours_to_defer and target.split(".")[0] not in EXTRAS:
                    broken.append(f"{module.at(node)}: {target} inside a function")
    _report(broken)


def _names_an_extra(call: ast.Call) -> bool:
    named = call.args[0].value if call.args and isinstance(call.args[0], ast.Constant) else ""
    return str(named).split(".")[0] in EXTRAS


def test_only_lookups_import_by_name() -> None:
    by_name = ("importlib.import_module", "import_module", "__import__")
    _report(
        [
            module.at(node)
            for module in modules()
            if module.name not in LOOKUPS and module.top != "cli"
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Call) and call_name(node) in by_name and not _names_an_extra(node)
        ]
    )


def _imported(found: list[Module], *, named: tuple[str, ...]) -> list[str]:
    """Where these modules import these packages."""
    return [
        f"{module.at(node)}: {target}"
        for module in found
        for node, target in imports(module.tree)
        if target.split(".")[0] in named
    ]


def test_torch_stays_out_of_the_answer() -> None:
    _report(_imported([m for m in modules() if _inside(m.name, TORCH_FREE)], named=("torch", *HEAVY)))


def test_heavy_libraries_stay_at_the_edges() -> None:
    _report(_imported([m for m in modules() if not _inside(m.name, MAY_LOAD_HEAVY)], named=HEAVY))


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
