"""Doors into the frameworks that people train with; each framework is imported by its own door only."""
