"""Entry point of `python -m delivery --config FILE`, the same as `eilpost delivery --config FILE`."""

from eilpost.entry_point import run_role

if __name__ == "__main__":
    run_role("delivery")
