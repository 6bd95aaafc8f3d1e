"""Adapters to training frameworks, one thin module each; the framework is imported inside."""
