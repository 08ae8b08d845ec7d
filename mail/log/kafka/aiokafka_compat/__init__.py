"""Workarounds for aiokafka 0.14 and uvloop 0.23, and all use of aiokafka's private attributes.

Each docstring names the upstream issue, as found in November 2026, and the condition under which the workaround can be
removed. A test forbids private attributes of libraries elsewhere.
"""
