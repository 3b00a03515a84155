"""The import graph of a checkout in numbers: `python docs/import_graph.py [FOLDER] [--rooms]`.

FOLDER is any checkout of this repository; without one it is this one. For the state of an earlier commit:

    git worktree add /tmp/before bd11324 && python docs/import_graph.py /tmp/before

A *module* is a file of tsugi_kpool or tsugi_cli, an *edge* an import of one of them by another, wherever it stands in
the file. Imports for type checkers only (`if TYPE_CHECKING`) are never executed, and count for circles alone. A
*circle* is a strongly connected set of modules. A *room* is a folder. Needs the standard library only.
"""

from __future__ import annotations

import argparse
import ast
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

PACKAGES = ("tsugi_kpool", "tsugi_cli")
Graph = dict[str, set[str]]
"""Module -> the modules that it imports."""


def modules_of(root: Path) -> dict[str, Path]:
    """Return all modules below a checkout: dotted name -> file. A package has its own name."""
    files = (path for package in PACKAGES for path in sorted((root / package).rglob("*.py")))
    return {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def graph_of(root: Path, typing: bool = False) -> Graph:
    """Return the import graph of a checkout; with `typing` imports for type checkers are edges, too."""
    modules = modules_of(root)
    return {name: set(_imported(name, path, modules, typing)) - {name} for name, path in modules.items()}


def rooms_of(root: Path) -> dict[str, str]:
    """Return the room of each module: its folder, as a dotted name."""
    return {name: ".".join(path.relative_to(root).parent.parts) for name, path in modules_of(root).items()}


def circles(graph: Graph) -> list[list[str]]:
    """Return the strongly connected sets of more than one module (Kosaraju's algorithm)."""
    order: list[str] = []
    seen: set[str] = set()
    for name in sorted(graph):
        order += _finished(graph, name, seen)
    back: Graph = {name: set() for name in graph}
    for name, targets in graph.items():
        for target in targets:
            back[target].add(name)
    seen = set()
    found = [_finished(back, name, seen) for name in reversed(order)]
    return [sorted(each) for each in found if len(each) > 1]


def numbers(root: Path) -> dict[str, int]:
    """Return the graph's figures by name."""
    graph, room = graph_of(root), rooms_of(root)
    edges = [(name, target) for name, targets in graph.items() for target in targets]
    sizes = Counter(room.values())
    return {
        "modules": len(graph),
        "rooms": len(sizes),
        "modules in the largest room": max(sizes.values()),
        "edges": len(edges),
        "edges across rooms": sum(room[name] != room[target] for name, target in edges),
        "pairs of rooms with an edge": len({(room[a], room[b]) for a, b in edges if room[a] != room[b]}),
        "circles": len(circles(graph)),
        "circles with the imports for type checkers": len(circles(graph_of(root, typing=True))),
    }


def _imported(name: str, path: Path, modules: dict[str, Path], typing: bool) -> Iterator[str]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in _statements(ast.parse(path.read_text(encoding="utf-8")), typing):
        if isinstance(node, ast.Import):
            wanted: Iterable[str] = [alias.name for alias in node.names]
        else:
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            source = ".".join(filter(None, (base, node.module)))
            wanted = [f"{source}.{alias.name}" for alias in node.names]
        yield from (found for each in wanted if (found := _module(each, modules)) is not None)


def _statements(tree: ast.AST, typing: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif typing or not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)):
            yield from _statements(node, typing)


def _module(dotted: str, modules: dict[str, Path]) -> str | None:
    """Return the module that `a.b.c` is, or is in; None for modules that are not ours."""
    owner = dotted if dotted in modules else dotted.rpartition(".")[0]
    return owner if owner in modules else None


def _finished(graph: Graph, start: str, seen: set[str]) -> list[str]:
    """Return the modules that a depth-first search from `start` adds to `seen`, in the order of leaving them."""
    if start in seen:
        return []
    seen.add(start)
    ended, path = [], [(start, iter(sorted(graph[start])))]
    while path:
        name, targets = path[-1]
        following = next((each for each in targets if each not in seen), None)
        if following is None:
            path.pop()
            ended.append(name)
        else:
            seen.add(following)
            path.append((following, iter(sorted(graph[following]))))
    return ended


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).resolve().parent.parent)
    parser.add_argument("--rooms", action="store_true", help="list the rooms with their modules, and the circles")
    options = parser.parse_args()
    for name, value in numbers(options.folder).items():
        print(f"{value:6}  {name}")
    if options.rooms:
        for room, count in sorted(Counter(rooms_of(options.folder).values()).items()):
            print(f"{count:6}  {room}")
        for circle in circles(graph_of(options.folder, typing=True)):
            print("circle:", ", ".join(circle))


if __name__ == "__main__":
    main()
