"""Entry point of `python -m mailstore --config FILE`, the same as `eilpost mailstore --config FILE`."""

from eilpost.entry_point import run_role

if __name__ == "__main__":
    run_role("mailstore")
