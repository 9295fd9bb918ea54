"""What the commands of the command line do; `lmserver/cli.py` parses and calls them."""
