"""The wheel, installed in an environment of its own, runs the tiny recipe from elsewhere; what the sdist holds."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]

ROOT = Path(__file__).parent.parent.parent


def run(*command: str, cwd: Path) -> str:
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_sdist_holds_the_packages_and_nothing_else_of_the_repository(tmp_path):
    run(
        sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(tmp_path), str(ROOT), cwd=tmp_path
    )
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    packages = {"conf", "recipes", "tsugi_cli", "tsugi_kpool"}
    made = {"PKG-INFO", "setup.cfg", "tsugi.egg-info"}
    files = {"CHANGELOG.md", "LICENSE", "MANIFEST.in", "NOTICE", "README.md", "pyproject.toml"}
    assert {name.split("/")[0] for name in names if name} == packages | made | files
    shipped = {str(path.relative_to(ROOT)) for each in packages for path in (ROOT / each).rglob("*.py")}
    assert shipped <= set(names)


@pytest.mark.nightly
def test_wheel_runs_from_anywhere(tmp_path):
    dist, home, work = tmp_path / "dist", tmp_path / "venv", tmp_path / "elsewhere"
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(dist), str(ROOT), cwd=tmp_path)
    (wheel,) = dist.glob("*.whl")
    top = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"tsugi_cli", "tsugi_kpool"}
    venv.create(home, with_pip=False)
    python = str(home / "bin" / "python")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--quiet", str(wheel), cwd=tmp_path)
    # What the wheel depends on is lent by this environment; a path file does not lend its editable installs.
    lent = sysconfig.get_paths()["purelib"]
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])", cwd=tmp_path).strip()
    Path(site, "lent.pth").write_text(lent + "\n")
    work.mkdir()
    where = run(python, "-c", "import tsugi_cli; print(tsugi_cli.__file__)", cwd=work)
    assert str(home) in where, "the wheel's own code must be what runs"
    tsugi = str(home / "bin" / "tsugi")
    assert "smollm2_tools" in run(tsugi, "recipes", cwd=work)
    run(tsugi, "finetune", "model=tiny", "train.max_steps=12", "data.n_eval=4", "data.n_test=0", cwd=work)
    summary = json.loads((work / "runs" / "latest" / "summary.json").read_text())
    assert summary["outcome"] == "finished"
