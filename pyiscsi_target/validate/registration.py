"""Checks of registering: keys come and go as each nexus asks, and READ KEYS tells the truth."""

from ..client import CommandFailed, commands
from ..client.reservations import READ_KEYS
from ..scsi.reservations import ServiceAction
from . import pr
from .gates import all_nodes, disk, free_disk, second_paths
from .model import Area, Check, Finding, Importance
from .rig import Rig
from .wording import describe_key, describe_keys

_LIST_LENGTH = 24


async def read_keys(rig: Rig) -> str:
    """Whoever asks is told, registered or not."""
    generation, keys = await pr.read_keys(rig.first)
    return f"{describe_keys(keys)}, PRGENERATION {generation}"


async def capabilities(rig: Rig) -> str:
    """The type mask names the type that a cluster uses."""
    found = await pr.done(
        rig.first, "REPORT CAPABILITIES", rig.first.reservations.report_capabilities()
    )
    if found.types is None:
        raise Finding("TMV=0: the type mask is not valid", "a type mask with type 5")
    types = ", ".join(map(str, sorted(found.types))) or "none"
    if pr.WE_RO not in found.types:
        raise Finding(f"types {types}", "type 5, Write Exclusive - Registrants Only")
    return f"types {types}; PTPL_C={found.persist_through_power_loss:d}"


async def register(rig: Rig) -> str:
    """REGISTER AND IGNORE EXISTING KEY with a random key, as Windows does; twice changes it."""
    node = rig.nodes[0]
    before, _ = await pr.read_keys(node.nexus)
    await pr.register(node.nexus, node.key)
    generation = await pr.expect_keys(rig.nodes[1].nexus, node.key)
    other = rig.new_key()
    await pr.register(node.nexus, other)
    await pr.expect_keys(rig.nodes[1].nexus, other)
    return f"{describe_key(other)} replaces {describe_key(node.key)}, {before} -> {generation}"


async def generation(rig: Rig) -> str:
    """PRGENERATION counts changes of registrations."""
    node = rig.nodes[0]
    before, _ = await pr.read_keys(node.nexus)
    await pr.register(node.nexus, node.key)
    registered, _ = await pr.read_keys(node.nexus)
    await pr.reserve(node.nexus, node.key)
    reserved, _ = await pr.read_keys(node.nexus)
    if registered != before + 1 & 0xFFFF_FFFF or reserved != registered:
        raise Finding(
            f"PRGENERATION {before}, {registered} after REGISTER, {reserved} after RESERVE",
            "one more after REGISTER, the same after RESERVE",
        )
    return f"{before}, {registered} after REGISTER and RESERVE"


async def every_node(rig: Rig) -> str:
    """All nodes register side by side."""
    for node in rig.nodes:
        await pr.register(node.nexus, node.key)
    for node in rig.nodes:
        await pr.expect_keys(node.nexus, *(other.key for other in rig.nodes))
    return f"{len(rig.nodes)} keys, as every node reads them"


async def register_with_key(rig: Rig) -> str:
    """REGISTER changes a key only for who knows it."""
    node = rig.nodes[0]
    nexus, key, other = node.nexus, node.key, rig.new_key()
    await pr.done(nexus, "REGISTER", nexus.reservations.register(key))
    wrong = nexus.reservations.register(other, existing=other)
    await pr.refused(nexus, "REGISTER with a key that is not registered", wrong)
    await pr.expect_keys(nexus, key)
    right = nexus.reservations.register(other, existing=key)
    await pr.done(nexus, "REGISTER with the registered key", right)
    await pr.expect_keys(nexus, other)
    stranger = rig.nodes[1].nexus
    await pr.refused(
        stranger,
        "REGISTER with another's key, unregistered",
        stranger.reservations.register(rig.nodes[1].key, existing=other),
    )
    await pr.expect_keys(nexus, other)
    return "the right key changes it, a wrong one conflicts"


async def unregister(rig: Rig) -> str:
    """Key 0 takes away the nexus's own registration, and only that."""
    first, second = rig.nodes[:2]
    await pr.register(first.nexus, first.key)
    await pr.register(second.nexus, second.key)
    await pr.register(first.nexus, 0)
    await pr.expect_keys(second.nexus, second.key)
    await pr.done(
        second.nexus,
        "REGISTER of zero",
        second.nexus.reservations.register(0, existing=second.key),
    )
    await pr.expect_keys(second.nexus)
    return "by REGISTER AND IGNORE EXISTING KEY and by REGISTER"


