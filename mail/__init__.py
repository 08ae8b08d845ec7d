"""The ground floor: the words, records and ports every role agrees on.

It never decides anything about a message and never speaks SMTP. Values and records are pure;
`log`, `spool`, `directory` and `resolver` hold a port each and its adapters; `settings`,
`service` and `telemetry` are what every process needs.
"""
