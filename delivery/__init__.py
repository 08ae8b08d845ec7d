"""The delivery role: makes one attempt per dispatched delivery and reports the outcome of each recipient."""
