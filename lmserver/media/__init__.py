"""Media: files by their hash, uploads of our users, and copies of what other servers hold.

The bytes of a medium are one file, named by their SHA-256 and by nothing anybody sent. A file is
written beside its place, synced and renamed, so what stands under a name is whole; while it is
read the hash is computed again, and a file that has rotted is never served to its end.
"""
