"""Entry point of `python -m router --config FILE`, the same as `eilpost router --config FILE`."""

from eilpost.entry_point import run_role

if __name__ == "__main__":
    run_role("router")
