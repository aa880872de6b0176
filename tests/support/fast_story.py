"""The times of a failover story that tests can wait for."""

from pyiscsi_target.demo.story import Timing

FAST = Timing(
    record_s=0.001,
    lead_s=0.02,
    heartbeat_s=0.005,
    heartbeats_missed=2,
    renew_s=0.005,
    challenge_s=0.05,
    alone_s=0.01,
    refused_s=0.01,
    together_s=0.01,
)
