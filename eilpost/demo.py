"""`eilpost demo`, which `make run` calls: all roles in one process, with files in `var/demo`.

The first start creates a configuration and a directory with the domain example.test and the users alice and bob; an
existing file is never overwritten. The demo needs no DNS and no root, and sends no mail to other machines.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from eilpost.configuration import CONFIG_VARIABLE, find
from mail.directory.passwords import hash_password
from mail.endpoint import parse
from mail.settings import Settings

DOMAIN, USERS, PASSWORD = "example.test", ("alice", "bob"), "eilpost-demo"

# Sections that `eilpost demo --cluster` has too.
STORAGE = """\
[spool]
url = "file:spool"

[directory]
url = "file:directory.toml"

[mailboxes]
url = "maildir:mail"
"""
RELAY = """\
# Mail for other domains goes here. `eilpost demo` listens there, unless another server does, and prints a line for each
# message. "" sends the mail to the Internet.
[delivery]
relay = "smtp://127.0.0.1:2627"
"""
CONFIGURATION = f"""\
# Made by `eilpost demo`, which does not change it again. Every key and its default: `eilpost config show --defaults`,
# or docs/reference/settings.md. Relative paths start from the folder of this file.

[node]
hostname = "mx.example.test"

[log]
url = "embedded:log.db"

{STORAGE}
[ingress]
smtp_listen = "127.0.0.1:2525"

[mailstore]
pop3_listen = "127.0.0.1:2110"

[http]
listen = "127.0.0.1:8025"

{RELAY}"""

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


def create_files(folder: Path, text: str = CONFIGURATION, more_users: int = 0) -> Path:
    """Create the missing files in `folder`: the configuration `text`, alice, bob, and user1 to user`more_users`.

    The configuration's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    directory = folder / "directory.toml"
    if not directory.exists():
        names = [*USERS, *(f"user{number}" for number in range(1, more_users + 1))]
        hashed = hash_password(PASSWORD)
        users = "\n\n".join(f'[users."{name}@{DOMAIN}"]\npassword = "{hashed}"' for name in names)
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
    """Whether commands find this configuration without --config."""
    return CONFIG_VARIABLE not in os.environ and find(None) == path


def program() -> str:
    """The command that started this process, for the shell."""
    name = sys.argv[0]
    if name.endswith("__main__.py"):
        return shlex.join([sys.executable, "-m", "eilpost"])
    return shlex.quote(name) if "/" in name else "eilpost"


def banner(settings: Settings, configuration: Path, program: str, *, sink_listens: bool = False) -> str:
    smtp_listen, pop3_listen = settings.ingress.smtp_listen, settings.mailstore.pop3_listen
    if not smtp_listen or not pop3_listen:
        return f"\neilpost is ready: SMTP {smtp_listen or 'off'}, POP3 {pop3_listen or 'off'}\n"
    (smtp_host, smtp), (pop3_host, pop3) = parse(smtp_listen), parse(pop3_listen)
    alice, bob = (f"{user}@{DOMAIN}" for user in USERS)
    message = r"Subject: Hello\r\n\r\nHi Alice\r\n"
    smtp_session = rf"EHLO me\r\nMAIL FROM:<{bob}>\r\nRCPT TO:<{alice}>\r\nDATA\r\n{message}.\r\nQUIT\r\n"
    option = "" if _is_default_configuration(configuration) else f" --config {shlex.quote(str(configuration))}"
    http = f"http://{settings.http.listen}/" if settings.http.listen else "off"
    destination = (
        "is printed here and does not leave this machine"
        if sink_listens
        else f"goes to {settings.delivery.relay or 'the Internet'}"
    )
    return f"""
eilpost is ready: SMTP {smtp_listen}, POP3 {pop3_listen}, HTTP {http}
Mailboxes: {alice} and {bob}, password {PASSWORD}. Alias of both: team@{DOMAIN}.
Mail for other domains {destination}. All files are in {configuration.parent}/. Stop: Ctrl-C.

Try, in another terminal:
 1. Send a message by hand (bash), with swaks, or with a mail client:
      {{ printf '{smtp_session}' >&3; cat <&3; }} 3<>/dev/tcp/{smtp_host}/{smtp}
      swaks --server {smtp_host}:{smtp} --from {bob} --to {alice}
 2. Fetch the newest message (the user name is the whole address):
      python3 -c "import poplib; p = poplib.POP3('{pop3_host}', {pop3}); p.user('{alice}'); p.pass_('{PASSWORD}'); \
print(*(line.decode(errors='replace') for line in p.retr(len(p.list()[1]))[1]), sep='\\n'); p.quit()"
 3. Trace it by the queue id in the 250 reply, and show the queue:
      {program} trace QUEUE_ID{option}
      {program} queue{option}
"""
