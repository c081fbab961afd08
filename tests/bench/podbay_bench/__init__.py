"""Measures Podbay beside OpenSSH's sshd; see `run` in the folder above."""
