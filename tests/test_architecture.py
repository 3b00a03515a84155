"""Rules of the tree: who imports whom, what is light, what the pages say about files, what is public."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("tsugi_kpool", "tsugi_cli", "recipes")


def modules_after(statement: str) -> set[str]:
    """What a fresh interpreter has imported after a statement."""
    script = f"import sys\n{statement}\nprint('\\n'.join(sys.modules))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    return set(result.stdout.split())


def test_import_directions():
    """The contracts in pyproject.toml (import-linter)."""
    result = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import tsugi_kpool", ("torch", "zmq", "peft", "transformers")),
        ("import tsugi_cli.app", ("torch", "hydra", "zmq", "transformers")),
        ("import tsugi_cli.launch.run, tsugi_cli.console.status", ("torch", "transformers", "peft")),
        ("import tsugi_kpool.core.hub.hub, tsugi_kpool.core.hub.status", ("torch", "zmq", "numpy")),
        ("import tsugi_kpool.sideband.hub.server, tsugi_kpool.sideband.link", ("torch", "numpy")),
    ],
)
def test_light_modules_stay_light(statement, heavy):
    assert modules_after(statement).isdisjoint(heavy)


def test_public_names(tmp_path):
    import tsugi_kpool

    assert tsugi_kpool.__all__ == [
        "ConfigError",
        "FencedError",
        "FleetAdamW",
        "KPoolCallback",
        "KPoolLoraConfig",
        "LaunchError",
        "MachineError",
        "PlesioHandle",
        "PoolFigures",
        "QuarantinedError",
        "QuorumError",
        "RoundError",
        "SidebandError",
        "TrainingError",
        "TsugiError",
        "__version__",
        "init_process_group",
        "plesio_init",
        "plesio_shutdown",
    ]
    things = set(tsugi_kpool.__all__) - {"__version__"}
    assert all(getattr(tsugi_kpool, name).__name__ == name for name in things)
    assert set(tsugi_kpool._HOMES) < things < set(dir(tsugi_kpool))
    assert tsugi_kpool.__version__ == version("tsugi")
    shown = [name for name in dir(tsugi_kpool) if not name.startswith("__")]
    assert set(shown) == things, "nothing private, and nothing that was only imported"
    from tsugi_kpool._version import others, warn_of_others

    assert others(tmp_path) == []
    for name, brings in (("tsugi-9.9", "tsugi_kpool"), ("tsugi_kpool-0.3", "tsugi_kpool"), ("tsugi_lms-1", "tsugi")):
        (tmp_path / f"{name}.dist-info").mkdir()
        (tmp_path / f"{name}.dist-info" / "top_level.txt").write_text(brings)
    with pytest.warns(UserWarning, match=r"tsugi_kpool-0\.3 is installed beside tsugi .*, which this is"):
        warn_of_others(tmp_path)
    with pytest.raises(AttributeError):
        _ = tsugi_kpool.nothing_of_ours


def test_help_answers_without_torch():
    script = "import sys\nsys.argv = ['tsugi', '--help']\nfrom tsugi_cli.app import main\n"
    script += "try:\n    main()\nexcept SystemExit:\n    pass\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, check=True)


SCRIPTS = ["docs/file_map.py", "docs/configuration.py", "docs/event_table.py", "benchmarks/figures.py"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_pages_agree_with_the_tree_and_the_results(script):
    """The file map comes from the modules' docstrings, every figure from benchmarks/results."""
    result = subprocess.run(
        [sys.executable, script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(page.relative_to(ROOT)) for page in ROOT.glob("docs/**/*.md"))]


@pytest.mark.parametrize("page", PAGES)
def test_links_inside_the_repository_resolve(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


def test_functions_stay_small():
    """None over 60 lines; half of them at most 12."""
    lengths = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef):
                    lengths[f"{path.name}:{node.name}"] = (node.end_lineno or 0) - node.lineno + 1
    assert max(lengths.values()) <= 60, max(lengths, key=lambda name: lengths[name])
    assert sorted(lengths.values())[len(lengths) // 2] <= 12


def test_changelog_knows_the_version():
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert version is not None
    assert f"## {version.group(1)}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_package_is_installed():
    """pyproject.toml lists packages one by one: a folder that is not listed is missing from the wheel only."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    found = {
        ".".join(p.parent.relative_to(ROOT).parts)
        for name in PACKAGES[:2]
        for p in (ROOT / name).rglob("__init__.py")
    }
    assert found == {name for name in listed if name.split(".")[1:2] not in (["conf"], ["recipes"])}
