"""Measurements beside a second server: what `make bench` runs. No part of the package."""
