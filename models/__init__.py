"""The language model that lies in the repository, and the scripts that make it."""
