"""Where an artifact runs. One agent file does the running everywhere."""
