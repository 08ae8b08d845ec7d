"""Ingress dashboard: messages of clients, replies, and durations."""

from deploy.grafana.board import Board
from deploy.grafana.indicators import tempfailed
from deploy.grafana.panels import (
    BYTES,
    BYTES_PER_SECOND,
    COUNT,
    ORANGE,
    RED,
    SECONDS,
    heat_map,
    lines,
    number,
    number_per_second,
    steps,
)
from deploy.grafana.promql import PROCESS, by_process, percentiles, quantile, rate, rate_by, total

_CLASSES = {f"{digit}xx": rate("smtp_replies_total", reply_class=str(digit)) for digit in (2, 3, 4, 5)}

_STATS = (
    number(1, "Open connections", total("smtp_connections")).description("SMTP connections that are open now."),
    number_per_second(2, "Sessions", rate("smtp_sessions_total")).description("SMTP sessions that ended, per second."),
    number_per_second(3, "Accepted", rate("messages_received_total", result="accepted")).description(
        "Messages per second that were answered with 250."
    ),
    number(4, "Content accepted", rate("message_size_bytes_sum"), BYTES_PER_SECOND)
    .decimals(1)
    .description("Size of the accepted messages, per second."),
    tempfailed(5).description(
        "Share of what clients tried to send that was answered with 4xx: messages, and connections "
        "refused with 421. The alert is at 5 %."
    ),
    number(6, "Accept time (p99)", quantile(0.99, "accept_duration_seconds"), SECONDS)
    .thresholds(steps((1, ORANGE), (2.5, RED)))
    .description("From the final dot to the 250. The alert is at 2.5 s."),
)

_MESSAGES = (
    lines(10, "Messages by result", rate_by("messages_received_total", "result"), stacked=True).description(
        "accepted: 250; tempfail: 4xx to the data, or before it because ingress can take none now; rejected: 5xx to "
        "the data."
    ),
    lines(13, "Accept time", percentiles("accept_duration_seconds"), SECONDS, limits=((2.5, RED),)).description(
        "From the final dot of a message to the 250: spool and log."
    ),
    heat_map(14, "Accept time, distribution", "accept_duration_seconds").description(
        "Messages per second by the time from the final dot to the 250."
    ),
    heat_map(15, "Message size, distribution", "message_size_bytes", BYTES).description(
        "Accepted messages per second by size."
    ),
)

_SESSIONS_AND_REPLIES = (
    lines(11, "Replies by class", _CLASSES).description("SMTP replies by the first digit of their code."),
    lines(
        12,
        "Replies 4xx and 5xx by command",
        {
            "4xx {{verb}}": f"{rate('smtp_replies_total', 'verb', reply_class='4')} > 0",
            "5xx {{verb}}": f"{rate('smtp_replies_total', 'verb', reply_class='5')} > 0",
        },
    ).description("CONNECT is the greeting, CONTENT the reply to the message data, OTHER an unknown command."),
    lines(16, "Sessions by end", {"{{end}}": f"{rate('smtp_sessions_total', 'end')} > 0"}, stacked=True).description(
        "How SMTP sessions ended. disconnected: by the client; rejected: 421 at the greeting or at MAIL; shutdown "
        "and aborted: this process was shutting down."
    ),
    lines(17, "Open connections by process", by_process(total("smtp_connections", PROCESS)), COUNT).description(
        "A process takes at most ingress.max_connections."
    ),
    lines(20, "Stress by process", by_process(total("smtp_stress", PROCESS)), COUNT).description(
        "1 while clients outside relay networks hold nine tenths or more of their connections: they have shorter "
        "time-outs and error limits."
    ),
)

_PROCESSES = (
    lines(18, "Message data in memory", by_process(total("ingress_in_flight_bytes", PROCESS)), BYTES).description(
        "Content that is not accepted yet, by process. Beyond ingress.max_in_flight_bytes new mail gets 452."
    ),
    lines(
        19, "Accepted by process", by_process(rate("messages_received_total", PROCESS, result="accepted"))
    ).description("Messages per second by process: is the load shared out evenly?"),
)

BOARD = Board(
    "ingress",
    "eilpost-ingress",
    "Ingress",
    "SMTP sessions, replies, accepted messages and the time it takes to accept one.",
    (("", _STATS), ("Messages", _MESSAGES), ("Sessions and replies", _SESSIONS_AND_REPLIES), ("Processes", _PROCESSES)),
)
