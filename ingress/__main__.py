"""Entry point of `python -m ingress --config FILE`, the same as `eilpost ingress --config FILE`."""

from eilpost.entry_point import run_role

if __name__ == "__main__":
    run_role("ingress")
