"""Mailbox addresses, parsed strictly by RFC 5321 section 4.1.2 and RFC 6531 section 3.3.

Every `Address` is valid and contains no space or control character outside quotes, so it can be written into an SMTP
command unchanged. Source: RFC 5321, RFC 5322 section 3.2.3 (atoms), RFC 6531.
"""

from __future__ import annotations

import ipaddress
import re
from unicodedata import normalize

import idna

from mail.frame_struct import FrameStruct

# RFC 5321 section 4.5.3.1.1, for local users: other hosts have longer local-parts (SRS, VERP), and Postfix takes them.
MAX_LOCAL_BYTES = 64
# Section 4.5.3.1.2; the path limit (.3) counts the angle brackets.
MAX_DOMAIN_BYTES = 255
MAX_PATH_BYTES = 256

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\-]+"
_DOT_STRING = re.compile(rf"{_ATOM}(?:\.{_ATOM})*\Z")
# RFC 6531 section 3.3: UTF8-non-ascii joins atext.
_ATOM_UTF8 = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\-\u0080-\U0010ffff]+"
_DOT_STRING_UTF8 = re.compile(rf"{_ATOM_UTF8}(?:\.{_ATOM_UTF8})*\Z")
_QUOTED = re.compile(r'"((?:[ !#-\[\]-~]|\\[ -~])*)"\Z')
_QUOTED_UTF8 = re.compile(r'"((?:[ !#-\[\]-~\u0080-\U0010ffff]|\\[ -~])*)"\Z')
# RFC 5321 sub-domain = Let-dig [Ldh-str]. The underscore is not in the grammar; hosts on the Internet use it, and
# Postfix accepts it too.
_SUB_DOMAIN = r"[A-Za-z0-9_](?:[A-Za-z0-9_\-]{0,61}[A-Za-z0-9_])?"
_DOMAIN = re.compile(rf"{_SUB_DOMAIN}(?:\.{_SUB_DOMAIN})*\Z")
_COMMON_ADDRESS = re.compile(rf"({_ATOM}(?:\.{_ATOM})*)@({_SUB_DOMAIN}(?:\.{_SUB_DOMAIN})*)\Z")
_ENDS_IN_NUMBER = re.compile(r"(?:\A|\.)[0-9]+\Z")
_JOINERS = re.compile("[\u200c\u200d]")  # in a domain, IDNA2008 decides where they are allowed (RFC 5892 appendix A)


class AddressError(ValueError):
    """The text is not an address; the message gives the reason and can be used in a reply."""


class Address(FrameStruct, frozen=True):
    """A mailbox, `local@domain`.

    `local` is the local-part without quotes and escapes, its case unchanged; `domain` is a lower-case name without a
    final dot (U-labels kept) or an address literal in brackets.
    """

    local: str
    domain: str

    @classmethod
    def parse(cls, text: str, *, utf8: bool = False) -> Address:
        """Parse `local@domain`; with `utf8`, RFC 6531 addresses too. Raises AddressError."""
        match = _COMMON_ADDRESS.match(text)
        if match is not None and len(text) <= MAX_PATH_BYTES - 2:
            domain = match[2]
            if not _ENDS_IN_NUMBER.search(domain):
                return cls(match[1], domain.lower())
        return _parse_strict(text, utf8=utf8)

    @property
    def key(self) -> str:
        """The key for directory look-ups: local-part as of `local_key`, domain in A-labels.

        RFC 5321 section 2.4 allows only the host of a mailbox to ignore the case of its local-part; eilpost does.
        """
        return f"{local_key(self.local)}@{self.domain_ascii}"

    @property
    def domain_ascii(self) -> str:
        """The domain in A-labels, or the address literal unchanged."""
        return domain_ascii(self.domain)

    @property
    def is_ascii(self) -> bool:
        """False when the address requires SMTPUTF8."""
        return self.local.isascii() and self.domain.isascii()

    @property
    def downgraded(self) -> Address:
        """The address with its domain in A-labels, so that it does not require SMTPUTF8; unchanged if the local-part
        requires it.
        """
        if self.domain.isascii() or not self.local.isascii():
            return self
        return Address(self.local, self.domain_ascii)

    def __str__(self) -> str:
        """The SMTP form; the local-part is quoted if necessary."""
        if _DOT_STRING_UTF8.match(self.local):
            return f"{self.local}@{self.domain}"
        quoted = self.local.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{quoted}"@{self.domain}'


