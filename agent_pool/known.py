"""What was learnt by loading code, kept by what was loaded: a thousand agents of one image load it once."""

from collections import OrderedDict
from collections.abc import Hashable

from agent_pool.drivers.base import Prepared, Revision

# Far more than the kinds of agents on one machine; a long time of building and rolling must not pile up here.
_MOST = 1000


class Known:
    """Of one pool."""

    def __init__(self) -> None:
        self._prepared: OrderedDict[Hashable, Prepared] = OrderedDict()

    def find(self, revision: Revision) -> Prepared | None:
        """What is known of code like this revision's; None if none was loaded yet."""
        return self._prepared.get(_code(revision))

    def learn(self, revision: Revision, prepared: Prepared) -> Prepared:
        """Keeps what loading a revision has told, and returns it: the very same object for the same content."""
        code = _code(revision)
        if (before := self._prepared.get(code)) == prepared and before is not None:
            return before
        self._prepared[code] = prepared
        if len(self._prepared) > _MOST:
            self._prepared.popitem(last=False)
        return prepared


def _code(revision: Revision) -> Hashable:
    """All that an import could make a difference by."""
    return (
        revision.image_digest,
        revision.venv,
        tuple(sorted(revision.env.items())),
        revision.host_network,
        revision.wants_gpus,
        revision.log_level,
        revision.mode,
        revision.restricted,
    )
