"""Runtime dashboard: readiness, CPU, memory, event loop, drain, certificates, DNS, and directory of the processes."""

from deploy.grafana.board import Board
from deploy.grafana.indicators import NOT_READY, not_ready
from deploy.grafana.panels import BYTES, COUNT, GREEN, ORANGE, RED, SECONDS, SHARE, lines, number, steps, value_table
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


_OPEN_FILES = f"{_series('process_open_fds')} / {_series('process_max_fds')}"
_CPU = f"rate({_series('process_cpu_seconds_total')}[$__rate_interval])"
_CERTIFICATE_EXPIRY = _series("certificate_expiry_timestamp_seconds")

_STATS = (
    number(1, "Ready", total("ready", selected=BY_ROLE)).description("Processes that answer /readyz with 200."),
    not_ready(2, title="Not ready", expression=_NOT_READY),
    number(3, "Draining", total("draining", selected=BY_ROLE))
    .thresholds(steps((1, ORANGE)))
    .description("Processes that got SIGTERM and finish their work."),
    number(4, "Starts", f"sum(changes({_series('process_start_time_seconds')}[$__range]))")
    .thresholds(steps((1, ORANGE)))
    .decimals(0)
    .description("Restarts of a process under the same name, in the chosen time."),
    number(5, "Busiest process", f"max({_CPU})")
    .thresholds(steps((0.8, ORANGE), (1.0, RED)))
    .decimals(2)
    .description("Processor cores that the busiest process uses. One event loop uses at most little more than one."),
    number(6, "Certificate expires in", f"min({_CERTIFICATE_EXPIRY}) - time()", "dtdurations")
    .thresholds(steps((14 * 86400, ORANGE), (30 * 86400, GREEN), base=RED))
    .description("Time until the first loaded certificate expires. The alert is at 14 days."),
)

_PROCESSES = (
    lines(10, "Ready processes by role", total_by("ready", "role", selected=BY_ROLE), COUNT).description(
        "Processes that answer /readyz with 200. A role without one does no work."
    ),
    lines(15, "Draining processes by role", total_by("draining", "role", selected=BY_ROLE), COUNT).description(
        "Processes that got SIGTERM and finish their work; node.drain_timeout (30 s) limits it."
    ),
    value_table(
        20,
        "Processes",
        {
            "ready": (_by_process(_series("ready")), COUNT, ((1, GREEN),)),
            "up for": (_by_process(f"time() - {_series('process_start_time_seconds')}"), "dtdurations"),
            "CPU": (_by_process(_CPU), COUNT, ((0.8, ORANGE), (1.0, RED))),
            "resident memory": (_by_process(_series("process_resident_memory_bytes")), BYTES),
            "virtual memory": (_by_process(_series("process_virtual_memory_bytes")), BYTES),
            "open files": (_by_process(_OPEN_FILES), SHARE, ((0.5, ORANGE), (0.8, RED))),
        },
        ("role", "process"),
        hidden=("pod", "instance"),
    )
    .height(9)
    .description("Every process: ready, running since, processor, memory, open files, late timers."),
)

_RESOURCES = (
    lines(
        11, "CPU by process", by_process(rate("process_cpu_seconds_total", PROCESS, selected=BY_ROLE)), COUNT
    ).description("Processor cores in use."),
    lines(
        12, "Memory by process", by_process(total("process_resident_memory_bytes", PROCESS, selected=BY_ROLE)), BYTES
    ).description("Resident memory. A router holds the open queue of its shards in memory."),
    lines(
        13,
        "Event loop lag (p99)",
        by_process(quantile(0.99, "event_loop_lag_seconds", PROCESS, selected=BY_ROLE)),
        SECONDS,
        limits=((0.5, RED),),
    ).description("How late the event loop runs a timer, by process. The alert is at 0.5 s."),
    lines(
        14,
        "Open files",
        {"{{role}}": f"max by (role) ({_OPEN_FILES})"},
        SHARE,
    ).description("Share of the open files that a process may have, the highest of each role."),
    lines(
        25, "Tasks of the event loop", by_process(total("event_loop_tasks", PROCESS, selected=BY_ROLE)), COUNT
    ).description("Sessions, deliveries and background work, by process."),
    lines(24, "Log lines dropped", by_process(rate("log_lines_dropped_total", PROCESS, selected=BY_ROLE))).description(
        "Lines that could not be written, by process: nobody reads them, or the disk is full."
    ),
)

_LOOKUPS = (
    lines(16, "DNS queries by result", rate_by("dns_duration_seconds_count", "result", selected=BY_ROLE)).description(
        "Queries that went to a server. error: no answer, or an error code."
    ),
    lines(
        17, "Duration of DNS queries", percentiles("dns_duration_seconds", "result", selected=BY_ROLE), SECONDS
    ).description("By result; cached answers are not counted."),
    lines(
        19, "DNS look-ups by cache result", rate_by("dns_cache_total", "result", selected=BY_ROLE), stacked=True
    ).description("coalesced: the same query was already running."),
    lines(
        18,
        "Directory reloads",
        {"{{result}}": f"60 * {rate('directory_reloads_total', 'result', selected=BY_ROLE)}"},
        "suffix: /min",
        bars=True,
    ).description("Reloads of the directory file, per minute. failed: the process works with the last good file."),
    lines(
        23,
        "Processes with an old directory file",
        {"{{role}}": f"sum by (role) (1 - {_series('directory_last_reload_successful')})"},
        COUNT,
    )
    .span(24)
    .description("Processes whose last reload of the directory file failed; they work with the last good one."),
)

_VERSIONS = (
    value_table(
        21,
        "Versions",
        {"processes": (f"count by (version, python, role) ({_series('build_info')})", COUNT)},
        ("role", "version", "python"),
    )
    .span(12)
    .height(7)
    .description("Processes by version of eilpost and of Python. More than one version: a roll-out is under way."),
    value_table(
        22,
        "Certificates",
        {"expires in": (f"min by (use, role) ({_CERTIFICATE_EXPIRY}) - time()", "dtdurations")},
        ("role", "use"),
        empty="no certificate is loaded",
    )
    .span(12)
    .height(7)
    .description("Time until each loaded certificate expires."),
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
