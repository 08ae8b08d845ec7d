"""Runtime dashboard: readiness, CPU, memory, event loop, drain, certificates, DNS, and directory of the processes."""

from deploy.grafana.board import Board
from deploy.grafana.indicators import NOT_READY, not_ready
from deploy.grafana.panels import BYTES, COUNT, GREEN, ORANGE, RED, SECONDS, SHARE, lines, number, value_table
from deploy.grafana.promql import (
    BY_ROLE,
    PROCESS,
    SELECTED,
    by_process,
    percentiles,
    process,
    quantile,
    rate,
    rate_by,
    series,
    total,
    total_by,
)

_NOT_READY = NOT_READY.replace(SELECTED, BY_ROLE)


def _series(name: str) -> str:
    return series(name, selected=BY_ROLE)


def _by_process(expression: str) -> str:
    return process(f"sum by (role, {PROCESS}) ({expression})")


_STATS = (
    number(1, "Ready", "Processes that answer /readyz with 200.", total("ready", selected=BY_ROLE), base=GREEN),
    not_ready(2, title="Not ready", expression=_NOT_READY),
    number(
        3,
        "Draining",
        "Processes that got SIGTERM and finish their work.",
        total("draining", selected=BY_ROLE),
        thresholds=((1, ORANGE),),
    ),
    number(
        4,
        "Starts",
        "Restarts of a process under the same name, in the chosen time.",
        f"sum(changes({_series('process_start_time_seconds')}[$__range]))",
        thresholds=((1, ORANGE),),
        decimals=0,
    ),
    number(
        5,
        "Busiest process",
        "Processor cores that the busiest process uses. One event loop uses at most little more than one.",
        f"max(rate({_series('process_cpu_seconds_total')}[$__rate_interval]))",
        thresholds=((0.8, ORANGE), (1.0, RED)),
        decimals=2,
    ),
    number(
        6,
        "Certificate expires in",
        "Time until the first loaded certificate expires. The alert is at 14 days.",
        f"min({_series('certificate_expiry_timestamp_seconds')}) - time()",
        unit="dtdurations",
        thresholds=((14 * 86400, ORANGE), (30 * 86400, GREEN)),
        base=RED,
    ),
)

_PROCESSES = (
    lines(
        10,
        "Ready processes by role",
        "Processes that answer /readyz with 200. A role without one does no work.",
        total_by("ready", "role", selected=BY_ROLE),
        unit=COUNT,
    ),
    lines(
        15,
        "Draining processes by role",
        "Processes that got SIGTERM and finish their work; node.drain_timeout (30 s) limits it.",
        total_by("draining", "role", selected=BY_ROLE),
        unit=COUNT,
    ),
    value_table(
        20,
        "Processes",
        "Every process: ready, running since, processor, memory, open files, late timers.",
        {
            "ready": (_by_process(_series("ready")), COUNT),
            "up for": (_by_process(f"time() - {_series('process_start_time_seconds')}"), "dtdurations"),
            "CPU": (_by_process(f"rate({_series('process_cpu_seconds_total')}[$__rate_interval])"), COUNT),
            "resident memory": (_by_process(_series("process_resident_memory_bytes")), BYTES),
            "virtual memory": (_by_process(_series("process_virtual_memory_bytes")), BYTES),
            "open files": (_by_process(f"{_series('process_open_fds')} / {_series('process_max_fds')}"), SHARE),
        },
        ("role", "process"),
        coloured={
            "ready": ((1, GREEN),),
            "CPU": ((0.8, ORANGE), (1.0, RED)),
            "open files": ((0.5, ORANGE), (0.8, RED)),
        },
        hidden=("pod", "instance"),
        height=9,
    ),
)

_RESOURCES = (
    lines(
        11,
        "CPU by process",
        "Processor cores in use.",
        by_process(rate("process_cpu_seconds_total", PROCESS, selected=BY_ROLE)),
        unit=COUNT,
    ),
    lines(
        12,
        "Memory by process",
        "Resident memory. A router holds the open queue of its shards in memory.",
        by_process(total("process_resident_memory_bytes", PROCESS, selected=BY_ROLE)),
        unit=BYTES,
    ),
    lines(
        13,
        "Event loop lag (p99)",
        "How late the event loop runs a timer, by process. The alert is at 0.5 s.",
        by_process(quantile(0.99, "event_loop_lag_seconds", PROCESS, selected=BY_ROLE)),
        unit=SECONDS,
        limits=((0.5, RED),),
    ),
    lines(
        14,
        "Open files",
        "Share of the open files that a process may have, the highest of each role.",
        {"{{role}}": f"max by (role) ({_series('process_open_fds')} / {_series('process_max_fds')})"},
        unit=SHARE,
    ),
    lines(
        24,
        "Log lines dropped",
        "Lines that could not be written, by process: nobody reads them, or the disk is full.",
        by_process(rate("log_lines_dropped_total", PROCESS, selected=BY_ROLE)),
    ),
)

_LOOKUPS = (
    lines(
        16,
        "DNS queries by result",
        "Queries that went to a server. error: no answer, or an error code.",
        rate_by("dns_duration_seconds_count", "result", selected=BY_ROLE),
    ),
    lines(
        17,
        "Duration of DNS queries",
        "By result; cached answers are not counted.",
        percentiles("dns_duration_seconds", "result", selected=BY_ROLE),
        unit=SECONDS,
    ),
    lines(
        19,
        "DNS look-ups by cache result",
        "coalesced: the same query was already running.",
        rate_by("dns_cache_total", "result", selected=BY_ROLE),
        stacked=True,
    ),
    lines(
        18,
        "Directory reloads",
        "Reloads of the directory file, per minute. failed: the process works with the last good file.",
        {"{{result}}": f"60 * {rate('directory_reloads_total', 'result', selected=BY_ROLE)}"},
        unit="suffix: /min",
        bars=True,
    ),
    lines(
        23,
        "Processes with an old directory file",
        "Processes whose last reload of the directory file failed; they work with the last good one.",
        {"{{role}}": f"sum by (role) (1 - {_series('directory_last_reload_successful')})"},
        unit=COUNT,
        width=24,
    ),
)

_VERSIONS = (
    value_table(
        21,
        "Versions",
        "Processes by version of eilpost and of Python. More than one version: a roll-out is under way.",
        {"processes": (f"count by (version, python, role) ({_series('build_info')})", COUNT)},
        ("role", "version", "python"),
        width=12,
        height=7,
    ),
    value_table(
        22,
        "Certificates",
        "Time until each loaded certificate expires.",
        {
            "expires in": (
                f"min by (use, role) ({_series('certificate_expiry_timestamp_seconds')}) - time()",
                "dtdurations",
            )
        },
        ("role", "use"),
        width=12,
        height=7,
        empty="no certificate is loaded",
    ),
)

BOARD = Board(
    "runtime",
    "eilpost-runtime",
    "Runtime",
    "The processes: readiness, CPU, memory, event loop, drain, certificates, DNS and directory.",
    (
        ("", _STATS),
        ("Processes", _PROCESSES),
        ("Resources", _RESOURCES),
        ("DNS and directory", _LOOKUPS),
        ("Versions and certificates", _VERSIONS),
    ),
    by_role=True,
)
