"""The Helm test: sends a message through the Service, waits until it is delivered, and runs `eilpost doctor`.

`send.py HOST PORT TIMEOUT_SECONDS [RECIPIENT]`; without a recipient the first user of the directory gets it. Exit
status 0: delivered, and doctor found nothing that fails.
"""

import json
import re
import smtplib
import subprocess
import sys
import time
import tomllib
from pathlib import Path

DIRECTORY = Path("/etc/eilpost/directory.toml")


def first_user():
    users = tomllib.loads(DIRECTORY.read_text(encoding="utf-8-sig")).get("users", {})
    if not users:
        sys.exit("test.recipient: the directory has no user: set the address of a mailbox")
    return next(iter(users))


def connect(host, port, until):
    """A connection to the Service. A network plugin may open the way for a new pod some seconds after its start."""
    while True:
        try:
            return smtplib.SMTP(host, port, timeout=30)
        except OSError as error:
            if time.monotonic() > until:
                sys.exit(f"{host}:{port}: {error}")
            print(f"{host}:{port}: {error}; trying again", flush=True)
            time.sleep(0.5)


def send(host, port, recipient, until):
    """The queue id of a message that was accepted."""
    header = f"From: helm-test@localhost\r\nTo: {recipient}\r\nSubject: helm test {time.time():.0f}\r\n"
    with connect(host, port, until) as server:
        server.ehlo()
        for command, argument in (("MAIL", "FROM:<>"), ("RCPT", f"TO:<{recipient}>")):
            code, reply = server.docmd(command, argument)
            if code >= 300:
                sys.exit(f"{command} {argument}: {code} {reply.decode()}")
        code, reply = server.data(f"{header}\r\nSent by helm test.\r\n")
    queue_id = re.search(r"[0-9A-Z]{26}", reply.decode())
    if code != 250 or queue_id is None:
        sys.exit(f"DATA: {code} {reply.decode()}")
    return queue_id[0]


def history(queue_id):
    """The message's history; None while there is none."""
    ended = subprocess.run(["eilpost", "trace", "--json", queue_id], capture_output=True, text=True)
    return json.loads(ended.stdout) if ended.returncode == 0 else None


def main(host, port, timeout, recipient=""):
    recipient = recipient or first_user()
    until = time.monotonic() + float(timeout)
    queue_id = send(host, int(port), recipient, until)
    print(f"accepted for {recipient}: {queue_id}", flush=True)
    while (traced := history(queue_id)) is None or traced["state"] != "closed":
        if time.monotonic() > until:
            sys.exit(f"{queue_id} was not delivered in {timeout} s: eilpost trace {queue_id}")
        time.sleep(1)
    subprocess.run(["eilpost", "trace", queue_id], check=True)
    results = [outcome["result"] for event in traced["events"] for outcome in event.get("outcomes", ())]
    if "delivered" not in results:
        sys.exit(f"{queue_id} was closed and not delivered")
    return subprocess.run(["eilpost", "doctor"]).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
