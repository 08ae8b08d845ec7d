"""Values, records and ports shared by all roles.

`log`, `spool`, `directory` and `resolver` are ports with their adapters; `settings`, `service` and `telemetry` are
used by every process.
"""
