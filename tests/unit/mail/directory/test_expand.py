"""Alias expansion: recipients without duplicates; a cycle without a final recipient is a loop."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mail.directory.expand import ALIAS_LOOP, ALIAS_TOO_DEEP, EMPTY_LIST, UNKNOWN_USER, expand, undeliverable_reply
from tests.support.builders.routing import recipient, snapshot

USERS = ["alice@example.test", "bob@example.test"]


def names(aliases: dict[str, list[str]], *to: str, depth: int = 20) -> tuple[list[tuple[str, str]], list[object]]:
    """(final, original) addresses, and (address, reply) of the refused recipients."""
    expansion = expand([recipient(text) for text in to], snapshot(USERS, aliases), depth)  # type: ignore[arg-type]
    return (
        [(final.recipient.address.key, str(final.recipient.original)) for final in expansion.final_recipients],
        [(refusal.recipient.address.key, refusal.reply) for refusal in expansion.refused],
    )


def test_list_is_expanded_to_its_members_once_in_order() -> None:
    finals, refused = names(
        {"team@example.test": ["bob@example.test", "x@far.test", "all@example.test"],
         "all@example.test": ["Alice@example.test", "bob@example.test"]},
        "team@example.test", "alice@example.test",
    )  # fmt: skip
    assert finals == [
        ("bob@example.test", "team@example.test"),
        ("x@far.test", "team@example.test"),
        ("alice@example.test", "team@example.test"),
    ]
    assert refused == []


def test_user_removed_after_acceptance_is_refused() -> None:
    assert names({}, "gone@example.test", "bob@example.test") == (
        [("bob@example.test", "bob@example.test")],
        [("gone@example.test", UNKNOWN_USER)],
    )


def test_pure_alias_loop_is_refused_once_per_recipient() -> None:
    loop = {"a@example.test": ["b@example.test"], "b@example.test": ["a@example.test"]}
    assert names(loop, "a@example.test") == ([], [("a@example.test", ALIAS_LOOP)])
    assert names(loop, "a@example.test", "b@example.test") == (
        [],
        [("a@example.test", ALIAS_LOOP), ("b@example.test", ALIAS_LOOP)],
    )


def test_cycle_inside_a_list_is_ignored() -> None:
    back = {"a@example.test": ["b@example.test", "x@far.test"], "b@example.test": ["a@example.test"]}
    assert names(back, "a@example.test") == ([("x@far.test", "a@example.test")], [])
    assert names(back, "a@example.test", "b@example.test") == ([("x@far.test", "a@example.test")], [])


def test_two_aliases_of_the_same_members_are_not_a_loop() -> None:
    twice = {
        "one@example.test": ["core@example.test"],
        "two@example.test": ["core@example.test"],
        "core@example.test": ["bob@example.test"],
    }
    assert names(twice, "one@example.test", "two@example.test") == ([("bob@example.test", "one@example.test")], [])


def test_alias_keeps_a_copy_only_if_it_names_itself() -> None:
    copy = {"alice@example.test": ["alice@example.test", "x@far.test"]}
    assert [name for name, _ in names(copy, "alice@example.test")[0]] == ["alice@example.test", "x@far.test"]
    redirect = {"alice@example.test": ["x@far.test"], "all@example.test": ["alice@example.test"]}
    assert [name for name, _ in names(redirect, "alice@example.test", "all@example.test")[0]] == ["x@far.test"]


def test_address_with_detail_uses_the_alias_of_its_name() -> None:
    copy = {"alice@example.test": ["alice@example.test", "x@far.test"]}
    assert [name for name, _ in names(copy, "alice+news@example.test")[0]] == ["alice@example.test", "x@far.test"]
    redirect = {"alice@example.test": ["x@far.test"]}
    assert names(redirect, "alice+news@example.test") == ([("x@far.test", "alice+news@example.test")], [])
    detailed = {"alice@example.test": ["alice+copy@example.test", "x@far.test"]}
    for to in ("alice@example.test", "alice+news@example.test"):
        assert [name for name, _ in names(detailed, to)[0]] == ["alice+copy@example.test", "x@far.test"]
    own = {"alice+list@example.test": ["alice@example.test", "bob@example.test"]}  # an exact name wins
    assert [name for name, _ in names(own, "alice+list@example.test")[0]] == ["alice@example.test", "bob@example.test"]
    assert [name for name, _ in names(own | redirect, "alice+list@example.test")[0]] == [
        "x@far.test",
        "bob@example.test",
    ]


def test_alias_depth_is_limited_and_empty_list_is_refused() -> None:
    chain = {f"a{n}@example.test": [f"a{n + 1}@example.test"] for n in range(9)}
    assert names(chain | {"a9@example.test": ["bob@example.test"]}, "a0@example.test", depth=5) == (
        [],
        [("a5@example.test", ALIAS_TOO_DEEP)],
    )
    assert names({"none@example.test": []}, "none@example.test")[1] == [("none@example.test", EMPTY_LIST)]


@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "c", "d", "alice"]),
        st.lists(st.sampled_from(["a", "b", "c", "d", "alice", "nobody"]), max_size=3),
        max_size=5,
    ),
    st.sampled_from(["a", "b", "alice"]),
    st.integers(1, 6),
)
def test_undeliverable_reply_agrees_with_the_expansion(aliases: dict[str, list[str]], name: str, depth: int) -> None:
    """Ingress refuses exactly the addresses that the router could not deliver."""
    directory = snapshot(
        ["alice@example.test"],
        {f"{alias}@example.test": [f"{to}@example.test" for to in targets] for alias, targets in aliases.items()},
    )
    addressee = recipient(f"{name}@example.test")
    expansion = expand([addressee], directory, depth)
    reason = undeliverable_reply(addressee.address, directory, depth)
    assert (reason is None) == bool(expansion.final_recipients)
    if reason is not None and depth > len(aliases):
        assert reason == expansion.refused[0].reply


def test_the_depth_limit_does_not_depend_on_the_order_of_targets() -> None:
    aliases = {
        "a@example.test": ["b@example.test", "e@example.test"],
        "b@example.test": ["d@example.test"],
        "d@example.test": ["e@example.test"],
        "e@example.test": ["alice@example.test"],
    }
    directory = snapshot(["alice@example.test"], aliases)
    expansion = expand([recipient("a@example.test")], directory, 3)
    assert [str(final.recipient.address) for final in expansion.final_recipients] == ["alice@example.test"]
    assert expansion.refused == ()
