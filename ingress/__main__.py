"""`python -m ingress --config FILE` is `eilpost ingress --config FILE`. It belongs to the roof, not to the role."""

from eilpost.cli import run_role

if __name__ == "__main__":
    run_role("ingress")
