"""Backups that are proven: what runs in the backup service (schedule, pgBackRest, drills, evidence) and what asks it from outside."""
