"""Doctor finding about damaged records in quarantine, on Kafka and in the embedded log."""

from __future__ import annotations

from eilpost.doctor.finding import Finding, warn


def quarantine_finding(records: int) -> Finding:
    """Damaged records that the router has taken out of the flow."""
    text = f"damaged records in quarantine: {records}"
    advice = "`eilpost queue --site corrupt.invalid` shows them: docs/runbooks/EilpostCorruptRecords.md"
    return warn("quarantine", text, advice)
