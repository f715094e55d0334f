"""The architecture, held by tests: imports go one way, a heavy dependency has one owner, planning is light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "massive_sft"

# Lowest first. A module imports only from rows above its own, or from its own folder.
LAYERS = [
    ["core"],
    ["sandbox"],
    ["sweep"],
    ["ledger"],
    ["suites"],
    ["planning"],
    ["cost"],
    ["models"],
    ["data"],
    ["training"],
    ["evaluation"],
    ["judging"],
    ["measures"],
    ["search"],
    ["study"],
    ["report"],
    ["tracking"],
    ["running"],
    ["scheduling"],
    ["tiny"],
    ["api"],
    ["cli"],
    ["__init__", "__main__"],
]
# Who may import a heavy dependency.
OWNERS: dict[str, set[str]] = {
    "ray": {"scheduling"},
    "optuna": {"search"},
    "mlflow": {"tracking"},
    "lm_eval": {"evaluation"},
    "deepspeed": {"training"},
    "datasets": {"data"},
    "huggingface_hub": {"models"},
    "peft": {"models", "training"},
    "transformers": {"models", "data", "training", "evaluation"},
    "torch": {"models", "training", "evaluation", "measures", "scheduling", "cli"},
    "ruamel": {"sweep"},
    "pandas": {"study", "report"},
    "scipy": {"study", "evaluation", "search"},
    "sklearn": {"judging"},
    "requests": {"judging"},
    "urllib3": {"judging"},
    "jinja2": {"data", "report", "cli"},
    "boto3": {"ledger"},
    "botocore": {"ledger"},
    "typer": {"cli"},
    "rich": {"cli", "data"},
}
MAX_MODULE_LINES = 350  # one subject; what is longer has two
MAX_FUNCTION_LINES = 50  # with signature and docstring: what fits on a screen
# Within a package that owns one: the only module that touches it.
ALONE = {
    "boto3": "ledger/bucket.py",
    "datasets": "data/hub_data.py",
    "deepspeed": "training/deepspeed_engine.py",
    "huggingface_hub": "models/hub.py",
    "requests": "judging/endpoint.py",
    "sklearn": "judging/length_control.py",
}


def unit_of(path: Path) -> str:
    """Return the module's layer unit: its top folder, or its own name."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


@cache
def nodes_of(path: Path) -> list[ast.AST]:
    """Return all that a module's text is made of."""
    return list(ast.walk(ast.parse(path.read_text())))


def nodes_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what is run when a module is imported: nothing of its functions, nor what only a type checker sees."""
    for child in ast.iter_child_nodes(node):
        is_for_types = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        if not is_for_types and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
            yield from nodes_at_import(child)


def names_at_import(path: Path) -> Iterator[str]:
    """Yield the dotted names of what is imported with a module; what it takes from one may be a module, too."""
    for node in nodes_at_import(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def file_of(name: str) -> Path | None:
    """Return the file of a module of the package; None for any other name."""
    place = PACKAGE.parent.joinpath(*name.split("."))
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)


@cache
def imports_of(path: Path) -> list[str]:
    """Return the dotted names that a module imports, wherever in the file, but for type checking only."""
    found: list[str] = []
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            found += (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if node.module == "massive_sft"
                else [node.module]
            )
    return found


MODULES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted(path for folder in ("benchmarks", "examples") for path in (PACKAGE.parent / folder).rglob("*.py"))
RANK = {unit: rank for rank, row in enumerate(LAYERS) for unit in row}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_only_from_lower_layers(path: Path) -> None:
    unit = unit_of(path)
    assert unit in RANK, f"{unit} has no place in LAYERS"
    for name in imports_of(path):
        if name.startswith("massive_sft."):
            target = name.split(".")[1]
            assert target == unit or RANK.get(target, 0) < RANK[unit], f"{unit} imports {target}, which is not below it"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_dependency_is_imported_only_by_its_owner(path: Path) -> None:
    for name in imports_of(path):
        owners = OWNERS.get(name.split(".")[0])
        assert owners is None or unit_of(path) in owners, f"{unit_of(path)} imports {name}"


def names_bound_in(path: Path) -> set[str]:
    """Return all names that a module's text binds somewhere, imports included."""
    found = set()
    for node in nodes_of(path):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(PACKAGE.parent)))
