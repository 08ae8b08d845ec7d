"""`python -m mailstore --config FILE` is `eilpost mailstore --config FILE`. It belongs to the roof, not to the role."""

from eilpost.cli import main_of

if __name__ == "__main__":
    main_of("mailstore")
