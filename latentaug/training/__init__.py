"""A training LOOP, for who wants one."""