def test_script_imports_what_there_is(path: Path) -> None:
    """Scripts that take minutes, or what is not installed here, are run by nobody for weeks."""
    for node in nodes_of(path):
        if isinstance(node, ast.ImportFrom) and node.module:
            beside = path.with_name(f"{node.module}.py")
            file = beside if beside.is_file() else file_of(node.module)
            for alias in node.names if file is not None else ():
                there = alias.name in names_bound_in(file) or file_of(f"{node.module}.{alias.name}") is not None
                assert there, f"line {node.lineno}: {node.module} has no {alias.name}"


def test_readme_lists_the_folders_in_the_order_of_the_layers() -> None:
    rows = (
        (PACKAGE.parent / "README.md").read_text().partition("| folder | what |")[2].partition("\n\n")[0].splitlines()
    )
    told = [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1] if row else "")]
    assert told == [unit for layer in LAYERS[:-1] for unit in layer]


def test_root_holds_packages_alone() -> None:
    loose = {path.name for path in PACKAGE.glob("*.py")}
    assert loose == {"__init__.py", "__main__.py"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_and_its_functions_are_short(path: Path) -> None:
    text = path.read_text()
    lines = len(text.splitlines())
    assert lines <= MAX_MODULE_LINES, f"{path}: {lines} lines, more than {MAX_MODULE_LINES}: move a subject out of it"
    functions = [node for node in nodes_of(path) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    sizes = {f"{path}:{one.lineno}: {one.name}": (one.end_lineno or 0) - one.lineno + 1 for one in functions}
    long = [f"{place} has {size} lines" for place, size in sizes.items() if size > MAX_FUNCTION_LINES]
    assert not long, f"more than {MAX_FUNCTION_LINES} lines: give a step of it a name: {', '.join(long)}"


@pytest.mark.parametrize(("dependency", "module"), ALONE.items())
def test_dependency_is_touched_in_one_module_alone(dependency: str, module: str) -> None:
    users = [path for path in MODULES if any(name.split(".")[0] == dependency for name in imports_of(path))]
    assert [str(path.relative_to(PACKAGE)) for path in users] == [module]


SCORING = (
    *(f"evaluation.{name}" for name in ("scorer", "generate", "responses", "requests", "protocol", "wrapping")),
    *("measures.perplexity", "models.snapshots"),
)


def test_scoring_imports_no_lm_eval() -> None:
    """Nor does anything of the package that it imports, and so on."""
    left, seen = [f"massive_sft.{name}" for name in SCORING], set[str]()
    while left:
        name = left.pop()
        path = file_of(name)
        if path is None or name in seen:
            continue
        seen.add(name)
        names = list(names_at_import(path))
        assert "lm_eval" not in {each.split(".")[0] for each in names}, f"{name} imports it"
        left += [*names, name.rpartition(".")[0]]
    assert {"massive_sft.evaluation.scorer", "massive_sft.models.pretrained", "massive_sft.core.errors"} <= seen


LIGHT = ("sweep.load", "sweep.cell", "sweep.trajectory", "ledger.store", "planning.plan", "running.trial", "cli.app")
HEAVY = ("torch", "ray", "lm_eval", "transformers", "deepspeed", "datasets", "mlflow", "pandas", "boto3")
# The process of each trial and of each queue, on the head node.
ON_THE_HEAD = ("scheduling.trials", "scheduling.lane_pool", "scheduling.cell_queue", "scheduling.relay")
BEYOND_RAY = tuple(name for name in HEAVY if name != "ray")


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        (LIGHT, HEAVY),
        (ON_THE_HEAD, BEYOND_RAY),
        (("scheduling.process_group",), ("torch", "deepspeed")),  # a lane's worker says that it is up before
    ],
)
def test_light_modules_import_no_heavy_dependency(modules: tuple[str, ...], heavy: tuple[str, ...]) -> None:
    code = (
        "import importlib, sys\n"
        f"for module in {modules}:\n"
        "    importlib.import_module(f'massive_sft.{module}')\n"
        f"    print(*(f'{{module}} imports {{name}}' for name in {heavy} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
