"""`eilpost demo`, what `make run` calls: a whole mail cluster in one process, on its own small world in `var/demo`.

Made at first start: a configuration, a directory with the domain example.test and the users alice and bob. Nothing that
exists is overwritten, so a second start finds the mail of the first. It needs no DNS and no root.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from eilpost.configuration import CONFIG_VARIABLE, find
from mail.directory.passwords import hash_password
from mail.endpoint import parse
from mail.settings import Settings

DOMAIN, USERS, PASSWORD = "example.test", ("alice", "bob"), "eilpost-demo"

CONFIGURATION = """\
# Made by `eilpost demo`. Every key and its default: `eilpost config show --defaults`, or docs/reference/settings.md.
# Relative paths start from the folder of this file. `make run` keeps this file as you leave it.

[node]
hostname = "mx.example.test"

[log]
url = "embedded:log.db"

[spool]
url = "file:spool"

[directory]
url = "file:directory.toml"

[mailboxes]
url = "maildir:mail"

[ingress]
mx = "127.0.0.1:2525"

[mailstore]
pop3 = "127.0.0.1:2110"

[http]
listen = "127.0.0.1:8025"

# To send everything that is not for example.test to another server:
# [delivery]
# relay = "smtp://127.0.0.1:2626"
"""

DIRECTORY = """\
# Domains, users and aliases. Made by `eilpost demo`. Edit it while the server runs, or by `eilpost user|domain|alias`.

[tenants.default]

[domains."{domain}"]
tenant = "default"

{users}
[aliases]
"postmaster@{domain}" = ["alice@{domain}"]
"team@{domain}" = ["alice@{domain}", "bob@{domain}"]
"""


def create_files(folder: Path, text: str = CONFIGURATION) -> Path:
    """Make what is missing in `folder`, `text` the configuration; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    directory = folder / "directory.toml"
    if not directory.exists():
        users = "".join(
            f'[users."{user}@{DOMAIN}"]\npassword = "{hash_password(PASSWORD)}"\n\n' for user in USERS
        ).rstrip("\n")
        _write_new(directory, DIRECTORY.format(domain=DOMAIN, users=users + "\n"), mode=0o600)
    configuration = folder / "eilpost.toml"
    if not configuration.exists():
        _write_new(configuration, text, mode=0o644)
    return configuration


def _write_new(path: Path, text: str, mode: int) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(text, encoding="utf-8")
    temporary.chmod(mode)
    temporary.replace(path)


def _is_default_configuration(path: Path) -> bool:
    """Whether a command finds this configuration without being told."""
    return CONFIG_VARIABLE not in os.environ and find(None) == path


def banner(settings: Settings, configuration: Path, program: str) -> str:
    """What to know and what to try, for the settings as they are."""
    if not settings.ingress.mx or not settings.mailstore.pop3:
        return f"\neilpost is ready: SMTP {settings.ingress.mx or 'off'}, POP3 {settings.mailstore.pop3 or 'off'}\n"
    (smtp_host, smtp), (pop3_host, pop3) = parse(settings.ingress.mx), parse(settings.mailstore.pop3)
    alice, bob = (f"{user}@{DOMAIN}" for user in USERS)
    message = r"Subject: Hello\r\n\r\nHi Alice\r\n"
    dialogue = rf"EHLO me\r\nMAIL FROM:<{bob}>\r\nRCPT TO:<{alice}>\r\nDATA\r\n{message}.\r\nQUIT\r\n"
    run, option = (
        shlex.quote(program),
        "" if _is_default_configuration(configuration) else f" --config {shlex.quote(str(configuration))}",
    )
    http = f"http://{settings.http.listen}/metrics" if settings.http.listen else "off"
    return f"""
eilpost is ready: SMTP {settings.ingress.mx}, POP3 {settings.mailstore.pop3}, HTTP {http}
Mailboxes: {alice} and {bob}, password {PASSWORD}. Everything it keeps is in {configuration.parent}/. Stop: Ctrl-C.

Try, in another terminal:
 1. send a message by hand (bash), or with swaks, or with any mail client:
      {{ printf '{dialogue}' >&3; cat <&3; }} 3<>/dev/tcp/{smtp_host}/{smtp}
      swaks --server {smtp_host}:{smtp} --from {bob} --to {alice}
 2. fetch the newest (the log-in name is the whole address):
      python3 -c "import poplib; p = poplib.POP3('{pop3_host}', {pop3}); p.user('{alice}'); p.pass_('{PASSWORD}'); \
print(*(line.decode(errors='replace') for line in p.retr(len(p.list()[1]))[1]), sep='\\n'); p.quit()"
 3. follow it by the queue id in the 250 reply, and see what is still open:
      {run} trace QUEUE_ID{option}
      {run} queue{option}
"""
