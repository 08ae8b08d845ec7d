"""Metric families of eilpost, one registry per process, one module per component.

A process exports the families of the modules it imports, so a role exports its own families and those of the shared
parts. `docs/reference/metrics.md` is generated from these declarations.
"""

from mail.telemetry.family import FAMILIES as FAMILIES
from mail.telemetry.family import REGISTRY as REGISTRY
