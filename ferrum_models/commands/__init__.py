"""The commands of ``ferrum`` that work with language models; each module adds its own to the parser."""
