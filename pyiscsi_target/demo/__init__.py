"""Demonstrations that need no other machine: a server and simulated nodes on loopback."""
