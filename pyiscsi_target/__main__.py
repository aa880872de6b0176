"""`python -m pyiscsi_target`: the command line under a name that needs no installed script."""

from .cli import main

main(prog_name="pyiscsi-target")
