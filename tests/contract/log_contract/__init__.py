"""Contract suite of the Log port. An adapter joins by naming a harness (`test_log.py`).

The suite asserts on records only.
"""

from tests.contract.log_contract.commits import CommitTests
from tests.contract.log_contract.damaged_records import DamagedRecordTests
from tests.contract.log_contract.follows import FollowTests
from tests.contract.log_contract.harness import Harness as Harness
from tests.contract.log_contract.ownership import OwnershipTests
from tests.contract.log_contract.queries import QueryTests
from tests.contract.log_contract.reads import ReadTests
from tests.contract.log_contract.rebalancing import RebalanceTests
from tests.contract.log_contract.unreadable_frames import UnreadableFrameTests


class LogContract(
    ReadTests,
    CommitTests,
    OwnershipTests,
    RebalanceTests,
    QueryTests,
    FollowTests,
    UnreadableFrameTests,
    DamagedRecordTests,
):
    """Subclasses provide the fixture `harness`."""