def local_key(local: str) -> str:
    """The local-part in lower case and in NFC, by which it is looked up (RFC 8265 section 3.3, UsernameCaseMapped):
    different encodings of one text are one user. The Kelvin sign is the letter K, as Unicode defines it.
    """
    if local.isascii():
        return local.lower()
    return normalize("NFC", normalize("NFC", local).lower())


def path_text(path: Address | None) -> str:
    """The text of a reverse-path or forward-path; `<>` for none."""
    return "<>" if path is None else str(path)


def _parse_strict(text: str, *, utf8: bool) -> Address:
    if not text.isascii() and not utf8:
        raise AddressError("address is not ASCII and SMTPUTF8 was not given")  # RFC 6531 section 3.5
    if len(text.encode("utf-8", "surrogatepass")) > MAX_PATH_BYTES - 2:
        raise AddressError("address is too long")
    local_text, at, domain_text = text.rpartition("@")
    if not at:
        raise AddressError("address has no domain")
    # Bidirectional and zero-width controls would show another address than the one that gets the mail.
    if not (local_text.isprintable() and _JOINERS.sub("", domain_text).isprintable()):
        raise AddressError("address contains a control, invisible or space character")
    return Address(_parse_local(local_text, utf8=utf8), parse_domain(domain_text, utf8=utf8))


def _parse_local(text: str, *, utf8: bool) -> str:
    if (_DOT_STRING_UTF8 if utf8 else _DOT_STRING).match(text):
        return text
    quoted = (_QUOTED_UTF8 if utf8 else _QUOTED).match(text)
    if quoted is None:
        raise AddressError("local-part is malformed")
    local = re.sub(r"\\(.)", r"\1", quoted[1])
    if not local:
        raise AddressError("local-part is empty")
    return local


def parse_domain(text: str, *, utf8: bool = False) -> str:
    """A domain name or an address literal (RFC 5321 section 4.1.3), normalised. Raises AddressError."""
    if text.startswith("["):
        return _parse_literal(text)
    if not text.isascii():
        if not utf8:
            raise AddressError("domain is not ASCII and SMTPUTF8 was not given")
        try:
            # UTS 46 maps full-width digits and dots to ASCII, so the result is validated again.
            return idna.decode(parse_domain(idna.encode(text, uts46=True).decode()))
        except (idna.IDNAError, UnicodeError) as error:
            raise AddressError("domain is not a valid internationalised name") from error
    if len(text) > MAX_DOMAIN_BYTES:
        raise AddressError("domain is too long")
    if not _DOMAIN.match(text):
        raise AddressError("domain is malformed")
    if _ENDS_IN_NUMBER.search(text):
        # RFC 3696 section 2: an IP address without brackets is not a domain.
        raise AddressError("domain ends in a number")
    return text.lower()


def domain_ascii(domain: str) -> str:
    """A domain of `parse_domain` in A-labels (RFC 5890 section 2.3.2.1)."""
    return domain if domain.isascii() else idna.encode(domain, uts46=True).decode()


def _parse_literal(text: str) -> str:
    if not text.endswith("]"):
        raise AddressError("address literal is malformed")
    inner = text[1:-1]
    try:
        if inner[:5].lower() == "ipv6:":
            if "%" in inner:
                raise AddressError("address literal has a zone")
            return f"[IPv6:{ipaddress.IPv6Address(inner[5:]).compressed}]"
        return f"[{ipaddress.IPv4Address(inner)}]"
    except ipaddress.AddressValueError as error:
        raise AddressError("address literal is malformed") from error


def literal_ip(domain: str) -> str | None:
    """The IP address inside a literal domain (`[192.0.2.1]`, `[IPv6:2001:db8::1]`), or None for a name."""
    if not domain.startswith("["):
        return None
    inner = domain[1:-1]
    return inner[5:] if inner[:5].lower() == "ipv6:" else inner
