"""`python -m eilpost` is `eilpost`."""

from eilpost.entry_point import main

if __name__ == "__main__":
    main()
