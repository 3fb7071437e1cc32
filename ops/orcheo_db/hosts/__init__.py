"""Hosts that Ansible runs: what each is given, and how they are reached."""
