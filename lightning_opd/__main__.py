"""`python -m lightning_opd COMMAND`."""

from lightning_opd.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
