"""`python -m trimtab` is `trimtab`."""

from __future__ import annotations


def _main() -> None:
    from trimtab.cli.main import main

    main()


if __name__ == "__main__":
    _main()
