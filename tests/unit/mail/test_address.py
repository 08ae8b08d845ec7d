"""Addresses: syntax of RFC 5321, 5322 and 6531, and safety against injection."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mail.address import Address, AddressError, domain_ascii, literal_ip, parse_domain

_ATEXT = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'*+-/=?^_`{|}~"


@pytest.mark.parametrize(
    ("text", "local", "domain", "wire"),
    [
        ("alice@example.test", "alice", "example.test", None),
        ("Alice@EXAMPLE.Test", "Alice", "example.test", "Alice@example.test"),
        ("a.b.c@example.test", "a.b.c", "example.test", None),
        ("!#$%&'*+-/=?^_`{|}~@example.test", "!#$%&'*+-/=?^_`{|}~", "example.test", None),
        ("user+detail@example.test", "user+detail", "example.test", None),
        ("a@localhost", "a", "localhost", None),
        ("a@under_score.test", "a", "under_score.test", None),
        ("a@1.2.3.test", "a", "1.2.3.test", None),
        ("a@9live.test", "a", "9live.test", None),
        ('"alice"@example.test', "alice", "example.test", "alice@example.test"),
        ('"a b"@example.test', "a b", "example.test", None),
        ('"a@b"@example.test', "a@b", "example.test", None),
        ('".a"@example.test', ".a", "example.test", None),
        (r'"a\"b\\c"@example.test', 'a"b\\c', "example.test", None),
        (r'"\a\b"@example.test', "ab", "example.test", "ab@example.test"),
        ('"<>"@example.test', "<>", "example.test", None),
        ("a@[192.0.2.1]", "a", "[192.0.2.1]", None),
        ("a@[IPv6:2001:DB8:0::1]", "a", "[IPv6:2001:db8::1]", "a@[IPv6:2001:db8::1]"),
        ("a@[ipv6:::1]", "a", "[IPv6:::1]", "a@[IPv6:::1]"),
        ("x" * 64 + "@example.test", "x" * 64, "example.test", None),
        ("a@" + "d" * 63 + ".test", "a", "d" * 63 + ".test", None),
        ("a@xn--bcher-kva.test", "a", "xn--bcher-kva.test", None),
    ],
)
def test_addresses(text: str, local: str, domain: str, wire: str | None) -> None:
    for utf8 in (False, True):
        address = Address.parse(text, utf8=utf8)
        assert (address.local, address.domain) == (local, domain)
        assert str(address) == (wire or text)
        assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    ("text", "domain", "ascii_domain"),
    [
        ("ünï@example.test", "example.test", "example.test"),
        ("用户@例え.テスト", "例え.テスト", "xn--r8jz45g.xn--zckzah"),
        ("a@BÜCHER.test", "bücher.test", "xn--bcher-kva.test"),
        ("a@bücher。test", "bücher.test", "xn--bcher-kva.test"),  # UTS 46 maps the ideographic full stop
        ('"ü ü"@example.test', "example.test", "example.test"),
    ],
)
def test_internationalised_addresses_require_smtputf8(text: str, domain: str, ascii_domain: str) -> None:
    with pytest.raises(AddressError, match="SMTPUTF8"):
        Address.parse(text)
    address = Address.parse(text, utf8=True)
    assert address.domain == domain
    assert address.domain_ascii == ascii_domain
    assert not address.is_ascii
    assert Address.parse(str(address), utf8=True) == address


_NOT_ADDRESSES = [
    "",
    "@",
    "alice",
    "@example.test",
    "alice@",
    "alice@@example.test",
    "alice@example@test",
    ".alice@example.test",
    "alice.@example.test",
    "a..b@example.test",
    "a b@example.test",
    " a@example.test",
    "a@example.test ",
    "a@example.test\n",
    "a@example.test\r\nRCPT TO:<b@example.test>",
    "a\n@example.test",
    "a\x00@example.test",
    "a\x7f@example.test",
    '"a\nb"@example.test',
    '"a\\\nb"@example.test',
    '"a\x00b"@example.test',
    '"a\tb"@example.test',
    '"a"b@example.test',
    '"a"b"@example.test',
    '"a\\"@example.test',
    '""@example.test',
    '"unclosed@example.test',
    "<a@example.test>",
    "a,b@example.test",
    "a:b@example.test",
    "a(comment)@example.test",
    "@relay.test:a@example.test",
    "a@-example.test",
    "a@example-.test",
    "a@example..test",
    "a@.example.test",
    "a@example.test.",
    "a@exa mple.test",
    "a@exam!ple.test",
    "a@192.0.2.1",
    "a@example.123",
    "a@123",
    "a@[192.0.2.1",
    "a@192.0.2.1]",
    "a@[192.0.2.256]",
    "a@[192.0.2.01]",
    "a@[2001:db8::1]",
    "a@[IPv6:2001:db8::1%eth0]",
    "a@[IPv6:192.0.2.1]",
    "a@[]",
    "a@[X:y]",
    "a@" + "d" * 64 + ".test",
    "a@" + ".".join(["d" * 60] * 5),
    "a@" + ".".join(["dd"] * 85),
    "a\u0085@example.test",
    "a\u00a0b@example.test",
    "a\u2028b@example.test",
    "a\ufeff@example.test",
    "a\u200b@example.test",
    "a\u200d@example.test",
    "\u202etset@example.test",
    '"a\u2066b"@example.test',
    "a@exam\u200bple.test",
    "a@exam\u00adple.test",
    "a@exam\u202eple.test",
    "a\U000e0041@example.test",
    "a\ue000@example.test",
    "a\u0378@example.test",
    "a\ud800@example.test",
    "a@\ud800.test",
    "a@xn--\u00fc.test",
    "a@" + "é" * 64 + ".test",
    "a@\uff11\uff19\uff12.0.2.1",
    "a@\u0661\u0662\u0663",
]


@pytest.mark.parametrize("text", _NOT_ADDRESSES)
def test_invalid_addresses_are_refused(text: str) -> None:
    for utf8 in (False, True):
        with pytest.raises(AddressError) as caught:
            Address.parse(text, utf8=utf8)
        assert str(caught.value).isprintable()
        assert str(caught.value).isascii()  # can be used in a reply


@pytest.mark.parametrize(
    "domain", ["", ".", "a.", "1.2.3.4", "a b", "a\n", "[1.2.3.4]\n", "[", "]", "[IPv6:]", "x" * 300, "*.test", "a/b"]
)
def test_invalid_domains_are_refused(domain: str) -> None:
    with pytest.raises(AddressError):
        parse_domain(domain, utf8=True)


_dot_strings = st.lists(st.text(_ATEXT, min_size=1, max_size=8), min_size=1, max_size=6).map(".".join)
_quoted_locals = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=30)
_labels = st.from_regex(r"\A[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?\Z").filter(lambda label: label[2:4] != "--")
_domains = st.lists(_labels, min_size=1, max_size=4).map(lambda labels: ".".join([*labels, "test"]))


@given(st.builds(Address, _dot_strings | _quoted_locals, _domains))
def test_formatted_address_is_parsed_back(address: Address) -> None:
    assert Address.parse(str(address)) == address
    assert Address.parse(str(address), utf8=True) == address


@given(st.text() | st.text(st.sampled_from('a.@"\\[]:<> \r\n\0\xfcIPv6-1é_\u2028')), st.booleans())
def test_parsed_address_contains_no_unsafe_character(text: str, utf8: bool) -> None:
    try:
        address = Address.parse(text, utf8=utf8)
    except AddressError:
        return
    wire = str(address)
    assert Address.parse(wire, utf8=True) == address
    assert not any(ord(character) < 32 or ord(character) == 127 for character in wire)
    assert utf8 or wire.isascii()
    assert len(str(address).encode()) <= 2 * 254  # quotes and escapes
    assert address.domain_ascii.isascii()
    assert len(address.domain_ascii) <= 255


def test_address_key_ignores_case_and_the_form_of_the_domain() -> None:
    keys = {Address.parse(text, utf8=True).key for text in ("A@BÜCHER.test", "a@bücher.test", "a@XN--BCHER-KVA.test")}
    assert keys == {"a@xn--bcher-kva.test"}


def test_address_literals_are_parsed() -> None:
    assert literal_ip("[192.0.2.1]") == "192.0.2.1"
    assert literal_ip("[IPv6:2001:db8::1]") == "2001:db8::1"
    assert literal_ip("example.test") is None
    assert domain_ascii("[192.0.2.1]") == "[192.0.2.1]"


@pytest.mark.parametrize("local", ["x" * 65, "x" * 200, "é" * 33])
def test_local_parts_of_other_hosts_may_be_longer_than_64_octets(local: str) -> None:
    assert Address.parse(f"{local}@example.test", utf8=True).local == local


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Jürgen", "ju\u0308rgen"),  # NFC and NFD
        ("A\u030angstrom", "\u212bngstrom"),  # the Angstrom sign
        ("\u212aevin", "kevin"),  # the Kelvin sign is canonically equivalent to K
        ("\u1e9b\u0323", "\u1e9b\u0323"),
    ],
)
def test_encodings_of_one_local_part_are_one_user(one: str, other: str) -> None:
    keys = {Address.parse(f"{local}@example.test", utf8=True).key for local in (one, other)}
    assert len(keys) == 1


def test_different_letters_are_different_users() -> None:
    assert (
        len({Address.parse(f"{local}@example.test", utf8=True).key for local in ("strasse", "straße", "ﬁ", "fi")}) == 4
    )


def test_a_joiner_is_allowed_where_idna_allows_it() -> None:
    domain = Address.parse("a@\u0646\u0627\u0645\u0647\u200c\u0627\u06cc.test", utf8=True).domain_ascii
    assert domain == "xn--mgba3gch31f060k.test"
