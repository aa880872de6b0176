"""pyiscsi-target: an iSCSI target in pure Python."""

__version__ = "0.1.0"
