"""`python -m geood` and the `geood` command."""

from geood.cli.process import main

if __name__ == "__main__":
    main()
