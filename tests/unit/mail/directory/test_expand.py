"""Aliases: what a name stands for is a set, and a name that leads nowhere else is a loop."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mail.directory.expand import ALIAS_LOOP, ALIAS_TOO_DEEP, EMPTY_LIST, UNKNOWN_USER, expand, undeliverable_reply
from tests.support.builders.routing import recipient, snapshot

USERS = ["alice@example.test", "bob@example.test"]


def names(aliases: dict[str, list[str]], *to: str, depth: int = 20) -> tuple[list[tuple[str, str]], list[object]]:
    """(final, what the sender wrote) and (who, why) of the refused."""
    found = expand([recipient(one) for one in to], snapshot(USERS, aliases), depth)  # type: ignore[arg-type]
    return (
        [(final.recipient.address.key, str(final.recipient.original)) for final in found.final_recipients],
        [(refusal.recipient.address.key, refusal.reply) for refusal in found.refused],
    )


def test_a_list_becomes_its_members_each_once_in_order() -> None:
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


def test_who_is_gone_since_ingress_looked_is_refused() -> None:
    assert names({}, "gone@example.test", "bob@example.test") == (
        [("bob@example.test", "bob@example.test")],
        [("gone@example.test", UNKNOWN_USER)],
    )


def test_a_pure_loop_is_refused_once_for_each_name_written() -> None:
    loop = {"a@example.test": ["b@example.test"], "b@example.test": ["a@example.test"]}
    assert names(loop, "a@example.test") == ([], [("a@example.test", ALIAS_LOOP)])
    assert names(loop, "a@example.test", "b@example.test") == (
        [],
        [("a@example.test", ALIAS_LOOP), ("b@example.test", ALIAS_LOOP)],
    )


def test_a_way_back_inside_a_list_adds_nothing_and_harms_nobody() -> None:
    back = {"a@example.test": ["b@example.test", "x@far.test"], "b@example.test": ["a@example.test"]}
    assert names(back, "a@example.test") == ([("x@far.test", "a@example.test")], [])
    assert names(back, "a@example.test", "b@example.test") == ([("x@far.test", "a@example.test")], [])


def test_two_names_for_the_same_members_are_no_loop() -> None:
    twice = {
        "one@example.test": ["core@example.test"],
        "two@example.test": ["core@example.test"],
        "core@example.test": ["bob@example.test"],
    }
    assert names(twice, "one@example.test", "two@example.test") == ([("bob@example.test", "one@example.test")], [])


def test_an_alias_may_keep_a_copy_for_its_own_mailbox_but_a_redirect_keeps_none() -> None:
    copy = {"alice@example.test": ["alice@example.test", "x@far.test"]}
    assert [name for name, _ in names(copy, "alice@example.test")[0]] == ["alice@example.test", "x@far.test"]
    redirect = {"alice@example.test": ["x@far.test"], "all@example.test": ["alice@example.test"]}
    assert [name for name, _ in names(redirect, "alice@example.test", "all@example.test")[0]] == ["x@far.test"]


def test_an_address_with_a_detail_follows_the_alias_of_its_name() -> None:
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


def test_depth_is_bounded_and_an_empty_list_is_refused() -> None:
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
    st.integers(1, 4),
)
def test_a_dead_end_is_what_expands_to_nobody(aliases: dict[str, list[str]], name: str, depth: int) -> None:
    """Ingress refuses exactly what the router could not deliver to anybody."""
    world = snapshot(
        ["alice@example.test"],
        {f"{one}@example.test": [f"{to}@example.test" for to in targets] for one, targets in aliases.items()},
    )
    one = recipient(f"{name}@example.test")
    expansion = expand([one], world, depth)
    reason = undeliverable_reply(one.address, world, depth)
    if expansion.final_recipients:
        assert reason is None
    else:
        assert reason == expansion.refused[0].reply
