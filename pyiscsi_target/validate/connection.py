"""Checks of discovery and login: whether the nodes find the target and get in, all at once."""

from dataclasses import replace

from ..client import ClientError, DiscoveredTarget, LoginRefused, Portal, discover
from ..iscsi.constants import LoginStatus
from .gates import all_nodes, first_node
from .model import Area, Check, Finding, Importance
from .nodes import Node
from .rig import Rig
from .wording import printable

_WILDCARDS = ("0.0.0.0", "::")
_SESSIONS = "a session for every node"
_OFFERED_MAXIMUM = 500  # characters

_ADMIT = (
    "admit the nodes' initiator names, or give names that are admitted with --initiator-name;"
    " for CHAP give --chap-file"
)
# By the status of a refused login (RFC 7143 section 11.13.5)
_ADVICE: dict[int, str] = {
    LoginStatus.AUTHENTICATION_FAILURE: (
        "give --chap-file with the name and secret that the target wants of these nodes"
    ),
    LoginStatus.TARGET_REMOVED: "the target is gone for good; check its name",
    LoginStatus.TOO_MANY_CONNECTIONS: "raise the target's limit of sessions",
    LoginStatus.TARGET_ERROR: "see the target's log, and try again",
    LoginStatus.SERVICE_UNAVAILABLE: "see whether the target is enabled, and try again",
    LoginStatus.OUT_OF_RESOURCES: "raise the target's limit of sessions, or try again later",
}


async def discovery(rig: Rig) -> str:
    """Every node asks the portal for its targets."""
    url = rig.options.url
    for node in rig.nodes:
        found = await _discover(rig, node)
        names = {target.name.lower(): target for target in found}
        rig.offered = tuple(sorted(names))
        wanted = names.get(url.target.lower())
        if wanted is None:
            others = printable(", ".join(rig.offered)) or "no target at all"
            raise Finding(f"{node} finds {others}", url.target)
        rig.portals = [url.portal, *(p for p in wanted.portals if p != url.portal)]
        rig.paths = rig.portals
    return f"every node finds it; its portals: {', '.join(map(str, rig.portals))}"


async def _discover(rig: Rig, node: Node) -> list[DiscoveredTarget]:
    """Discovery has an authentication of its own, mostly none: CHAP is tried where it must be."""
    portal, initiator = rig.options.url.portal, node.nexus.initiator
    timeout_s = rig.options.timeout_s
    if initiator.credentials is not None:
        try:
            return await discover(portal, replace(initiator, credentials=None), timeout_s=timeout_s)
        except LoginRefused:
            pass
    return await discover(portal, initiator, timeout_s=timeout_s)


async def login(rig: Rig) -> str:
    """The nodes log in one after the other and stay."""
    refusals: list[LoginRefused] = []
    for node in rig.nodes:
        try:
            await node.nexus.connect()
        except ClientError as error:
            rig.gave_up = rig.gave_up or (
                f"{node} ({node.initiator_name}) could not log in: {error}"
            )
            if not isinstance(error, LoginRefused):
                break
            refusals.append(error)
    if len(refusals) == len(rig.nodes):
        reasons = "; ".join(dict.fromkeys(map(str, refusals)))
        fix = _advice(rig, refusals[0].status)
        rig.refused = f"no node can log in to {rig.options.url.target}: {reasons}; {fix}"
        raise Finding(rig.gave_up, _SESSIONS, fix=fix)
    if rig.gave_up:
        raise Finding(rig.gave_up, _SESSIONS)
    parameters = rig.first.session.parameters
    return (
        f"{len(rig.nodes)} sessions at once; MaxBurstLength {parameters.max_burst_length},"
        f" ImmediateData {'Yes' if parameters.immediate_data else 'No'}"
    )


def _advice(rig: Rig, status: int) -> str:
    """What to do about a login that is refused to all nodes."""
    if status != LoginStatus.NOT_FOUND:
        return _ADVICE.get(status, _ADMIT)
    if rig.offered is None or rig.options.url.target.lower() in rig.offered:
        return f"check the target's name, or {_ADMIT}"
    offered = printable(", ".join(rig.offered), limit=_OFFERED_MAXIMUM) or "no target at all"
    return f"check the target's name (the portal offers {offered}), or {_ADMIT}"


async def stay(rig: Rig) -> str:
    """No login has thrown out another node."""
    for node in rig.nodes:
        await node.nexus.session.ping()
    return "the session of every node answers"


