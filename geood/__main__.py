"""`python -m geood`: the `geood` command."""

from geood._command import main

if __name__ == "__main__":
    main()
