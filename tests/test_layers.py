"""Imports run one way: a package imports from those before it, and no module imports one that imports it."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

# As docs/architecture.md has it. `clipgs` is the package's own __init__, which names what users import.
ORDER = (
    *("core", "config", "stages", "shapes", "catalog", "meshes", "splats", "teacher", "triplets", "encoder"),
    *("training", "evaluation", "report", "serve", "operate", "workflow", "cli"),
)


def imports(checkout: Path) -> dict[str, set[str]]:
    """Module to the modules of clipgs that it imports, inside functions too."""
    source = checkout / "src"
    modules = {
        ".".join(file.relative_to(source).with_suffix("").parts).removesuffix(".__init__"): file
        for file in (source / "clipgs").rglob("*.py")
    }
    found: dict[str, set[str]] = {}
    for name, file in modules.items():
        found[name] = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "clipgs":
                assert node.level == 0
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    found[name].add(whole if whole in modules else node.module)
            elif isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names if alias.name.split(".")[0] == "clipgs"}
    return found


def layer(module: str) -> int:
    return ORDER.index(module.split(".")[1])


def test_a_package_imports_only_from_packages_before_it(checkout):
    wrong = [
        f"{module} imports {other}"
        for module, others in imports(checkout).items()
        for other in others
        if "." in other and module not in ("clipgs", "clipgs.__main__") and layer(other) > layer(module)
    ]
    assert wrong == []


def test_no_module_imports_one_that_imports_it(checkout):
    graph = {name: {other for other in others if other != "clipgs"} for name, others in imports(checkout).items()}
    del graph["clipgs"]
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise AssertionError(" <- ".join(error.args[1])) from None


def test_the_order_is_the_documented_one(checkout):
    assert " < ".join(ORDER) in (checkout / "docs" / "architecture.md").read_text()
