"""Code of users: functions in their Python files, and calling their torch modules on batches."""