async def unregister_unregistered(rig: Rig) -> str:
    """A nexus that is not registered may say so again: Windows begins that way."""
    await pr.register(rig.nodes[1].nexus, rig.nodes[1].key)
    await pr.register(rig.first, 0)
    await pr.expect_keys(rig.first, rig.nodes[1].key)
    return "GOOD, and nothing changed"


async def same_key(rig: Rig) -> str:
    """Two paths of a node with one key are two registrations."""
    node = rig.nodes[0]
    paths = node.nexuses[:2]
    for nexus in paths:
        await pr.register(nexus, node.key)
    await pr.expect_keys(rig.nodes[1].nexus, node.key, node.key)
    await pr.register(paths[1], 0)
    await pr.expect_keys(rig.nodes[1].nexus, node.key)
    return "one key twice, once for each path"


async def truncated_keys(rig: Rig) -> str:
    """Eight bytes are room for the header, which tells how much there is."""
    for node in rig.nodes[:2]:
        await pr.register(node.nexus, node.key)
    command = commands.persistent_reserve_in(READ_KEYS, 8)
    data = await pr.done(
        rig.first,
        "READ KEYS with 8 bytes",
        rig.first.session.good("READ KEYS", rig.first.lun, command, read_length=8),
    )
    if len(data) != 8 or int.from_bytes(data[4:], "big") != 16:
        raise Finding(
            f"{len(data)} bytes, ADDITIONAL LENGTH {int.from_bytes(data[4:8], 'big')}",
            "8 bytes, ADDITIONAL LENGTH 16",
        )
    return "8 bytes that announce 16 more"


async def wrong_list_length(rig: Rig) -> str:
    """A parameter list of another length than 24 is refused before anything is done."""
    nexus = rig.first
    for length in (_LIST_LENGTH - 1, _LIST_LENGTH + 8):
        parameters = bytes(8) + rig.nodes[0].key.to_bytes(8, "big")
        result = await nexus.session.execute(
            nexus.lun,
            commands.persistent_reserve_out(
                ServiceAction.REGISTER_AND_IGNORE_EXISTING_KEY, 0, length
            ),
            data_out=parameters.ljust(length, b"\0"),
        )
        if result.good:
            raise Finding(f"a list of {length} bytes: {result}", "PARAMETER LIST LENGTH ERROR")
        await pr.expect_keys(nexus)
    return "23 and 32 bytes are refused"


async def power_loss(rig: Rig) -> str:
    """APTPL=1 is what keeps a cluster's registrations over a restart of the target."""
    nexus, key = rig.first, rig.nodes[0].key
    await pr.done(
        nexus,
        "REGISTER AND IGNORE EXISTING KEY with APTPL=1",
        nexus.reservations.register_and_ignore(key, aptpl=True),
    )
    await pr.expect_keys(nexus, key)
    try:
        found = await nexus.reservations.report_capabilities()
    except CommandFailed:
        return "accepted"
    if not found.persist_through_power_loss_activated:
        raise Finding("accepted, but REPORT CAPABILITIES says PTPL_A=0", "PTPL_A=1")
    return "accepted, PTPL_A=1"


async def full_status(rig: Rig) -> str:
    """READ FULL STATUS tells whose key is whose."""
    for node in rig.nodes[:2]:
        await pr.register(node.nexus, node.key)
    await pr.reserve(rig.first, rig.nodes[0].key)
    pending = rig.first.reservations.read_full_status()
    _, found = await pr.done(rig.first, "READ FULL STATUS", pending)
    seen = {(entry.key, entry.initiator_port, entry.is_holder) for entry in found}
    wanted = {
        (node.key, node.nexus.initiator.port_name.lower(), node is rig.nodes[0])
        for node in rig.nodes[:2]
    }
    if seen != wanted:
        raise Finding(
            "; ".join(f"{describe_key(key)} of {port}" for key, port, _ in sorted(seen, key=str)),
            "; ".join(f"{describe_key(key)} of {port}" for key, port, _ in sorted(wanted)),
        )
    return "key, initiator port and holder of each registration"


