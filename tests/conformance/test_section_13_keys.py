"""RFC 7143 section 13: each operational key's result, and when it has no meaning."""

import pytest

from pyiscsi_target.iscsi.chap import Credentials
from pyiscsi_target.iscsi.constants import LoginStatus
from pyiscsi_target.iscsi.keys import KEYS, Limits
from pyiscsi_target.iscsi.text import decode_pairs
from tests.support.memory import DISCOVERY_NAMES, Policy, RawPeer, Target, names

LIMITS = Limits(
    initial_r2t=False,
    immediate_data=True,
    max_burst_length=262144,
    first_burst_length=65536,
    default_time2wait_s=2,
    default_time2retain_s=0,
    max_outstanding_r2t=8,
)

RESULTS = [
    ("13.1", "HeaderDigest", "CRC32C", "CRC32C"),
    ("13.1", "DataDigest", "None,CRC32C", "None"),
    ("13.2", "MaxConnections", "8", "1"),
    ("13.10", "InitialR2T", "No", "No"),
    ("13.10", "InitialR2T", "Yes", "Yes"),
    ("13.11", "ImmediateData", "Yes", "Yes"),
    ("13.11", "ImmediateData", "No", "No"),
    ("13.13", "MaxBurstLength", "16777215", "262144"),
    ("13.13", "MaxBurstLength", "131072", "131072"),
    ("13.14", "FirstBurstLength", "262144", "65536"),
    ("13.14", "FirstBurstLength", "512", "512"),
    ("13.15", "DefaultTime2Wait", "0", "2"),
    ("13.15", "DefaultTime2Wait", "60", "60"),
    ("13.16", "DefaultTime2Retain", "3600", "0"),
    ("13.17", "MaxOutstandingR2T", "65535", "8"),
    ("13.17", "MaxOutstandingR2T", "1", "1"),
    ("13.18", "DataPDUInOrder", "No", "Yes"),
    ("13.19", "DataSequenceInOrder", "No", "Yes"),
    ("13.20", "ErrorRecoveryLevel", "2", "0"),
    ("13.23", "TaskReporting", "FastAbort,RFC3720", "RFC3720"),
    ("13.24", "iSCSIProtocolLevel", "1", "1"),
    ("13.24", "iSCSIProtocolLevel", "31", "2"),
    ("13.25", "IFMarkInt", "2048~8192", "Reject"),
    ("13.25", "OFMarkInt", "2048~8192", "Reject"),
]


def answers_to(pairs: list[tuple[str, str]], limits: Limits = LIMITS) -> dict[str, str]:
    peer = RawPeer(Target(Policy(limits)))
    response, data = peer.login(pairs)
    assert response.status == 0
    return dict(decode_pairs(data))


@pytest.mark.parametrize(
    ("key", "offer", "result"),
    [pytest.param(*row[1:], id=f"{row[0]}-{row[1]}={row[2]}") for row in RESULTS],
)
def test_result_functions(key: str, offer: str, result: str) -> None:
    assert answers_to([*names(), (key, offer)])[key] == result


@pytest.mark.parametrize("key", ["IFMarker", "OFMarker"])
def test_13_25_markers_are_refused_but_understood(key: str) -> None:
    assert answers_to([*names(), (key, "Yes")])[key] in ("Reject", "No")


@pytest.mark.parametrize(
    ("key", "offer"),
    [
        ("MaxConnections", "1"),
        ("InitialR2T", "Yes"),
        ("ImmediateData", "Yes"),
        ("MaxBurstLength", "65536"),
        ("FirstBurstLength", "65536"),
        ("MaxOutstandingR2T", "1"),
        ("DataPDUInOrder", "Yes"),
        ("DataSequenceInOrder", "Yes"),
        ("TaskReporting", "RFC3720"),
        ("iSCSIProtocolLevel", "1"),
    ],
)
def test_13_keys_without_meaning_in_discovery(key: str, offer: str) -> None:
    assert answers_to([*DISCOVERY_NAMES, (key, offer)])[key] == "Irrelevant"
    assert KEYS[key].normal_session_only


@pytest.mark.parametrize("value", ["511", "16777216", "-1", "8k"])
def test_13_12_segment_length_out_of_range(value: str) -> None:
    response, _ = RawPeer().login([*names(), ("MaxRecvDataSegmentLength", value)])
    assert response.status == LoginStatus.INITIATOR_ERROR


def test_13_12_both_directions_are_independent() -> None:
    target = Target()
    peer = RawPeer(target)
    peer.log_in(("MaxRecvDataSegmentLength", "1024"))
    assert target.connection.agreement is not None
    parameters = target.connection.agreement.parameters
    assert parameters.max_send_data_segment_length == 1024
    assert parameters.max_recv_data_segment_length == 262144
    assert peer.answers["MaxRecvDataSegmentLength"] == "262144"


def test_13_12_undeclared_means_8192() -> None:
    target = Target()
    RawPeer(target).log_in()
    assert target.connection.agreement is not None
    assert target.connection.agreement.parameters.max_send_data_segment_length == 8192


def test_13_14_first_burst_never_exceeds_max_burst() -> None:
    target = Target()
    RawPeer(target).log_in(("MaxBurstLength", "4096"))
    assert target.connection.agreement is not None
    parameters = target.connection.agreement.parameters
    assert parameters.first_burst_length <= parameters.max_burst_length == 4096


def test_13_14_an_offer_of_more_first_burst_than_burst_fails() -> None:
    offers = [("MaxBurstLength", "4096"), ("FirstBurstLength", "8192")]
    response, _ = RawPeer().login([*names(), *offers])
    assert response.status == LoginStatus.INITIATOR_ERROR


@pytest.mark.parametrize("stage", [0, 1])
def test_13_9_the_portal_group_tag_is_in_the_first_answer(stage: int) -> None:
    peer = RawPeer(Target(Policy(portal_group_tag=7, alias="a disk")))
    _, data = peer.login(names(), flags=stage << 2)
    keys = dict(decode_pairs(data))
    assert keys["TargetPortalGroupTag"] == "7"
    assert keys["TargetAlias"] == "a disk"


def test_13_9_the_portal_group_tag_comes_before_authentication() -> None:
    policy = Policy(portal_group_tag=7, credentials=Credentials("host", b"secret secret"))
    _, data = RawPeer(Target(policy)).login([*names(), ("AuthMethod", "CHAP")], flags=0)
    assert dict(decode_pairs(data))["TargetPortalGroupTag"] == "7"


def test_13_1_a_digest_that_the_target_requires() -> None:
    target = Target(Policy(Limits(header_digest="CRC32C")))
    response, _ = RawPeer(target).login([*names(), ("HeaderDigest", "None")])
    assert response.status != 0


def test_13_26_node_architecture_changes_nothing() -> None:
    with_key = answers_to([*names(), ("X#NodeArchitecture", "toaster")])
    with_key.pop("X#NodeArchitecture", None)
    assert with_key == answers_to(names())
