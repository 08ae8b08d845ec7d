"""The router role: routes accepted messages, schedules retries and writes DSNs."""
