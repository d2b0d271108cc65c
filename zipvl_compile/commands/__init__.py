"""What each command of zipvl-compile does: parse, call, print."""
