"""The long form runs all cases even if one fails."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.faults import __main__ as long_form
from tests.support.faults.cases import CaseResult
from tests.support.servers.mail_cluster import MailCluster
from tests.support.servers.ports import free_port


async def test_a_failed_case_is_reported_and_the_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    troubles: dict[str, Exception] = {
        "late": TimeoutError(),
        "gone": ConnectionResetError("the sink is gone"),
        "lost": AssertionError("lost 1"),
    }
    counts: list[int] = []

    async def run_cell(_cluster: Any, _sink: Any, fault: str, points: tuple[str, ...], **_: Any) -> CaseResult:
        if fault in troubles:
            raise troubles[fault]
        return CaseResult(fault, points)

    async def empty_queue(_: Any) -> list[str]:
        return []

    def mend(_: Any) -> None:
        if len(run.failures) == 3:
            raise AssertionError("shards without owners")

    run = long_form.Run()
    monkeypatch.setattr(long_form, "run_case", run_cell)
    monkeypatch.setattr(long_form, "wait_for_empty_queue", empty_queue)
    monkeypatch.setattr(long_form, "_mend", mend)
    cluster = cast("MailCluster", SimpleNamespace(sink_port=free_port()))
    cases = [(fault, "in-data") for fault in ("late", "gone", "lost", "well")]
    await long_form.run_matrix(cluster, cases, run, 1, 1.0, lambda: counts.append(len(run.failures)))
    assert run.failures == [
        "late x in-data: TimeoutError: ",
        "gone x in-data: ConnectionResetError: the sink is gone",
        "lost x in-data: AssertionError: lost 1",
        "lost x in-data: after it AssertionError: shards without owners",
    ]
    assert [account.fault for account in run.accounts] == ["well"]
    assert counts == [1, 2, 4, 4]
