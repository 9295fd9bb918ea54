"""What operators ask of the server, on a listener of its own: never where clients or servers connect."""
