"""`python -m bessemer` is the `bessemer` command."""

try:
    from bessemer.cli.main import main
except KeyboardInterrupt:
    raise SystemExit(130) from None

if __name__ == "__main__":
    raise SystemExit(main())
