"""One HTML page of results or of runs, which needs no other file and no network."""
