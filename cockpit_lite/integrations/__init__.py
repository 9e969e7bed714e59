"""Integrations: the cockpit inside other frameworks. Nothing else of the library imports them."""
