# SPDX-License-Identifier: Apache-2.0
"""One finished capture: everything that sealing takes from the session."""

from dataclasses import dataclass, field

from ktrace_agent.host.counter_changes import Report
from ktrace_agent.kernel.recording import Recording
from ktrace_agent.tables.load import Names
from ktrace_api.capture import CaptureConfig
from ktrace_api.node import NodeInfo


@dataclass(frozen=True, slots=True)
class Captured:
    """A recording and the facts collected beside it.

    The value itself never changes. `recording` and `names` hold up to 100 MiB. Both are emptied
    once the tables are loaded, because sealing needs the memory.
    """

    recording: Recording
    config: CaptureConfig
    node_info: NodeInfo
    """node.json as it is written."""
    changes: Report | None = None
    """Changes of all counters, for the findings. node_info holds only as many as fit into
    node.json. None: the findings use those."""
    names: Names = field(default_factory=Names)
