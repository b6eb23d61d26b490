"""`python -m geood` and the `geood` command."""

from geood.cli import main

if __name__ == "__main__":
    main()