async def portals(rig: Rig) -> str:
    """The advertised addresses lead to the target. Those that do not are no paths from now on."""
    dead: dict[Portal, str] = {}
    for portal in rig.portals:
        probe = rig.probe(rig.nodes[0], portal)
        try:
            if portal.host in _WILDCARDS:
                dead[portal] = f"{portal} is no address to connect to"
                continue
            await probe.connect()
        except ClientError as error:
            dead[portal] = str(error)
        await probe.log_out()
    rig.paths = [portal for portal in rig.portals if portal not in dead]
    if dead:
        raise Finding("; ".join(dead.values()), "a login at every portal that is advertised")
    return f"login works at {', '.join(map(str, rig.portals))}"


async def second_session(rig: Rig) -> str:
    """A node comes with another ISID: that is another nexus, and the first session stays."""
    first = rig.first.session
    try:
        second = await rig.second_path(rig.nodes[0])
    except ClientError as error:
        raise Finding(
            f"a second session of node 1: {error}", "several sessions of one name"
        ) from None
    await second.session.ping()
    if first.closed:
        raise Finding("the second session ended the first", "two sessions side by side")
    await first.ping()
    if len(rig.paths) == 1:
        return "two sessions of node 1 at the one portal"
    return f"two sessions of node 1, at {rig.first.portal} and {second.portal}"


async def reinstatement(rig: Rig) -> str:
    """A node that lost its connection unnoticed logs in again: the old session gives way."""
    node = rig.nodes[1]
    old = node.nexus.session
    await node.nexus.connect()
    await node.nexus.session.ping()
    try:
        await old.ping()
    except ClientError:
        return "the new session works and the old one ended"
    finally:
        old.drop()
    raise Finding("the old session still answers", "the old session ended by the new login")


async def declared(rig: Rig) -> str:
    """What a login tells about the target."""
    tag = rig.first.session.declared.get("TargetPortalGroupTag")
    if tag is None:
        raise Finding("no TargetPortalGroupTag in the login", "TargetPortalGroupTag, once")
    return f"TargetPortalGroupTag {printable(tag)}"


CHECKS = (
    Check(
        "discovery",
        Area.CONNECTION,
        "Discovery finds the target",
        "each node learns the target's name and portals by SendTargets",
        "RFC 7143 appendix C",
        Importance.REQUIRED,
        discovery,
        fix=_ADMIT,
    ),
    Check(
        "login",
        Area.CONNECTION,
        "All nodes log in",
        "the nodes hold sessions at the same time: the disk can be shared",
        "RFC 7143 section 6.3",
        Importance.REQUIRED,
        login,
        windows="List Potential Cluster Disks",
        fix=_ADMIT,
    ),
    Check(
        "sessions-stay",
        Area.CONNECTION,
        "No login ends another node's session",
        "sessions are told apart by name and ISID",
        "RFC 7143 section 4.4.3.1",
        Importance.REQUIRED,
        stay,
        (all_nodes,),
        fix="the target may allow one session only; raise its limit",
    ),
    Check(
        "portal-group",
        Area.CONNECTION,
        "The login declares the portal group",
        "the initiator can name the target port that it talks to",
        "RFC 7143 section 13.9",
        Importance.RECOMMENDED,
        declared,
        (first_node,),
    ),
    Check(
        "portals",
        Area.CONNECTION,
        "Every advertised portal lets a node in",
        "no path that discovery promises is dead",
        "RFC 7143 section 13.8",
        Importance.RECOMMENDED,
        portals,
        (first_node,),
        windows="Validate Microsoft MPIO-Based Disks",
        fix="advertise only addresses that the nodes can reach",
    ),
    Check(
        "second-session",
        Area.CONNECTION,
        "One node may have several sessions",
        "multipath I/O can be used: a session for each path",
        "RFC 7143 section 4.4.3.1",
        Importance.RECOMMENDED,
        second_session,
        (first_node,),
        windows="Validate Microsoft MPIO-Based Disks",
        fix="raise the target's limit of sessions",
    ),
    Check(
        "reinstatement",
        Area.CONNECTION,
        "A node that comes back replaces its old session",
        "after a lost connection the node does not wait for the old session to time out",
        "RFC 7143 section 6.3.5",
        Importance.REQUIRED,
        reinstatement,
        (all_nodes,),
        windows="Validate Disk Failover",
    ),
)
