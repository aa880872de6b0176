"""Cluster readiness of any iSCSI target, proven as Windows' cluster validation does.

`await validate(Options(parse_url("iscsi://...")))` gives a Report. Knows targets by the wire only:
it imports the client and the protocols' tables, nothing of the server.
"""

from .model import Check, CheckResult, Conclusion, Importance, Report, Verdict
from .rig import NODES_DEFAULT, NODES_MAXIMUM, NODES_MINIMUM, Options, node_names
from .run import validate
from .table import CHECKS

__all__ = [
    "CHECKS",
    "NODES_DEFAULT",
    "NODES_MAXIMUM",
    "NODES_MINIMUM",
    "Check",
    "CheckResult",
    "Conclusion",
    "Importance",
    "Options",
    "Report",
    "Verdict",
    "node_names",
    "validate",
]
