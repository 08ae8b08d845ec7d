"""`python -m delivery --config FILE` is `eilpost delivery --config FILE`. It belongs to the roof, not to the role."""

from eilpost.cli import run_role

if __name__ == "__main__":
    run_role("delivery")
