"""Schemes of quantisation, a file each, and what they share."""
