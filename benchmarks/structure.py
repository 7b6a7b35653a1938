"""How large the code is and what it imports: files, functions, constants, foreign packages.

python benchmarks/structure.py [ROOT ...]      # several checkouts side by side
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_FOLDERS = ("fusion_pipeline", "networks", "transforms")
_WATCHED = ("monai", "torchmetrics", "itk", "SimpleITK", "ignite", "pytorch_lightning", "jinja2")
_CONSTANT = re.compile(r"_?[A-Z][A-Z0-9_]+$")
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def modules(root: Path) -> list[str]:
    """The text of the package's modules; a folder that is a link counts once."""
    paths = {p.resolve() for folder in _FOLDERS for p in (root / folder).rglob("*.py")}
    return [path.read_text(encoding="utf-8") for path in sorted(paths)]


def functions(tree: ast.AST) -> Iterator[int]:
    """Lines of each function or method."""
    for node in ast.walk(tree):
        if isinstance(node, _FUNCTIONS):
            yield (node.end_lineno or node.lineno) - node.lineno + 1


def constants(tree: ast.Module) -> int:
    """Names of a module in capitals whose value is a number or holds one."""
    count = 0
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names = [t.id for t in targets if isinstance(t, ast.Name) and _CONSTANT.match(t.id)]
        value = getattr(node, "value", None)
        numbers = value is not None and any(
            isinstance(n, ast.Constant) and isinstance(n.value, int | float)
            for n in ast.walk(value)
        )
        count += len(names) if numbers else 0
    return count


def imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Watched package and imported name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            package = node.module.partition(".")[0]
            if package in _WATCHED:
                yield from ((package, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] in _WATCHED:
                    yield alias.name.partition(".")[0], alias.name


def row(values: list[int]) -> str:
    """Median, ninth decile and maximum."""
    array = np.array(values)
    return f"{np.median(array):.0f} / {np.percentile(array, 90):.0f} / {array.max()}"


def describe(root: Path) -> dict[str, str]:
    """The figures of one checkout."""
    texts = modules(root)
    trees = [ast.parse(text) for text in texts]
    used: dict[str, set[str]] = {}
    for tree in trees:
        for package, name in imports(tree):
            used.setdefault(package, set()).add(name)
    lines = [len(text.splitlines()) for text in texts]
    return {
        "files": str(len(texts)),
        "lines": str(sum(lines)),
        "lines of a file: median / 9th decile / max": row(lines),
        "lines of a function: median / 9th decile / max": row(
            [n for tree in trees for n in functions(tree)]
        ),
        "numeric constants of modules": str(sum(constants(tree) for tree in trees)),
        **{
            f"names imported from {package}": ", ".join(sorted(used.get(package, {"none"})))
            for package in _WATCHED
        },
    }


def main() -> None:
    """Print one column for each checkout."""
    roots = [Path(word) for word in sys.argv[1:]] or [Path()]
    tables = [describe(root) for root in roots]
    print("| | " + " | ".join(root.resolve().name for root in roots) + " |")
    print("|---" * (len(roots) + 1) + "|")
    for name in tables[0]:
        print(f"| {name} | " + " | ".join(table[name] for table in tables) + " |")


if __name__ == "__main__":
    main()
