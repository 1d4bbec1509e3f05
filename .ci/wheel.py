"""Build the sdist and, from it, the wheel, and check what is in them: ``python .ci/wheel.py FOLDER``.

Needs ``build``. What the wheel holds is what users get; CI installs and tests it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "ase_definet"
REQUIRED = (
    *("CHANGELOG.md", "CITATION.cff", "LICENSE", "README.md", "mkdocs.yml", "pyproject.toml"),
    *("constraints.txt", "constraints-lowest.txt"),
    *("docs/index.md", "examples/mos2/POSCAR", "research/results/default-val.json", "tests/conftest.py"),
    *("tests/data/2dmd/LICENSE", "tests/data/2dmd/pairs.extxyz"),
)
"""Some of what an sdist must have: it is enough to run the tests and build the site."""
LARGEST_WHEEL, LARGEST_SDIST = 20e6, 60e6
"""In bytes; the weights are most of it."""
STRAY = re.compile(r"^(\.data|build|dist|runs|site)/|(^|/)(\.git|\.hypothesis|\.venv|__pycache__)/|\.py[co]$|\.pack$")


def tracked(folder: str) -> set[str]:
    """Return the files of a folder that belong to the repository."""
    done = subprocess.run(["git", "ls-files", folder], cwd=ROOT, check=True, capture_output=True, text=True)
    return set(done.stdout.split("\n")) - {""}


def check_wheel(path: Path, version: str) -> list[str]:
    """Return what is wrong with a wheel."""
    with zipfile.ZipFile(path) as wheel:
        names = {name for name in wheel.namelist() if not name.endswith("/")}
        info = f"{PACKAGE}-{version}.dist-info"
        metadata = wheel.read(f"{info}/METADATA").decode()
        scripts = wheel.read(f"{info}/entry_points.txt").decode()
    package = {name for name in names if not name.startswith(f"{info}/")}
    problems = [f"{name} is not in the wheel" for name in sorted(tracked(PACKAGE) - package)]
    problems += [f"{name} does not belong into the wheel" for name in sorted(package - tracked(PACKAGE))]
    if "ase-definet = ase_definet.cli:main" not in scripts:
        problems.append(f"no command ase-definet: {scripts}")
    for line in (f"Version: {version}", "License-Expression: MIT", "Requires-Python: >=3.11", "Project-URL: "):
        if line not in metadata:
            problems.append(f"no {line!r} in its metadata")
    if not any(name.endswith("/LICENSE") for name in names):
        problems.append("no LICENSE")
    if path.stat().st_size > LARGEST_WHEEL:
        problems.append(f"{path.stat().st_size / 1e6:.1f} MB, at most {LARGEST_WHEEL / 1e6:.0f} MB are allowed")
    return [f"{path.name}: {problem}" for problem in problems]


def check_sdist(path: Path, version: str) -> list[str]:
    """Return what is wrong with an sdist."""
    with tarfile.open(path) as sdist:
        names = {member.name.partition("/")[2] for member in sdist if member.isfile()}
    problems = [f"{name} is missing" for name in sorted({*REQUIRED, *tracked(PACKAGE), *tracked("tests")} - names)]
    problems += [f"{name} does not belong there" for name in sorted(names) if STRAY.search(name)]
    if f"-{version}.tar.gz" not in path.name:
        problems.append(f"expected version {version}")
    if path.stat().st_size > LARGEST_SDIST:
        problems.append(f"{path.stat().st_size / 1e6:.1f} MB, at most {LARGEST_SDIST / 1e6:.0f} MB are allowed")
    return [f"{path.name}: {problem}" for problem in problems]


def main() -> None:
    """Build and check both."""
    out = Path(sys.argv[1]).resolve()
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)], check=True)
    found = re.search(
        r'^__version__ = "(.+)"$', (ROOT / PACKAGE / "__init__.py").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert found, "no version"
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    problems = check_wheel(wheel, found[1]) + check_sdist(sdist, found[1])
    if problems:
        raise SystemExit("\n".join(problems))
    for path in (wheel, sdist):
        print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, complete")


if __name__ == "__main__":
    main()
