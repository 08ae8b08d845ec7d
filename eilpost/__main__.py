"""`python -m eilpost` is `eilpost`."""

from eilpost.cli import main

if __name__ == "__main__":
    main()
