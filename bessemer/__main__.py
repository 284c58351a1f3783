"""`python -m bessemer` is the `bessemer` command."""

from bessemer.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
