"""The engine: rooms as lists with one head, asked and extended without HTTP in sight."""