_PR_TEST = "Validate SCSI-3 Persistent Reservation"
_PR_MISSING = "the target must support SCSI-3 persistent reservations for this disk; enable them"

CHECKS = (
    Check(
        "read-keys",
        Area.REGISTRATION,
        "READ KEYS answers everybody",
        "there are persistent reservations at all",
        "SPC-5 clause 6.16.2",
        Importance.REQUIRED,
        read_keys,
        (all_nodes, disk),
        windows=_PR_TEST,
        fix=_PR_MISSING,
    ),
    Check(
        "register",
        Area.REGISTRATION,
        "A node registers with a key of its choice",
        "REGISTER AND IGNORE EXISTING KEY (06h) registers, and replaces the key",
        "SPC-5 clause 5.14.7",
        Importance.REQUIRED,
        register,
        (free_disk,),
        windows=_PR_TEST,
        fix=_PR_MISSING,
    ),
    Check(
        "register-all",
        Area.REGISTRATION,
        "All nodes register, and all see it",
        "each node has a registration of its own",
        "SPC-5 clause 5.14.7",
        Importance.REQUIRED,
        every_node,
        (free_disk,),
        windows=_PR_TEST,
    ),
    Check(
        "register-key",
        Area.REGISTRATION,
        "REGISTER wants the registered key",
        "nobody changes a registration by mistake",
        "SPC-5 clause 5.14.7",
        Importance.REQUIRED,
        register_with_key,
        (free_disk,),
        windows=_PR_TEST,
    ),
    Check(
        "unregister",
        Area.REGISTRATION,
        "A node unregisters itself and nobody else",
        "key 0 takes away one registration",
        "SPC-5 clause 5.14.11.3",
        Importance.REQUIRED,
        unregister,
        (free_disk,),
        windows=_PR_TEST,
    ),
    Check(
        "unregister-twice",
        Area.REGISTRATION,
        "Unregistering twice does no harm",
        "key 0 from a nexus that is not registered is GOOD",
        "SPC-5 clause 5.14.7",
        Importance.RECOMMENDED,
        unregister_unregistered,
        (free_disk,),
        windows=_PR_TEST,
    ),
    Check(
        "generation",
        Area.REGISTRATION,
        "PRGENERATION counts registrations",
        "a node can tell whether anything changed since it last read",
        "SPC-5 clause 6.16.2",
        Importance.RECOMMENDED,
        generation,
        (free_disk,),
    ),
    Check(
        "same-key-paths",
        Area.REGISTRATION,
        "One key on two paths is two registrations",
        "multipath I/O registers its key on every path",
        "SPC-5 clause 5.14.7",
        Importance.REQUIRED,
        same_key,
        (free_disk, second_paths),
        windows="Validate Microsoft MPIO-Based Disks",
    ),
    Check(
        "keys-truncated",
        Area.REGISTRATION,
        "READ KEYS is truncated properly",
        "a node with a small buffer learns how large it must be",
        "SPC-5 clause 6.16.2",
        Importance.RECOMMENDED,
        truncated_keys,
        (free_disk,),
    ),
    Check(
        "list-length",
        Area.REGISTRATION,
        "Lists of a wrong length are refused",
        "a broken request changes nothing",
        "SPC-5 clause 6.17.1",
        Importance.RECOMMENDED,
        wrong_list_length,
        (free_disk,),
    ),
    Check(
        "aptpl",
        Area.REGISTRATION,
        "Registrations can outlive the target's power",
        "APTPL=1 is accepted: a restarted target still knows who owns the disk",
        "SPC-5 clause 5.14.5",
        Importance.RECOMMENDED,
        power_loss,
        (free_disk,),
        fix="let the target store reservations; until then stop the cluster before the target",
    ),
    Check(
        "capabilities",
        Area.REGISTRATION,
        "REPORT CAPABILITIES names type 5",
        "what the target can do can be asked",
        "SPC-5 clause 6.16.4",
        Importance.RECOMMENDED,
        capabilities,
        (all_nodes, disk),
    ),
    Check(
        "full-status",
        Area.REGISTRATION,
        "READ FULL STATUS tells whose key is whose",
        "an administrator can find the node behind a key",
        "SPC-5 clause 6.16.5",
        Importance.RECOMMENDED,
        full_status,
        (free_disk,),
    ),
)
