"""What every log must do, whatever it is made of. An adapter joins by naming a harness (`test_log.py`).

The suite asserts on records only.
"""

from tests.contract.log_contract.asking import Asking
from tests.contract.log_contract.committing import Committing
from tests.contract.log_contract.harness import Harness as Harness
from tests.contract.log_contract.moving import Moving
from tests.contract.log_contract.owning import Owning
from tests.contract.log_contract.refusing import Refusing
from tests.contract.log_contract.taking import Taking


class LogContract(Taking, Committing, Owning, Moving, Asking, Refusing):
    """Subclasses provide the fixture `harness`."""
