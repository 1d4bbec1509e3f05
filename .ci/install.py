"""Install the wheel of a folder, with extras, and put the checkout's package out of the way.

Run as ``python .ci/install.py DIST EXTRAS``; for the GitHub workflow, where the same line has to work on Linux, macOS
and Windows. What is tested afterwards is the wheel.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

if __name__ == "__main__":
    folder, extras = sys.argv[1:]
    (wheel,) = Path(folder).resolve().glob("*.whl")
    subprocess.run([sys.executable, "-m", "pip", "install", f"{wheel}[{extras}]"], check=True)
    (ROOT / "ase_definet").rename(ROOT / "ase_definet.source")
    found = subprocess.run(
        [sys.executable, "-c", "import ase_definet; print(ase_definet.__file__)"],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    ).stdout
    assert "site-packages" in found, f"expected the installed package, found {found}"
    print(f"testing {found.strip()}")
