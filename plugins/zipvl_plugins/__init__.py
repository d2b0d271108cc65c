"""The method: every op of ZipVL, written once, with a face per executor."""
