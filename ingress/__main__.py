"""`python -m ingress --config FILE` is `eilpost ingress --config FILE`. It belongs to the roof, not to the role."""

from eilpost.cli import main_of

if __name__ == "__main__":
    main_of("ingress")
