"""`python -m delivery --config FILE` is `eilpost delivery --config FILE`. It belongs to the roof, not to the role."""

from eilpost.cli import main_of

if __name__ == "__main__":
    main_of("delivery")
