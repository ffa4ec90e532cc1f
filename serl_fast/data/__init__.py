"""Data at the edge: demonstrations from files that others wrote, read safely and checked field by field."""
