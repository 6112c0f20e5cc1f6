"""Each extra alone, in an environment of its own: ``make package``. Needs a package index, and some minutes.

For every extra the wheel is installed with it into an empty environment, `pip check` runs, a program uses what the
extra is for, and the time of `import ferrum_array` is printed beside that of NumPy.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

#: extra -> a program that needs it, and nothing else
PROGRAMS = {
    "": "import ferrum_array as fa; print(fa.ones(3) + 1)",
    "cpu": "import ferrum_array as fa, ferrum_ops as fo; "
    "print(fo.explain(fo.rms_norm, fa.ones((2, 8)), eps=1e-6).runs)",
    "mlx": "import ferrum_array as fa; print(fa.ones(3, device='mlx:cpu') + 1)",
    "models": "import ferrum_models as fm; m, t = fm.load('models/stdlib-moe'); "
    "print(fm.generate(m, t, 'Return', max_tokens=4))",
    "cuda": "import cupy, triton; print(cupy.__version__, triton.__version__)",
    "docs": "import sphinx, furo, myst_nb; print(sphinx.__version__)",
    "demo": "import ferrum_models, matplotlib; print(matplotlib.__version__)",
    "dev": "import pytest, torch; print(torch.__version__)",
}
#: extras that bring PyTorch, or gigabytes of CUDA: left out unless they are named
LARGE = ("cuda", "demo", "dev")
_TIME = (
    "import subprocess, sys, time\n"
    "def least(name):\n"
    "    times = []\n"
    "    for _ in range(7):\n"
    "        start = time.perf_counter()\n"
    "        subprocess.run([sys.executable, '-c', f'import {name}'], check=True)\n"
    "        times.append(time.perf_counter() - start)\n"
    "    return min(times)\n"
    'print(f\'{least("numpy") * 1000:.0f} and {least("ferrum_array") * 1000:.0f} ms\')\n'
)


def _run(*command: str | Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def main() -> None:
    """Build, install, check and use."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("extras", nargs="*", default=[extra for extra in PROGRAMS if extra not in LARGE])
    chosen = parser.parse_args().extras
    with tempfile.TemporaryDirectory() as folder:
        _run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
        (wheel,) = Path(folder).glob("*.whl")
        for extra in chosen:
            home = Path(folder) / f"env-{extra}"
            venv.create(home, with_pip=True)
            python = home / "bin" / "python"
            target = f"ferrum[{extra}] @ {wheel.as_uri()}" if extra else str(wheel)
            _run(python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", target)
            _run(python, "-m", "pip", "--disable-pip-version-check", "check")
            print(f"{extra or 'nothing':8} {_run(python, '-I', '-c', PROGRAMS[extra])}", flush=True)
            if not extra:
                print(f"{'import':8} NumPy and Ferrum: {_run(python, '-c', _TIME)}", flush=True)


if __name__ == "__main__":
    main()
